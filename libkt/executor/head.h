/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/head.h
 * Final norm, lm_head and the loss, over the tokens that need logits alone: those whose next token
 * in the same sequence has a label. Logits of a chunk of them exist at one time. The pass is at the
 * head's device; targets, dlogprobs and logprobs are in its feed. */
#ifndef KT_EXECUTOR_HEAD_H
#define KT_EXECUTOR_HEAD_H

#include <kt/batch.h>

#include "executor/pass.h"

/** Consecutive tokens that need logits. */
struct kt_target_run {
    int64_t begin, count;
};

/** "Row" counts those tokens; token t of a row predicts label t + 1. */
struct kt_targets {
    int64_t num_rows, num_runs, capacity;
    struct kt_target_run *runs; /**< [num_runs] */
    int32_t *ids;               /**< [num_rows] what each should predict */
};

/** Finds the rows of a batch; memory is kept for reuse. Errors: OUT_OF_MEMORY. */
kt_status kt_targets_find(kt_context *ctx, struct kt_targets *targets, const kt_batch *batch);
/** Every token a row, as a plan has to assume. Errors: OUT_OF_MEMORY. */
kt_status kt_targets_all(kt_context *ctx, struct kt_targets *targets, int64_t tokens);
void kt_targets_free(struct kt_targets *targets);

/** h [num_rows, hidden] = final norm of the rows of x [tokens, hidden] */
void kt_head_norm(struct kt_pass *pass, const struct kt_targets *targets, struct kt_view x,
                  struct kt_view h);
/** logprobs from h, `chunk` rows at a time. With `backward`, h becomes d(h) for dlogprobs, and the
 * gradients of lm_head's LoRA are added. Errors: CANCELLED. */
kt_status kt_head_loss(struct kt_pass *pass, const struct kt_targets *targets, int64_t chunk,
                       bool backward, struct kt_view h);
/** dx [tokens, hidden] from dh [num_rows, hidden]; 0 for tokens that are not rows. */
void kt_head_norm_backward(struct kt_pass *pass, const struct kt_targets *targets, struct kt_view x,
                           struct kt_view dh, struct kt_view dx);
/** logits [tokens, vocab] of all tokens of x [tokens, hidden], in memory of the host, after
 * kt_pass_finish. */
void kt_head_logits(struct kt_pass *pass, int64_t tokens, int64_t chunk, struct kt_view x,
                    float *logits);

#endif
