/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/model.h
 * A loaded model: its configuration in terms that every architecture shares, and its weights bound
 * to places. The executor reads this and never an architecture's name. */
#ifndef KT_MODEL_MODEL_H
#define KT_MODEL_MODEL_H

#include <jansson.h>
#include <kt/model.h>

#include "backend/device.h"
#include "core/handle.h"

enum kt_attention_kind { KT_ATTENTION_MLA, KT_ATTENTION_GQA };

enum kt_rope_kind {
    KT_ROPE_DEFAULT,
    KT_ROPE_LINEAR, /**< positions divided by factor */
    KT_ROPE_YARN,   /**< arXiv 2309.00071 */
    KT_ROPE_LLAMA3, /**< low frequencies divided by factor, arXiv 2407.21783 */
    KT_ROPE_DYNAMIC /**< theta grows with the length of a sequence ("dynamic NTK") */
};

struct kt_rope_config {
    enum kt_rope_kind kind;
    bool interleaved;
    int32_t dim;
    double theta;
    double factor;                                       /**< of all kinds but the default */
    double beta_fast, beta_slow, mscale, mscale_all_dim; /**< YaRN */
    double low_freq_factor, high_freq_factor;            /**< Llama 3 */
    double attention_factor;                             /**< multiplies cos and sin */
    int32_t original_max_position_embeddings;            /**< DYNAMIC: theta grows beyond it */
    bool truncate; /**< YaRN's correction range is rounded to whole dimensions */
};

enum { KT_MAX_LAYERS = 4096 };

/** What config.json says of quantised tensors; see model/quantization.h. */
struct kt_quantization {
    int32_t block_rows, block_cols; /**< F8_E4M3: elements that share a scale; 0 = none are F8 */
    bool int8;                      /**< I8 with a scale for each row */
    int32_t group_size;             /**< I4: elements of a row that share a scale; 0 = none */
};

/** What a layer has, as far as layers of one model differ. */
enum {
    KT_LAYER_MOE = 1u << 0,
    KT_LAYER_WINDOW = 1u << 1 /**< its attention sees sliding_window tokens */
};

struct kt_model_config {
    const struct kt_architecture *architecture;
    int32_t vocab_size, hidden_size, num_hidden_layers, max_position_embeddings;
    int32_t bos_token_id, eos_token_id; /**< -1 = none */
    float rms_norm_eps;
    float
        latent_norm_eps; /**< of q_a_layernorm and kv_a_layernorm: DeepSeek's code fixes it, 1e-6 */
    bool tie_word_embeddings;
    enum kt_activation activation;

    enum kt_attention_kind attention;
    int32_t num_attention_heads, num_key_value_heads;
    int32_t q_lora_rank; /**< 0 = no query compression */
    int32_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    int32_t head_dim;       /**< of queries, keys and values in grouped-query attention */
    int32_t sliding_window; /**< tokens that a query sees, itself included */
    bool attention_bias;
    float softmax_scale;
    struct kt_rope_config rope;

    int32_t intermediate_size, moe_intermediate_size;
    bool mlp_bias;
    int32_t n_routed_experts, n_shared_experts;
    int32_t shared_intermediate_size; /**< of all shared experts together */
    uint8_t layers[KT_MAX_LAYERS];    /**< KT_LAYER_* bits */
    int32_t num_nextn_predict_layers; /**< layers behind the last that are not used (arXiv
                                         2412.19437) */
    bool router_correction_bias; /**< layers have one; router.correction_bias itself is NULL here */
    struct kt_router router;
    struct kt_quantization quantization;
};

/** What a model does with a tensor of its checkpoint. */
enum kt_tensor_use {
    KT_TENSOR_SKIPPED,
    KT_TENSOR_WEIGHT,
    KT_TENSOR_SCALES /**< of another tensor */
};

/** A linear layer that LoRA can be attached to. */
enum kt_linear_role {
    KT_ROLE_ATTENTION,
    KT_ROLE_DENSE_MLP,
    KT_ROLE_SHARED_EXPERT,
    KT_ROLE_ROUTED_EXPERT,
    KT_ROLE_ROUTER,      /**< multiplied in float32 whatever the others compute in */
    KT_ROLE_SHARED_GATE, /**< its sigmoid weighs the shared expert */
    KT_ROLE_HEAD
};

struct kt_linear {
    char *name; /**< module path, "model.layers.0.self_attn.q_a_proj" */
    enum kt_linear_role role;
    int32_t index; /**< into kt_model.linears and kt_adapter.slots */
    struct kt_weight weight;
    float *bias; /**< [rows] or NULL, widened at load */
};

struct kt_mlp {
    struct kt_linear *gate, *up, *down;
    int64_t intermediate_size;
};

