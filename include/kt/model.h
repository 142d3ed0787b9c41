/* SPDX-License-Identifier: Apache-2.0 */
/** \file model.h
 * A checkpoint folder in the Hugging Face layout (config.json, *.safetensors), or a whole model in
 * GGUF files, mapped read-only. Loading reads headers alone: weights are paged in as they are used
 * and never copied, but for those few that GGUF holds in another form (see kt_model_load).
 *
 * Supported architectures: DeepseekV2ForCausalLM (arXiv 2405.04434), DeepseekV3ForCausalLM
 * (2412.19437), Qwen2MoeForCausalLM and Qwen2ForCausalLM (2407.10671), Qwen3MoeForCausalLM and
 * Qwen3ForCausalLM (2505.09388), MixtralForCausalLM (2401.04088), LlamaForCausalLM (2407.21783),
 * MistralForCausalLM (2310.06825); rope_scaling of the kinds default, linear, dynamic, yarn
 * and llama3.
 * Weight dtypes: BF16, F16, F32; for matrices also F8_E4M3 with a scale for each block as in
 * DeepSeek-V3's released checkpoint, I8 with a scale for each row and I4 with a scale for each
 * group (docs/checkpoints.md), and in GGUF files Q8_0, Q4_0, Q4_K and Q6_K. A
 * multi-token-prediction layer is skipped.
 *
 * The files must not shrink while the model lives. Long work looks before each layer, and a file
 * that was truncated is IO; where pages go away in the middle of a layer, the system raises SIGBUS
 * in a thread of the context, which libkt leaves to the host.
 *
 * Immutable after loading. See kt.h for NULL, threads and lifetimes. */
#ifndef KT_MODEL_H
#define KT_MODEL_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_model_options {
    size_t size;          /**< sizeof(kt_model_options), set by the init function */
    int32_t check_finite; /**< look for NaN and infinity at load: 1 (default) = in all tensors that
                             are used if they are 1 GiB or less together, else in the small ones
                             (norms, biases, routers); 2 = in all; 0 = nowhere */
    uint64_t reserved[8];
} kt_model_options;

/** Fills `options` with the defaults above. */
KT_API void kt_model_options_init(kt_model_options *options, size_t size);

/** Opens the checkpoint in the folder `path`, or the GGUF model that `path` means: a file whose
 * name ends in .gguf (of a split model any of them), or a folder without safetensors that holds
 * one. Missing or truncated shards, wrong shapes and unsupported dtypes are found here, before
 * anything is computed.
 *
 * A GGUF model's tensors have the names and row-major shapes of Hugging Face's checkpoint, each
 * expert its own. A config.json beside the file comes before its metadata. Two kinds of tensors are
 * rebuilt in memory: attn_k_b with attn_v_b of DeepSeek models become one float32 matrix, and
 * queries and keys of the architecture "llama" get their rows in order.
 * Errors: NOT_FOUND, IO, FORMAT, MISMATCH (shape against config.json), UNSUPPORTED, NUMERIC,
 * INVALID_ARGUMENT (check_finite), CANCELLED. */
KT_API kt_status kt_model_load(kt_context *ctx, const char *path, const kt_model_options *options,
                               kt_model **out);
/** Lets go of a model; adapters and executors made with it keep it. */
KT_API void kt_model_free(kt_model *model);

/** Reads every weight that is used and names the first tensor with a NaN or an infinity (NUMERIC):
 * what to call when a loss is not finite. Also CANCELLED. */
KT_API kt_status kt_model_check_finite(kt_model *model);

typedef struct kt_model_info {
    size_t size;              /**< sizeof(kt_model_info), set by the caller */
    const char *architecture; /**< e.g. "DeepseekV3ForCausalLM"; owned by the model */
    const char *path;         /**< as given to kt_model_load */
    int32_t num_hidden_layers, num_dense_layers;
    int32_t hidden_size, vocab_size, num_attention_heads;
    int32_t n_routed_experts, num_experts_per_tok, n_shared_experts; /**< 0 in dense models */
    int32_t
        max_position_embeddings; /**< tokens of its context: dynamic rope_scaling stretches it */
    int32_t bos_token_id, eos_token_id; /**< -1 = not given in config.json */
    uint64_t num_parameters;            /**< all that are used (an MTP layer is not) */
    uint64_t
        num_active_parameters;  /**< that one token passes through (num_experts_per_tok experts) */
    uint64_t num_bytes;         /**< of their tensors in the checkpoint */
    uint64_t num_skipped_bytes; /**< of tensors that are knowingly not used (MTP layer) */
    uint64_t reserved[8];
} kt_model_info;

/** Tells what the model is. Errors: INVALID_ARGUMENT (a wrong size). */
KT_API kt_status kt_model_get_info(const kt_model *model, kt_model_info *info);

/** Tensors of the checkpoint, in the order of their names. Strings are owned by the model. U8 that
 * holds two elements of 4 bits is told as I4, with the shape in elements. */
typedef struct kt_tensor_info {
    size_t size; /**< sizeof(kt_tensor_info), set by the caller */
    const char *name, *file;
    int32_t dtype; /**< a kt_dtype */
    int32_t ndim;
    int64_t shape[8];
    uint64_t num_bytes;
    int32_t used; /**< 0 = skipped knowingly, 2 = scales of another tensor, no parameters */
    uint64_t reserved[4];
} kt_tensor_info;

/** Tensors of the checkpoint. */
KT_API size_t kt_model_num_tensors(const kt_model *model);
/** Tells tensor `index`. Errors: INVALID_ARGUMENT (there is none, a wrong size). */
KT_API kt_status kt_model_get_tensor(const kt_model *model, size_t index, kt_tensor_info *info);

/** Linear layers that LoRA can be attached to. */
KT_API size_t kt_model_num_linears(const kt_model *model);
/** The name of linear `index`; NULL where there is none. Names are module paths as in PEFT, such as
 * "model.layers.3.self_attn.kv_b_proj". */
KT_API const char *kt_model_linear_name(const kt_model *model, size_t index);

KT_END_DECLS
#endif
