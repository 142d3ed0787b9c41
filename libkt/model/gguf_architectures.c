/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "model/gguf_builder.h"

/* DeepSeek's queries and keys: a part that is rotated and one that is not. Files from before the
 * keys "_mla" have the sizes of both in key_length and value_length. */
static kt_status build_latent_attention(const struct kt_gguf_builder *b)
{
    static const char *const keys[][2] = {{"attention.head_count", "num_key_value_heads"},
                                          {"attention.kv_lora_rank", "kv_lora_rank"},
                                          {"rope.dimension_count", "qk_rope_head_dim"},
                                          {NULL, NULL}};
    int mla = kt_gguf_has(b, "attention.key_length_mla");
    int64_t key = 0, rotated = 0;
    KT_TRY(kt_gguf_copy_required(b, keys));
    KT_TRY(kt_gguf_copy(b, "attention.q_lora_rank", KT_JSON_OPTIONAL, "q_lora_rank"));
    KT_TRY(kt_gguf_get(b, mla ? "attention.key_length_mla" : "attention.key_length",
                       KT_JSON_REQUIRED, &key));
    KT_TRY(kt_gguf_get(b, "rope.dimension_count", KT_JSON_REQUIRED, &rotated));
    KT_TRY(kt_gguf_put(b, "qk_nope_head_dim", json_integer(key - rotated)));
    KT_TRY(kt_gguf_copy(b, mla ? "attention.value_length_mla" : "attention.value_length",
                        KT_JSON_REQUIRED, "v_head_dim"));
    return kt_gguf_put(b, "attention_bias",
                       json_boolean(kt_gguf_find(b->gguf, "blk.0.attn_kv_a_mqa.bias")));
}

static kt_status build_groups(const struct kt_gguf_builder *b, bool sigmoid)
{
    int64_t groups = 1;
    if (!kt_gguf_has(b, "expert_group_count"))
        kt_log(b->json.ctx, KT_LOG_WARNING,
               "%s: \"%s.expert_group_count\" is missing, so experts are chosen without groups; if "
               "the model has some, put its config.json beside the file",
               b->json.path, b->architecture);
    KT_TRY(kt_gguf_get(b, "expert_group_count", KT_JSON_OPTIONAL, &groups));
    KT_TRY(kt_gguf_put(b, "n_group", json_integer(groups)));
    KT_TRY(kt_gguf_put(b, "topk_group", json_integer(groups)));
    KT_TRY(kt_gguf_copy(b, "expert_group_used_count", KT_JSON_OPTIONAL, "topk_group"));
    return kt_gguf_put(b, "topk_method",
                       json_string(sigmoid      ? "noaux_tc"
                                   : groups > 1 ? "group_limited_greedy"
                                                : "greedy"));
}

static kt_status build_deepseek2(const struct kt_gguf_builder *b)
{
    static const char *const keys[][2] = {{"leading_dense_block_count", "first_k_dense_replace"},
                                          {"expert_count", "n_routed_experts"},
                                          {"expert_used_count", "num_experts_per_tok"},
                                          {"expert_feed_forward_length", "moe_intermediate_size"},
                                          {NULL, NULL}};
    char text[KT_GGUF_KEY_BYTES];
    int64_t gating = 1;
    bool normalize = false;
    KT_TRY(build_latent_attention(b));
    KT_TRY(kt_gguf_copy_required(b, keys));
    KT_TRY(kt_gguf_copy(b, "expert_shared_count", KT_JSON_OPTIONAL, "n_shared_experts"));
    KT_TRY(kt_gguf_put(b, "routed_scaling_factor", json_real(1)));
    KT_TRY(kt_gguf_copy_real(b, "expert_weights_scale", b->config, "routed_scaling_factor"));
    KT_TRY(kt_json_bool(&b->json, kt_gguf_full_key(b, "expert_weights_norm", text),
                        KT_JSON_OPTIONAL, &normalize));
    KT_TRY(kt_gguf_put(b, "norm_topk_prob", json_boolean(normalize)));
    KT_TRY(kt_gguf_get(b, "expert_gating_func", KT_JSON_OPTIONAL, &gating));
    if (gating != 1 && gating != 2)
        return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s.expert_gating_func\" is %lld; softmax (1) and sigmoid (2) are "
                       "supported",
                       b->json.path, b->architecture, (long long)gating);
    KT_TRY(kt_gguf_put(b, "scoring_func", json_string(gating == 2 ? "sigmoid" : "softmax")));
    KT_TRY(kt_gguf_put(b, "model_type", json_string(gating == 2 ? "deepseek_v3" : "deepseek_v2")));
    return build_groups(b, gating == 2);
}