struct kt_layer {
    float *input_norm, *post_attention_norm; /**< [hidden_size], widened at load */
    /* multi-head latent attention */
    struct kt_linear *q_proj;    /**< without query compression */
    struct kt_linear *q_a, *q_b; /**< with it */
    float *q_a_norm, *kv_a_norm;
    struct kt_linear *kv_a, *kv_b;
    /* grouped-query attention: with q_proj and */
    struct kt_linear *k_proj, *v_proj;
    float *q_norm, *k_norm; /**< [head_dim], of each head; NULL = none */
    int32_t window;         /**< keys a query sees, itself included; 0 = all */
    /* any attention */
    struct kt_linear *o;
    /* feed-forward */
    bool is_moe;
    struct kt_mlp mlp; /**< dense, or the shared experts (as one wide MLP); gate NULL = none */
    struct kt_weight router;         /**< [n_routed_experts, hidden_size] */
    struct kt_linear *router_linear; /**< the same where LoRA can attach to it, or NULL */
    struct kt_linear *shared_gate;   /**< [1, hidden_size], or NULL: shared experts count whole */
    float *correction_bias;
    struct kt_linear *experts[3];        /**< gate, up, down: arrays of n_routed_experts linears */
    struct kt_weight *expert_weights[3]; /**< the same weights as the experts backend takes them */
};

struct kt_model {
    KT_HANDLE;
    char *path;
    struct kt_model_config config;
    struct kt_layer *layers; /**< [num_hidden_layers] */
    struct kt_weight embed_tokens;
    struct kt_linear *lm_head;
    float *final_norm;
    struct kt_linear *linears; /**< [num_linears], every linear of the model */
    int32_t num_linears;
    struct kt_weight *expert_weights; /**< what kt_layer.expert_weights point into */
    float *vectors;                   /**< what norms, biases and widened scales point into */
    uint64_t num_vectors;             /**< floats in it */
    struct kt_checkpoint *checkpoint; /**< formats/: mapped shards */
    uint8_t *used;                    /**< [checkpoint->num_tensors] enum kt_tensor_use */
    uint64_t num_parameters, num_active_parameters, num_bytes, num_skipped_bytes;
};

struct kt_json;
struct kt_binding;

/** One architecture: how to read its config.json and where its tensors are. */
struct kt_architecture {
    const char *name;       /**< in config.json's "architectures" */
    const char *model_type; /**< in config.json's "model_type" */
    /** Fills what kt_config_read has not: everything that differs between architectures. Every size
     * is checked against a range. Errors: NOT_FOUND, FORMAT, UNSUPPORTED, naming the key. */
    kt_status (*configure)(const struct kt_json *json, struct kt_model_config *config);
    const struct kt_binding *model_bindings; /**< see model/binding.h; places in kt_model */
    const struct kt_binding *layer_bindings; /**< places in kt_layer */
    const char *const *dim_keys; /**< [KT_DIMS] keys of config.json for errors, where they are not
                                    the usual ones (dimensions.c); NULL = all are */
    const char *const
        *ignored; /**< names (%l = any layer) of tensors that are knowingly not used */
};

/** NULL-terminated table. */
extern const struct kt_architecture *const kt_architectures[];

/** Reads config.json: the keys that all architectures share, then the architecture's own.
 * Errors: NOT_FOUND, IO, FORMAT, UNSUPPORTED (the architecture: lists those there are). */
kt_status kt_config_read(kt_context *ctx, const char *path, struct kt_model_config *config);
/** The same for an object that is in memory; `path` names it in errors. */
kt_status kt_config_read_object(kt_context *ctx, const char *path, const json_t *object,
                                struct kt_model_config *config);
/** Reads rope_theta with rope_scaling (or rope_parameters, its newer form) for `dim` rotated
 * features. Errors: as configure's; UNSUPPORTED for a kind of scaling that is not known. */
kt_status kt_config_read_rope(const struct kt_json *json, int32_t dim,
                              struct kt_model_config *config);
/** kt_json_int with a range, into an int32_t. */
kt_status kt_config_int(const struct kt_json *json, const char *key, bool required, int64_t low,
                        int64_t high, int32_t *value);
/** The factor that YaRN multiplies attention with at this scale: 0.1 * mscale * ln(scale) + 1. */
double kt_yarn_mscale(double scale, double mscale);
bool kt_config_is_moe(const struct kt_model_config *config, int32_t layer);

/** Inverse frequencies [dim / 2] and attention factor applied: cos, sin [count, dim / 2] of the
 * positions from `first` on, in a sequence of `length` tokens (which DYNAMIC alone looks at). */
void kt_rope_tables(const struct kt_rope_config *rope, int64_t length, int32_t first, int32_t count,
                    float *cos, float *sin);

/** Whether a sequence of `length` tokens is rotated by the same frequencies as one of any other
 * length for which this is so: always but for DYNAMIC. */
bool kt_rope_is_plain(const struct kt_rope_config *rope, int64_t length);

/** Tokens that the model can hold: max_position_embeddings, which DYNAMIC stretches by its factor.
 */
int32_t kt_config_context(const struct kt_model_config *config);

#endif
