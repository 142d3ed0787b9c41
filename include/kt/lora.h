/* SPDX-License-Identifier: Apache-2.0 */
/** \file lora.h
 * A LoRA adapter (arXiv 2106.09685; rsLoRA 2312.03732): y = W x + scale * B (A dropout(x)), with
 * scale = alpha / rank or alpha / sqrt(rank). A [rank, in_features] is Kaiming-uniform (a = sqrt
 * 5), B [out_features, rank] zero. Master weights and gradients are float32.
 *
 * An adapter keeps its model. The addresses of its matrices and gradients (kt_lora_tensor.data and
 * .grad) do not change as long as it lives. Several executors and one or more optimizers may share
 * it. See kt.h for NULL, threads and lifetimes. */
#ifndef KT_LORA_H
#define KT_LORA_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_lora_options {
    size_t size;            /**< sizeof(kt_lora_options), set by the init function */
    int32_t rank;           /**< 8 */
    float alpha;            /**< 0 = 2 x rank */
    float dropout;          /**< probability in [0, 1); 0 */
    int32_t use_rslora;     /**< 0 */
    const char *target;     /**< "all" (default), or a comma-separated list of module paths or their
                                 last components ("q_a_proj,mlp.experts.3.up_proj,lm_head"); each takes
                                 every linear whose path ends with it. "all" = every attention,
                                 dense-MLP and shared-expert linear */
    int32_t target_experts; /**< 1 = "all" includes the routed experts too */
    uint64_t seed;          /**< of A's initial values and of dropout; 42 */
    uint64_t reserved[8];
} kt_lora_options;

/** Fills `options` with the defaults above. */
KT_API void kt_lora_options_init(kt_lora_options *options, size_t size);

/** A new adapter. Errors: NOT_FOUND when `target` matches nothing (the sentence lists what exists),
 * INVALID_ARGUMENT for options out of range. An entry of `target` that matches nothing while others
 * do is a warning in the log. */
KT_API kt_status kt_lora_create(kt_model *model, const kt_lora_options *options, kt_lora **out);

/** Reads a PEFT folder (adapter_config.json, adapter_model.safetensors of BF16, F16 or F32).
 * Exactly its tensors are attached, and what kt_lora_save wrote comes back bit for bit. Errors:
 * NOT_FOUND, IO, FORMAT for the files, NUMERIC for a value that is not finite, MISMATCH when it
 * belongs to another model (names the tensor and both shapes), UNSUPPORTED for a PEFT feature that
 * changes the mathematics (DoRA, biases, modules_to_save ...). */
KT_API kt_status kt_lora_load(kt_model *model, const char *path, kt_lora **out);

/** Writes adapter_config.json and adapter_model.safetensors into the existing or new folder `path`,
 * each beside its target and then renamed. PEFT 0.17 loads the result. Errors: IO. */
KT_API kt_status kt_lora_save(const kt_lora *lora, const char *path);
/** Lets go of an adapter; executors and optimizers made with it keep it. */
KT_API void kt_lora_free(kt_lora *lora);

/** One LoRA matrix. */
typedef struct kt_lora_tensor {
    size_t size;        /**< sizeof(kt_lora_tensor), set by the caller */
    const char *name;   /**< as in PEFT's file: "base_model.model.model.layers.0...lora_A.weight" */
    int64_t rows, cols; /**< A: [rank, in_features], B: [out_features, rank] */
    float *data;        /**< rows x cols, row-major; may be read and written between calls. After
                             writing, kt_lora_touch */
    float *grad;        /**< same shape; accumulated by kt_executor_backward. May be written: see
                             kt_lora_set_grad_state */
    int32_t has_grad;   /**< 0 = no token reached it since the gradients were last cleared */
    uint64_t reserved[4];
} kt_lora_tensor;

/** Matrices of the adapter: two for each linear, A and then B. */
KT_API size_t kt_lora_num_tensors(const kt_lora *lora);
/** Tells matrix `index`. Errors: INVALID_ARGUMENT (there is none, a wrong size). */
KT_API kt_status kt_lora_get_tensor(const kt_lora *lora, size_t index, kt_lora_tensor *out);
/** Numbers in all matrices together. */
KT_API uint64_t kt_lora_num_parameters(const kt_lora *lora);
/** Clears all gradients and has_grad marks. */
KT_API kt_status kt_lora_zero_grad(kt_lora *lora);
/** Sets has_grad of matrix `index` and of the other of its linear: 1 after gradients were written
 * by the host (added up over machines, say), so that the optimizer steps them; 0 clears both
 * gradients. Errors: INVALID_ARGUMENT (no such matrix, a state that is neither 0 nor 1). */
KT_API kt_status kt_lora_set_grad_state(kt_lora *lora, size_t index, int32_t state);
/** Says that matrices were written through kt_lora_tensor.data: what was computed from the old
 * values and kept, such as a generator's cache, is not used again. kt_optimizer_step says so
 * itself.
 */
KT_API kt_status kt_lora_touch(kt_lora *lora);
/** Sets the seed of dropout, which a loaded adapter's file does not hold; 42 after loading. */
KT_API kt_status kt_lora_set_seed(kt_lora *lora, uint64_t seed);

KT_END_DECLS
#endif
