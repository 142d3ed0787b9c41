/* SPDX-License-Identifier: Apache-2.0 */
/** \file tiny_model.h
 * A very small DeepSeek checkpoint that a test can damage: a config.json and tensors, written into
 * the fixture's folder. Element i of tensor k is a small number that tells both apart. */
#ifndef KT_TESTS_TINY_MODEL_H
#define KT_TESTS_TINY_MODEL_H

#include <jansson.h>

#include "weights/dtype.h"
#include "fixture.h"
#include "formats/safetensors.h"

enum { TINY_LAYERS = 2, TINY_EXPERTS = 4, TINY_HIDDEN = 8, TINY_VOCAB = 11 };

struct tiny {
    json_t *config;
    struct kt_tensor tensors[128];
    size_t num;
};

static const char tiny_common[] =
    "\"vocab_size\":11,\"hidden_size\":8,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":2,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,"
    "\"bos_token_id\":0,\"eos_token_id\":[1,2],\"kv_lora_rank\":5,\"qk_nope_head_dim\":4,"
    "\"qk_rope_head_dim\":2,\"v_head_dim\":3,\"intermediate_size\":10,\"moe_intermediate_size\":6,"
    "\"n_routed_experts\":4,\"n_shared_experts\":2,\"num_experts_per_tok\":2,"
    "\"first_k_dense_replace\":1,\"routed_scaling_factor\":1.5,\"rope_theta\":10000.0";

static struct kt_tensor *tiny_find(struct tiny *t, const char *name)
{
    for (size_t i = 0; i < t->num; i++)
        if (strcmp(t->tensors[i].name, name) == 0)
            return &t->tensors[i];
    ck_abort_msg("no tensor %s", name);
}

static struct kt_tensor *tiny_add(struct tiny *t, const char *name, int64_t rows, int64_t cols)
{
    struct kt_tensor *new = &t->tensors[t->num];
    size_t n = (size_t)(rows * (cols ? cols : 1));
    float *data = malloc(n * sizeof *data);
    for (size_t i = 0; i < n; i++)
        data[i] = (float)t->num + (float)(i % 64) / 64;
    *new = (struct kt_tensor){.name = strdup(name),
                              .dtype = KT_DTYPE_F32,
                              .ndim = cols ? 2 : 1,
                              .shape = {rows, cols},
                              .data = data,
                              .bytes = n * sizeof *data};
    t->num++;
    return new;
}

__attribute__((format(printf, 2, 5))) static void tiny_addf(struct tiny *t, const char *format,
                                                            int64_t rows, int64_t cols, ...)
{
    char name[128];
    va_list args;
    va_start(args, cols);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    tiny_add(t, name, rows, cols);
}

static void tiny_mlp(struct tiny *t, const char *path, int64_t inner)
{
    tiny_addf(t, "%s.gate_proj.weight", inner, TINY_HIDDEN, path);
    tiny_addf(t, "%s.up_proj.weight", inner, TINY_HIDDEN, path);
    tiny_addf(t, "%s.down_proj.weight", TINY_HIDDEN, inner, path);
}

static void tiny_attention(struct tiny *t, const char *path, int q_lora)
{
    if (q_lora) {
        tiny_addf(t, "%s.self_attn.q_a_proj.weight", 7, TINY_HIDDEN, path);
        tiny_addf(t, "%s.self_attn.q_a_layernorm.weight", 7, 0, path);
        tiny_addf(t, "%s.self_attn.q_b_proj.weight", 12, 7, path);
    } else {
        tiny_addf(t, "%s.self_attn.q_proj.weight", 12, TINY_HIDDEN, path);
    }
    tiny_addf(t, "%s.self_attn.kv_a_proj_with_mqa.weight", 7, TINY_HIDDEN, path);
    tiny_addf(t, "%s.self_attn.kv_a_layernorm.weight", 5, 0, path);
    tiny_addf(t, "%s.self_attn.kv_b_proj.weight", 14, 5, path);
    tiny_addf(t, "%s.self_attn.o_proj.weight", TINY_HIDDEN, 6, path);
}

