/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "model/gguf.h"

enum { KEY_BYTES = 128, MAX_NUMBER = 1 << 30 };

struct builder {
    const struct kt_gguf *gguf;
    struct kt_json metadata;
    const char *architecture; /* general.architecture, the prefix of its keys */
    json_t *config;
};

static kt_status put(const struct builder *b, const char *name, json_t *value)
{
    return json_object_set_new(b->config, name, value) == 0
               ? KT_OK
               : kt_fail_memory(b->metadata.ctx, 0, "a configuration");
}

static const char *full_key(const struct builder *b, const char *key, char text[KEY_BYTES])
{
    snprintf(text, KEY_BYTES, "%s.%s", b->architecture, key);
    return text;
}

static bool has(const struct builder *b, const char *key)
{
    char text[KEY_BYTES];
    json_t *value = json_object_get(b->metadata.object, full_key(b, key, text));
    return value && !json_is_null(value);
}

/* Some numbers may be given for each layer; libkt wants layers alike. */
static kt_status same_for_layers(const struct builder *b, const char *key, const json_t *list,
                                 int64_t *value)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (!json_is_integer(item) || !json_equal(item, json_array_get(list, 0)))
            return kt_fail(b->metadata.ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"%s\" differs between layers, which is not supported",
                           b->metadata.path, key);
    }
    *value = json_integer_value(json_array_get(list, 0));
    return KT_OK;
}

static kt_status get(const struct builder *b, const char *key, enum kt_json_need need,
                     int64_t *value)
{
    char text[KEY_BYTES];
    const json_t *found = json_object_get(b->metadata.object, full_key(b, key, text));
    if (json_array_size(found))
        return same_for_layers(b, text, found, value);
    return kt_json_int(&b->metadata, text, need, 0, MAX_NUMBER, value);
}

/* config[name] = metadata[key], an integer. */
static kt_status copy(const struct builder *b, const char *key, enum kt_json_need need,
                      const char *name)
{
    int64_t value = -1;
    KT_TRY(get(b, key, need, &value));
    return value < 0 ? KT_OK : put(b, name, json_integer(value));
}

static kt_status copy_required(const struct builder *b, const char *const pairs[][2])
{
    for (; (*pairs)[0]; pairs++)
        KT_TRY(copy(b, (*pairs)[0], KT_JSON_REQUIRED, (*pairs)[1]));
    return KT_OK;
}

static kt_status copy_real(const struct builder *b, const char *key, json_t *to, const char *name)
{
    char text[KEY_BYTES];
    double value;
    if (!has(b, key))
        return KT_OK;
    KT_TRY(kt_json_real(&b->metadata, full_key(b, key, text), KT_JSON_REQUIRED, &value));
    return json_object_set_new(to, name, json_real(value)) == 0
               ? KT_OK
               : kt_fail_memory(b->metadata.ctx, 0, "a configuration");
}

/* Settings of llama.cpp that nothing here computes; 0 and 1 turn them off. */
static kt_status refuse_settings(const struct builder *b)
{
    static const char *const keys[] = {"attention.sliding_window",
                                       "attention.temperature_scale",
                                       "attn_logit_softcapping",
                                       "final_logit_softcapping",
                                       "logit_scale",
                                       "rope.scale_linear",
                                       "rope.scaling.attn_factor",
                                       "rope.scaling.yarn_ext_factor"};
    char text[KEY_BYTES];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double value = 0;
        KT_TRY(kt_json_real(&b->metadata, full_key(b, keys[i], text), KT_JSON_OPTIONAL, &value));
        if (value != 0 && value != 1)
            return kt_fail(b->metadata.ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"%s\" is %g, and what it asks for is not supported; if the model "
                           "does without, put its config.json beside the file",
                           b->metadata.path, text, value);
    }
    return KT_OK;
}

/* YaRN's mscale and mscale_all_dim, which are equal in released models, stand in the file as a
 * tenth: the factor before the logarithm. The shortest decimal of float32 undoes that exactly. */
