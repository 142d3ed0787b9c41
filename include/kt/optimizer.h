/* SPDX-License-Identifier: Apache-2.0 */
/** \file optimizer.h
 * AdamW (arXiv 1711.05101) as torch.optim.AdamW computes it: decoupled decay, a step counter for
 * each tensor; a tensor without a gradient in a step is skipped whole. And the learning-rate
 * schedules of Hugging Face. */
#ifndef KT_OPTIMIZER_H
#define KT_OPTIMIZER_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_optimizer_options {
    size_t size;                  /**< sizeof(kt_optimizer_options), set by the init function */
    double beta1, beta2, epsilon; /**< 0.9, 0.999, 1e-8 */
    double weight_decay;          /**< 0 */
    double max_grad_norm;         /**< 1.0: global L2 norm to clip to; 0 = no clipping */
    uint64_t reserved[8];
} kt_optimizer_options;

/** Fills `options` with the defaults above. */
KT_API void kt_optimizer_options_init(kt_optimizer_options *options, size_t size);

/** An optimizer of an adapter, which it keeps. Errors: INVALID_ARGUMENT (an option out of range),
 * OUT_OF_MEMORY. */
KT_API kt_status kt_optimizer_create(kt_lora *lora, const kt_optimizer_options *options,
                                     kt_optimizer **out);
/** Frees an optimizer and its moments. */
KT_API void kt_optimizer_free(kt_optimizer *optimizer);

/** Clips, updates, clears the gradients. `grad_norm` (may be NULL): the norm before clipping, also
 * after NUMERIC; NaN after another error. Errors: NUMERIC when the norm is not finite,
 * INVALID_ARGUMENT for a negative or infinite learning rate; nothing is updated then. */
KT_API kt_status kt_optimizer_step(kt_optimizer *optimizer, double learning_rate,
                                   double *grad_norm);

/** Writes moments and counters to `file` (zstd), beside it and then renamed. Errors: IO. */
KT_API kt_status kt_optimizer_save(const kt_optimizer *optimizer, const char *file);
/** Reads them back bit for bit. Loading a state of another adapter is MISMATCH and changes nothing;
 * after any other error (NOT_FOUND, IO, FORMAT for a damaged file) the optimizer is as it was or as
 * new. */
KT_API kt_status kt_optimizer_load(kt_optimizer *optimizer, const char *file);

typedef struct kt_schedule {
    size_t size;          /**< sizeof(kt_schedule), set by the init function */
    const char *type;     /**< linear, cosine, constant, constant_with_warmup, cosine_with_restarts,
                               polynomial, inverse_sqrt, cosine_with_min_lr; "linear" */
    double learning_rate; /**< peak, 5e-5 */
    uint64_t warmup_steps; /**< 0; "constant" has none */
    uint64_t total_steps;
    double num_cycles; /**< 0 = the type's default: cosine 0.5, cosine_with_restarts 1 */
    double power;      /**< polynomial: 1.0 */
    double lr_end;     /**< polynomial, cosine_with_min_lr: 1e-7 */
    uint64_t reserved[8];
} kt_schedule;

/** Fills `schedule` with the defaults above. */
KT_API void kt_schedule_init(kt_schedule *schedule, size_t size);
/** Learning rate of optimizer step `step` (0-based). `schedule` NULL = defaults.
 * Errors: UNSUPPORTED for an unknown type (the sentence lists the known ones), INVALID_ARGUMENT (a
 * number that is negative or not finite, lr_end above learning_rate). */
KT_API kt_status kt_schedule_rate(kt_context *ctx, const kt_schedule *schedule, uint64_t step,
                                  double *learning_rate);

/** The order in which an epoch visits n examples: torch.randperm(n) of a CPU generator seeded with
 * `seed` (MT19937), which is what Hugging Face's seedable sampler draws with seed + epoch. Only the
 * low 32 bits of `seed` count, as there. `order` has room for n numbers (NULL is allowed for none).
 * Errors: UNSUPPORTED for n over 200 million. */
KT_API kt_status kt_random_permutation(kt_context *ctx, uint64_t seed, size_t n, int64_t *order);

KT_END_DECLS
#endif
