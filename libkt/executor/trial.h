/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/trial.h
 * A step that nobody runs: what plans and reservations are measured by. */
#ifndef KT_EXECUTOR_TRIAL_H
#define KT_EXECUTOR_TRIAL_H

#include "executor/executor.h"

/** As many sequences of the greatest length as there are tokens for, and the rest; every token has
 * a target. */
struct kt_trial {
    int64_t tokens, longest;
    kt_forward_mode mode;
    struct kt_step step; /**< measured; its pass has the arenas and tallies */
    int32_t *cu_seqlens;
    int32_t padding_offsets[4], padding_sequence, *positions; /**< see kt_trial_measure_padded */
};

/** Errors: INVALID_ARGUMENT. */
kt_status kt_trial_check(const struct kt_executor *executor, size_t tokens, size_t longest);

/** Checks the sizes, then measures; `trial` may be freed after a failure too. `longest` 0 = one
 * sequence. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. */
kt_status kt_trial_measure(const struct kt_executor *executor, size_t tokens, size_t longest,
                           kt_forward_mode mode, struct kt_trial *trial);
/** A step of training whose last token is padding of the first sequence, which has all others. */
kt_status kt_trial_measure_padded(const struct kt_executor *executor, size_t tokens,
                                  struct kt_trial *trial);
void kt_trial_free(struct kt_trial *trial);

#endif
