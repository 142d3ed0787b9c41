/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/sampling.h
 * Choosing a token from logits with the filters of transformers in their order: repetition penalty,
 * temperature, top-k, top-p. */
#ifndef KT_EXECUTOR_SAMPLING_H
#define KT_EXECUTOR_SAMPLING_H

#include <kt/generator.h>

struct kt_candidate {
    float score;
    int32_t id;
};

/** The token for a uniform number u in [0, 1). `context` holds the tokens so far, for the
 * repetition penalty. `heap` and `candidates` are scratch, [vocab] each. temperature 0: the best
 * score, the lowest id of equals. */
int32_t kt_sample(const kt_generator_options *options, const float *logits, int32_t vocab,
                  const int32_t *context, size_t length, double u, float *heap,
                  struct kt_candidate *candidates);

#endif