static kt_status put_mscale(const struct builder *b, json_t *scaling)
{
    char text[KEY_BYTES];
    double tenth = 0;
    KT_TRY(kt_json_real(&b->metadata, full_key(b, "rope.scaling.yarn_log_multiplier", text),
                        KT_JSON_OPTIONAL, &tenth));
    if (tenth == 0)
        return KT_OK;
    snprintf(text, sizeof text, "%.7g", tenth * 10);
    double mscale = strtod(text, NULL);
    if (json_object_set_new(scaling, "mscale", json_real(mscale)) == 0 &&
        json_object_set_new(scaling, "mscale_all_dim", json_real(mscale)) == 0)
        return KT_OK;
    return kt_fail_memory(b->metadata.ctx, 0, "a configuration");
}

static kt_status fill_scaling(const struct builder *b, const char *type, json_t *scaling)
{
    int64_t original = -1;
    if (json_object_set_new(scaling, "rope_type", json_string(type)) != 0)
        return kt_fail_memory(b->metadata.ctx, 0, "a configuration");
    KT_TRY(copy_real(b, "rope.scaling.factor", scaling, "factor"));
    if (strcmp(type, "yarn") != 0)
        return KT_OK;
    KT_TRY(copy_real(b, "rope.scaling.yarn_beta_fast", scaling, "beta_fast"));
    KT_TRY(copy_real(b, "rope.scaling.yarn_beta_slow", scaling, "beta_slow"));
    KT_TRY(copy_real(b, "rope.scaling.yarn_attn_factor", scaling, "attention_factor"));
    KT_TRY(get(b, "rope.scaling.original_context_length", KT_JSON_REQUIRED, &original));
    if (json_object_set_new(scaling, "original_max_position_embeddings", json_integer(original)))
        return kt_fail_memory(b->metadata.ctx, 0, "a configuration");
    return put_mscale(b, scaling);
}

static kt_status build_rope(const struct builder *b)
{
    char text[KEY_BYTES];
    const char *type = "none";
    KT_TRY(copy_real(b, "rope.freq_base", b->config, "rope_theta"));
    KT_TRY(kt_json_string(&b->metadata, full_key(b, "rope.scaling.type", text), KT_JSON_OPTIONAL,
                          &type));
    if (strcmp(type, "none") == 0)
        return KT_OK;
    if (strcmp(type, "linear") != 0 && strcmp(type, "yarn") != 0)
        return kt_fail(b->metadata.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s\" is \"%s\"; none, linear and yarn are supported",
                       b->metadata.path, text, type);
    json_t *scaling = json_object();
    KT_TRY(put(b, "rope_scaling", scaling));
    return fill_scaling(b, type, scaling);
}

static kt_status build_vocabulary(const struct builder *b)
{
    static const char *const ids[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                         {"tokenizer.ggml.eos_token_id", "eos_token_id"}};
    const struct kt_tensor *table = kt_gguf_find(b->gguf, "token_embd.weight");
    int64_t size = table && table->ndim == 2 ? table->shape[0] : 0;
    KT_TRY(get(b, "vocab_size", KT_JSON_OPTIONAL, &size));
    KT_TRY(put(b, "vocab_size", json_integer(size)));
    for (int i = 0; i < 2; i++) {
        int64_t id = -1;
        KT_TRY(kt_json_int(&b->metadata, ids[i][0], KT_JSON_OPTIONAL, 0, MAX_NUMBER, &id));
        if (id >= 0)
            KT_TRY(put(b, ids[i][1], json_integer(id)));
    }
    return put(b, "tie_word_embeddings", json_boolean(!kt_gguf_find(b->gguf, "output.weight")));
}

static kt_status build_common(const struct builder *b)
{
    static const char *const keys[][2] = {{"embedding_length", "hidden_size"},
                                          {"feed_forward_length", "intermediate_size"},
                                          {"attention.head_count", "num_attention_heads"},
                                          {"context_length", "max_position_embeddings"},
                                          {NULL, NULL}};
    int64_t blocks = 0, nextn = 0;
    KT_TRY(refuse_settings(b));
    KT_TRY(get(b, "block_count", KT_JSON_REQUIRED, &blocks));
    KT_TRY(get(b, "nextn_predict_layers", KT_JSON_OPTIONAL, &nextn));
    KT_TRY(put(b, "num_hidden_layers", json_integer(blocks - nextn)));
    KT_TRY(put(b, "num_nextn_predict_layers", json_integer(nextn)));
    KT_TRY(copy_required(b, keys));
    KT_TRY(copy_real(b, "attention.layer_norm_rms_epsilon", b->config, "rms_norm_eps"));
    KT_TRY(build_rope(b));
    return build_vocabulary(b);
}