/* Heads whose whole length is rotated. */
static kt_status build_grouped_attention(const struct kt_gguf_builder *b)
{
    int64_t hidden = 0, heads = 0, length, value, rotated;
    KT_TRY(kt_gguf_copy(b, "attention.head_count_kv", KT_JSON_OPTIONAL, "num_key_value_heads"));
    KT_TRY(kt_gguf_get(b, "embedding_length", KT_JSON_REQUIRED, &hidden));
    KT_TRY(kt_gguf_get(b, "attention.head_count", KT_JSON_REQUIRED, &heads));
    length = heads > 0 ? hidden / heads : 0;
    KT_TRY(kt_gguf_get(b, "attention.key_length", KT_JSON_OPTIONAL, &length));
    value = rotated = length;
    KT_TRY(kt_gguf_get(b, "attention.value_length", KT_JSON_OPTIONAL, &value));
    KT_TRY(kt_gguf_get(b, "rope.dimension_count", KT_JSON_OPTIONAL, &rotated));
    if (value != length || rotated != length)
        return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: keys of %lld features, values of %lld and rotation of %lld are not "
                       "supported; all three must be equal",
                       b->json.path, (long long)length, (long long)value, (long long)rotated);
    KT_TRY(kt_gguf_put(b, "head_dim", json_integer(length)));
    bool bias = kt_gguf_find(b->gguf, "blk.0.attn_q.bias") != NULL;
    KT_TRY(kt_gguf_put(b, "attention_bias", json_boolean(bias)));
    return kt_gguf_put(b, "qkv_bias", json_boolean(bias));
}

static kt_status build_qwen_moe(const struct kt_gguf_builder *b, const char *type, bool normalize)
{
    static const char *const keys[][2] = {{"expert_count", "num_experts"},
                                          {"expert_used_count", "num_experts_per_tok"},
                                          {"expert_feed_forward_length", "moe_intermediate_size"},
                                          {NULL, NULL}};
    KT_TRY(kt_gguf_put(b, "model_type", json_string(type)));
    KT_TRY(build_grouped_attention(b));
    KT_TRY(kt_gguf_copy_required(b, keys));
    return kt_gguf_put(b, "norm_topk_prob", json_boolean(normalize));
}

/* The files do not say whether the weights of the chosen experts are normalised; the released
 * models of each architecture agree in it. */
static kt_status build_qwen2moe(const struct kt_gguf_builder *b)
{
    KT_TRY(kt_gguf_copy(b, "expert_shared_feed_forward_length", KT_JSON_REQUIRED,
                        "shared_expert_intermediate_size"));
    return build_qwen_moe(b, "qwen2_moe", false);
}

static kt_status build_qwen3moe(const struct kt_gguf_builder *b)
{
    return build_qwen_moe(b, "qwen3_moe", true);
}

static kt_status build_qwen2(const struct kt_gguf_builder *b)
{
    KT_TRY(kt_gguf_put(b, "model_type", json_string("qwen2")));
    return build_grouped_attention(b);
}

static kt_status build_qwen3(const struct kt_gguf_builder *b)
{
    KT_TRY(kt_gguf_put(b, "model_type", json_string("qwen3")));
    return build_grouped_attention(b);
}

/* Llama, Mistral without a window, and Mixtral. The factors of Llama 3's rotary frequencies are in
 * the file, but not the numbers that they were made from. */
static kt_status build_llama(const struct kt_gguf_builder *b)
{
    int64_t experts = 0;
    if (kt_gguf_find(b->gguf, "rope_freqs.weight"))
        return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: tensor rope_freqs.weight comes from rope_scaling of a kind that the "
                       "file does not tell; put the model's config.json beside it",
                       b->json.path);
    KT_TRY(build_grouped_attention(b));
    KT_TRY(kt_gguf_put(b, "mlp_bias", json_boolean(kt_gguf_find(b->gguf, "blk.0.ffn_gate.bias"))));
    KT_TRY(kt_gguf_get(b, "expert_count", KT_JSON_OPTIONAL, &experts));
    if (!experts)
        return kt_gguf_put(b, "model_type", json_string("llama"));
    KT_TRY(kt_gguf_put(b, "model_type", json_string("mixtral")));
    KT_TRY(kt_gguf_put(b, "num_local_experts", json_integer(experts)));
    return kt_gguf_copy(b, "expert_used_count", KT_JSON_REQUIRED, "num_experts_per_tok");
}

const struct kt_gguf_architecture kt_gguf_architectures[] = {
    {"deepseek2", build_deepseek2},
    {"qwen2moe", build_qwen2moe},
    {"qwen3moe", build_qwen3moe},
    {"qwen2", build_qwen2},
    {"qwen3", build_qwen3},
    {"llama", build_llama},
    {NULL, NULL},
};
