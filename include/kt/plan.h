/* SPDX-License-Identifier: Apache-2.0 */
/** \file plan.h
 * What a step of an executor takes of each device, before it is run: the step itself, walked
 * without memory. */
#ifndef KT_PLAN_H
#define KT_PLAN_H

#include <kt/types.h>

KT_BEGIN_DECLS

#ifdef KT_EXPERIMENTAL
typedef struct kt_plan kt_plan;

typedef struct kt_plan_options {
    size_t size;         /**< sizeof(kt_plan_options), set by the init function */
    size_t num_tokens;   /**< of the step: 1 to INT32_MAX; 0, which the host must change */
    size_t max_sequence; /**< tokens of the longest sequence; 0 = all are one sequence */
    int32_t mode;        /**< a kt_forward_mode: KT_FORWARD_TRAIN. All but EVAL go backward too */
    uint64_t reserved[8];
} kt_plan_options;

/** Fills `options` with the defaults above. */
KT_API void kt_plan_options_init(kt_plan_options *options, size_t size);

/** Bytes and work of one device. "cpu" is the host: it has the adapter, the routed experts and the
 * memory by which other devices are reached, whether layers are computed on it or not. */
typedef struct kt_device_plan {
    size_t size;           /**< sizeof(kt_device_plan), set by the caller */
    const char *name;      /**< as rules spell it; lives as long as the plan */
    uint64_t weights;      /**< of the checkpoint, used by the device: mapped, not allocated */
    uint64_t supplied;     /**< weights that stay on the device, buffers that others travel through,
                              copies of norms and biases */
    uint64_t adapter;      /**< "cpu": LoRA weights, gradients and, unless EVAL, two AdamW
                              moments; others: their mirror of the first two */
    uint64_t layer_inputs; /**< kept between forward and backward; "cpu": those too that other
                              devices have no room for */
    uint64_t activations;  /**< one layer's, and others kept for backward (at most 768 MiB,
                                 so that beyond it more tokens can take a little less, and less
                                 still where a limit has a step done in pieces) */
    uint64_t scratch;      /**< of operations, and of experts */
    uint64_t feed;         /**< positions, offsets and targets */
    uint64_t total_allocated; /**< all but `weights` */
    double flops, bytes;      /**< additions and multiplications; bytes read and written */
    double seconds;           /**< ROUGH: of each operation flops or bytes, whichever takes longer
                                 at the rates that the device names, or its copies where these take
                                 longer in all. Compare plans by it; it is no promise, and leaves
                                 out what small steps spend in calls */
    uint64_t reserved[8];
} kt_device_plan;

/** A plan of a step. It keeps nothing of the executor. Errors: INVALID_ARGUMENT (0 tokens or more
 * than INT32_MAX, max_sequence above num_tokens, a mode), OUT_OF_MEMORY (a size overflows). */
KT_API kt_status kt_plan_create(const kt_executor *executor, const kt_plan_options *options,
                                kt_plan **out);
/** Frees a plan and the names that it told. */
KT_API void kt_plan_free(kt_plan *plan);

/** Devices of the executor, the host among them. */
KT_API size_t kt_plan_num_devices(const kt_plan *plan);
/** Tells device `index`. Errors: INVALID_ARGUMENT (there is none, a wrong size). */
KT_API kt_status kt_plan_get_device(const kt_plan *plan, size_t index, kt_device_plan *out);
/** Their sum, without a name. A weight that two devices use (tied embeddings) counts once. */
KT_API kt_status kt_plan_get_total(const kt_plan *plan, kt_device_plan *out);
#endif

KT_END_DECLS
#endif