/* DeepSeek's queries and keys: a part that is rotated and one that is not. Files from before the
 * keys "_mla" have the sizes of both in key_length and value_length. */
static kt_status build_latent_attention(const struct builder *b)
{
    static const char *const keys[][2] = {{"attention.head_count", "num_key_value_heads"},
                                          {"attention.kv_lora_rank", "kv_lora_rank"},
                                          {"rope.dimension_count", "qk_rope_head_dim"},
                                          {NULL, NULL}};
    int mla = has(b, "attention.key_length_mla");
    int64_t key = 0, rotated = 0;
    KT_TRY(copy_required(b, keys));
    KT_TRY(copy(b, "attention.q_lora_rank", KT_JSON_OPTIONAL, "q_lora_rank"));
    KT_TRY(
        get(b, mla ? "attention.key_length_mla" : "attention.key_length", KT_JSON_REQUIRED, &key));
    KT_TRY(get(b, "rope.dimension_count", KT_JSON_REQUIRED, &rotated));
    KT_TRY(put(b, "qk_nope_head_dim", json_integer(key - rotated)));
    KT_TRY(copy(b, mla ? "attention.value_length_mla" : "attention.value_length", KT_JSON_REQUIRED,
                "v_head_dim"));
    return put(b, "attention_bias",
               json_boolean(kt_gguf_find(b->gguf, "blk.0.attn_kv_a_mqa.bias")));
}

static kt_status build_groups(const struct builder *b, int sigmoid)
{
    int64_t groups = 1;
    if (!has(b, "expert_group_count"))
        kt_log(b->metadata.ctx, KT_LOG_WARNING,
               "%s: \"%s.expert_group_count\" is missing, so experts are chosen without groups; if "
               "the model has some, put its config.json beside the file",
               b->metadata.path, b->architecture);
    KT_TRY(get(b, "expert_group_count", KT_JSON_OPTIONAL, &groups));
    KT_TRY(put(b, "n_group", json_integer(groups)));
    KT_TRY(put(b, "topk_group", json_integer(groups)));
    KT_TRY(copy(b, "expert_group_used_count", KT_JSON_OPTIONAL, "topk_group"));
    return put(b, "topk_method",
               json_string(sigmoid      ? "noaux_tc"
                           : groups > 1 ? "group_limited_greedy"
                                        : "greedy"));
}

static kt_status build_deepseek2(const struct builder *b)
{
    static const char *const keys[][2] = {{"leading_dense_block_count", "first_k_dense_replace"},
                                          {"expert_count", "n_routed_experts"},
                                          {"expert_used_count", "num_experts_per_tok"},
                                          {"expert_feed_forward_length", "moe_intermediate_size"},
                                          {NULL, NULL}};
    char text[KEY_BYTES];
    int64_t gating = 1;
    bool normalize = false;
    KT_TRY(build_latent_attention(b));
    KT_TRY(copy_required(b, keys));
    KT_TRY(copy(b, "expert_shared_count", KT_JSON_OPTIONAL, "n_shared_experts"));
    KT_TRY(put(b, "routed_scaling_factor", json_real(1)));
    KT_TRY(copy_real(b, "expert_weights_scale", b->config, "routed_scaling_factor"));
    KT_TRY(kt_json_bool(&b->metadata, full_key(b, "expert_weights_norm", text), KT_JSON_OPTIONAL,
                        &normalize));
    KT_TRY(put(b, "norm_topk_prob", json_boolean(normalize)));
    KT_TRY(get(b, "expert_gating_func", KT_JSON_OPTIONAL, &gating));
    if (gating != 1 && gating != 2)
        return kt_fail(b->metadata.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s.expert_gating_func\" is %lld; softmax (1) and sigmoid (2) are "
                       "supported",
                       b->metadata.path, b->architecture, (long long)gating);
    KT_TRY(put(b, "scoring_func", json_string(gating == 2 ? "sigmoid" : "softmax")));
    KT_TRY(put(b, "model_type", json_string(gating == 2 ? "deepseek_v3" : "deepseek_v2")));
    return build_groups(b, gating == 2);
}