static void tiny_layer(struct tiny *t, int layer, int v3)
{
    char path[64], part[96];
    snprintf(path, sizeof path, "model.layers.%d", layer);
    tiny_addf(t, "%s.input_layernorm.weight", TINY_HIDDEN, 0, path);
    tiny_addf(t, "%s.post_attention_layernorm.weight", TINY_HIDDEN, 0, path);
    tiny_attention(t, path, v3);
    snprintf(part, sizeof part, "%s.mlp", path);
    if (layer == 0) {
        tiny_mlp(t, part, 10);
        return;
    }
    tiny_addf(t, "%s.mlp.gate.weight", TINY_EXPERTS, TINY_HIDDEN, path);
    if (v3)
        tiny_addf(t, "%s.mlp.gate.e_score_correction_bias", TINY_EXPERTS, 0, path);
    for (int e = 0; e < TINY_EXPERTS; e++) {
        snprintf(part, sizeof part, "%s.mlp.experts.%d", path, e);
        tiny_mlp(t, part, 6);
    }
    snprintf(part, sizeof part, "%s.mlp.shared_experts", path);
    tiny_mlp(t, part, 12);
}

/** A DeepSeek-V3 with one dense and one MoE layer, or a V2 without query compression. */
static void tiny_create(struct tiny *t, int v3)
{
    char text[2048];
    snprintf(text, sizeof text, "{\"architectures\":[\"%s\"],%s,%s}",
             v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM", tiny_common,
             v3 ? "\"q_lora_rank\":7,\"n_group\":2,\"topk_group\":1,\"norm_topk_prob\":true"
                : "\"q_lora_rank\":null,\"topk_method\":\"greedy\",\"norm_topk_prob\":false");
    memset(t, 0, sizeof *t);
    t->config = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(t->config);
    tiny_add(t, "model.embed_tokens.weight", TINY_VOCAB, TINY_HIDDEN);
    tiny_add(t, "model.norm.weight", TINY_HIDDEN, 0);
    tiny_add(t, "lm_head.weight", TINY_VOCAB, TINY_HIDDEN);
    for (int layer = 0; layer < TINY_LAYERS; layer++)
        tiny_layer(t, layer, v3);
}

/** Sets a key of config.json to a JSON text; NULL removes it. */
static void tiny_set(struct tiny *t, const char *key, const char *json)
{
    if (json)
        json_object_set_new(t->config, key, json_loads(json, JSON_DECODE_ANY, NULL));
    else
        json_object_del(t->config, key);
}

__attribute__((unused)) static void tiny_remove(struct tiny *t, const char *name)
{
    struct kt_tensor *gone = tiny_find(t, name);
    free((char *)gone->name);
    free((void *)gone->data);
    *gone = t->tensors[--t->num];
}

/** Narrows a tensor to BF16, or fills it as F16 with numbers from 1 up. */
__attribute__((unused)) static void tiny_narrow(struct kt_tensor *t, kt_dtype dtype)
{
    float *wide = (float *)t->data;
    uint16_t *narrow = (uint16_t *)t->data;
    size_t n = t->bytes / sizeof *wide;
    for (size_t i = 0; i < n; i++)
        narrow[i] = dtype == KT_DTYPE_F16 ? (uint16_t)(0x3c00 + i) : kt_f32_to_bf16(wide[i]);
    t->dtype = dtype;
    t->bytes = n * 2;
}

/** Wider elements come first, so that all are aligned. */
static void tiny_write(struct tiny *t)
{
    struct kt_tensor sorted[128];
    size_t num = 0;
    char *text = json_dumps(t->config, 0);
    fixture_write("config.json", text, strlen(text));
    free(text);
    for (size_t size = 8; size; size /= 2)
        for (size_t i = 0; i < t->num; i++)
            if (kt_dtype_size(t->tensors[i].dtype) == size ||
                (size == 1 && t->tensors[i].dtype == KT_DTYPE_UNKNOWN))
                sorted[num++] = t->tensors[i];
    ck_assert_uint_eq(num, t->num);
    ck_assert_int_eq(
        kt_safetensors_write(fixture_context, fixture_path("model.safetensors"), sorted, num, NULL),
        KT_OK);
}

__attribute__((unused)) static kt_status tiny_load(struct tiny *t, kt_model **model)
{
    tiny_write(t);
    return kt_model_load(fixture_context, fixture_folder, NULL, model);
}

static void tiny_free(struct tiny *t)
{
    for (size_t i = 0; i < t->num; i++) {
        free((char *)t->tensors[i].name);
        free((void *)t->tensors[i].data);
    }
    json_decref(t->config);
}

#endif