/* Heads whose whole length is rotated. */
static kt_status build_grouped_attention(const struct builder *b)
{
    int64_t hidden = 0, heads = 0, length, value, rotated;
    KT_TRY(copy(b, "attention.head_count_kv", KT_JSON_OPTIONAL, "num_key_value_heads"));
    KT_TRY(get(b, "embedding_length", KT_JSON_REQUIRED, &hidden));
    KT_TRY(get(b, "attention.head_count", KT_JSON_REQUIRED, &heads));
    length = heads > 0 ? hidden / heads : 0;
    KT_TRY(get(b, "attention.key_length", KT_JSON_OPTIONAL, &length));
    value = rotated = length;
    KT_TRY(get(b, "attention.value_length", KT_JSON_OPTIONAL, &value));
    KT_TRY(get(b, "rope.dimension_count", KT_JSON_OPTIONAL, &rotated));
    if (value != length || rotated != length)
        return kt_fail(b->metadata.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: keys of %lld features, values of %lld and rotation of %lld are not "
                       "supported; all three must be equal",
                       b->metadata.path, (long long)length, (long long)value, (long long)rotated);
    KT_TRY(put(b, "head_dim", json_integer(length)));
    int bias = kt_gguf_find(b->gguf, "blk.0.attn_q.bias") != NULL;
    KT_TRY(put(b, "attention_bias", json_boolean(bias)));
    return put(b, "qkv_bias", json_boolean(bias));
}

static kt_status build_qwen_moe(const struct builder *b, const char *type, int normalize)
{
    static const char *const keys[][2] = {{"expert_count", "num_experts"},
                                          {"expert_used_count", "num_experts_per_tok"},
                                          {"expert_feed_forward_length", "moe_intermediate_size"},
                                          {NULL, NULL}};
    KT_TRY(put(b, "model_type", json_string(type)));
    KT_TRY(build_grouped_attention(b));
    KT_TRY(copy_required(b, keys));
    return put(b, "norm_topk_prob", json_boolean(normalize));
}

/* The files do not say whether the weights of the chosen experts are normalised; the released
 * models of each architecture agree in it. */
static kt_status build_qwen2moe(const struct builder *b)
{
    KT_TRY(copy(b, "expert_shared_feed_forward_length", KT_JSON_REQUIRED,
                "shared_expert_intermediate_size"));
    return build_qwen_moe(b, "qwen2_moe", 0);
}

static kt_status build_qwen3moe(const struct builder *b)
{
    return build_qwen_moe(b, "qwen3_moe", 1);
}

static kt_status build_qwen2(const struct builder *b)
{
    KT_TRY(put(b, "model_type", json_string("qwen2")));
    return build_grouped_attention(b);
}

static kt_status build_qwen3(const struct builder *b)
{
    KT_TRY(put(b, "model_type", json_string("qwen3")));
    return build_grouped_attention(b);
}

static const struct {
    const char *name;
    kt_status (*build)(const struct builder *b);
} architectures[] = {
    {"deepseek2", build_deepseek2}, {"qwen2moe", build_qwen2moe}, {"qwen3moe", build_qwen3moe},
    {"qwen2", build_qwen2},         {"qwen3", build_qwen3},
};

static kt_status build(const struct builder *b)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (strcmp(b->architecture, architectures[i].name) != 0)
            continue;
        KT_TRY(build_common(b));
        return architectures[i].build(b);
    }
    return KT_ERROR_INTERNAL; /* kt_gguf_architecture knows no others */
}

kt_status kt_gguf_config(const struct kt_gguf *gguf, json_t **config)
{
    struct builder b = {.gguf = gguf, .metadata = kt_gguf_json(gguf)};
    *config = NULL;
    KT_TRY(kt_gguf_architecture(gguf, &b.architecture));
    b.config = json_object();
    if (!b.config)
        return kt_fail_memory(gguf->ctx, 0, "a configuration");
    kt_status status = build(&b);
    if (status == KT_OK)
        *config = b.config;
    else
        json_decref(b.config);
    return status;
}
