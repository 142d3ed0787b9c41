/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of a GGUF file's metadata and of its tensors' names, and what is refused. */
#include "core/memory.h"
#include "weights/weight.h"
#include "fixture.h"
#include "gguf_reference.h"
#include "model/gguf.h"
#include "model/gguf_rebuild.h"
#include "main.h"

/* Metadata with one key set to a JSON value; NULL removes it. */
static const struct {
    const char *file, *key, *value;
    kt_status status;
    const char *sentence;
} bad_metadata[] = {
    {"deepseek2.gguf", "general.architecture", NULL, KT_ERROR_NOT_FOUND, "general.architecture"},
    {"llama.gguf", "llama.attention.head_count", NULL, KT_ERROR_NOT_FOUND, "head_count"},
    {"mixtral.gguf", "llama.expert_used_count", NULL, KT_ERROR_NOT_FOUND, "expert_used_count"},
    {"deepseek2.gguf", "general.architecture", "\"rwkv6\"", KT_ERROR_UNSUPPORTED,
     "architecture \"rwkv6\" is not supported in GGUF files; the supported ones are deepseek2, "
     "qwen"},
    {"deepseek2.gguf", "deepseek2.block_count", NULL, KT_ERROR_NOT_FOUND, "deepseek2.block_count"},
    {"deepseek2.gguf", "deepseek2.block_count", "\"3\"", KT_ERROR_FORMAT, "must be an integer"},
    {"deepseek2.gguf", "deepseek2.embedding_length", "-1", KT_ERROR_FORMAT, "outside of 0"},
    {"deepseek2.gguf", "deepseek2.embedding_length", "[]", KT_ERROR_FORMAT, "must be an integer"},
    {"deepseek2.gguf", "deepseek2.feed_forward_length", "[20, 20, 24]", KT_ERROR_UNSUPPORTED,
     "feed_forward_length\" differs between layers"},
    {"deepseek2.gguf", "deepseek2.attention.head_count", "[\"4\"]", KT_ERROR_UNSUPPORTED,
     "head_count\" differs between layers"},
    {"deepseek2.gguf", "deepseek2.expert_gating_func", "3", KT_ERROR_UNSUPPORTED,
     "softmax (1) and sigmoid (2)"},
    {"deepseek2.gguf", "deepseek2.expert_weights_norm", "1", KT_ERROR_FORMAT, "true or false"},
    {"deepseek2.gguf", "deepseek2.attention.temperature_scale", "0.1", KT_ERROR_UNSUPPORTED,
     "temperature_scale\" is 0.1"},
    {"deepseek2.gguf", "deepseek2.rope.scaling.type", "\"longrope\"", KT_ERROR_UNSUPPORTED,
     "none, linear and yarn"},
    {"deepseek2.gguf", "deepseek2.rope.scaling.original_context_length", NULL, KT_ERROR_NOT_FOUND,
     "original_context_length"},
    {"qwen3moe.gguf", "qwen3moe.attention.value_length", "8", KT_ERROR_UNSUPPORTED,
     "all three must be equal"},
    {"qwen3moe.gguf", "qwen3moe.rope.dimension_count", "4", KT_ERROR_UNSUPPORTED,
     "all three must be equal"},
    {"qwen2moe.gguf", "qwen2moe.expert_shared_feed_forward_length", NULL, KT_ERROR_NOT_FOUND,
     "expert_shared_feed_forward_length"},
};

START_TEST(metadata_that_makes_no_configuration)
{
    struct kt_gguf *gguf;
    json_t *config;
    const char *file = reference_path(bad_metadata[_i].file), *key = bad_metadata[_i].key;
    ck_assert_int_eq(kt_gguf_open(fixture_context, file, &gguf), KT_OK);
    if (bad_metadata[_i].value)
        json_object_set_new(gguf->metadata, key,
                            json_loads(bad_metadata[_i].value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(gguf->metadata, key);
    ck_assert_fails(kt_gguf_config(gguf, &config), bad_metadata[_i].status,
                    bad_metadata[_i].sentence);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), file));
    ck_assert_ptr_null(config);
    kt_gguf_close(gguf);
}
END_TEST

static json_t *config_without(const char *file, const char *key)
{
    struct kt_gguf *gguf;
    json_t *config;
    ck_assert_int_eq(kt_gguf_open(fixture_context, reference_path(file), &gguf), KT_OK);
    json_object_del(gguf->metadata, key);
    ck_assert_int_eq(kt_gguf_config(gguf, &config), KT_OK);
    kt_gguf_close(gguf);
    return config;
}

/* Older files lack keys; what the keys stood for then is assumed, and said where it matters. */
START_TEST(older_files)
{
    json_t *config =
        config_without("deepseek3-00001-of-00003.gguf", "deepseek2.expert_group_count");
    ck_assert_int_eq(json_integer_value(json_object_get(config, "n_group")), 1);
    ck_assert_ptr_nonnull(strstr(fixture_log, "expert_group_count\" is missing"));
    json_decref(config);
    config = config_without("deepseek2.gguf", "deepseek2.expert_gating_func");
    ck_assert_str_eq(json_string_value(json_object_get(config, "model_type")), "deepseek_v2");
    json_decref(config);
    config = config_without("deepseek2.gguf", "deepseek2.vocab_size");
    ck_assert_int_eq(json_integer_value(json_object_get(config, "vocab_size")), 24);
    json_decref(config);
}
END_TEST

/* What becomes of a file with other names of tensors of the same length. */
static const struct {
    const char *file, *from, *to;
    kt_status status;
    const char *sentence;
} renamed[] = {
    {"deepseek2.gguf", "blk.1.attn_kv_b.weight", "blk.1.attn_k_bb.weight", KT_ERROR_NOT_FOUND,
     "model.layers.1.self_attn.kv_b_proj.weight is missing"},
    {"deepseek2.gguf", "blk.1.ffn_gate_exps", "blk.1.ffn_down_exps", KT_ERROR_FORMAT,
     "tensor model.layers.1.mlp.experts.0.down_proj.weight is in both"},
    {"qwen3.gguf", "blk.1.attn_q_norm.weight", "blk.1.ffn_up_exps.weight", KT_ERROR_FORMAT,
     "tensor blk.1.ffn_up_exps.weight has 1 dimensions and 8 experts"},
    {"qwen3.gguf", "blk.1.attn_q_norm.weight", "blk.1.attn_k_b.weight.xx", KT_ERROR_NOT_FOUND,
     "attn_k_b.weight.xx has no attn_v_b beside it"},
    {"qwen3.gguf", "blk.1.attn_q_norm.weight", "blk.9.attn_q_norm.weight", KT_ERROR_NOT_FOUND,
     "model.layers.1.self_attn.q_norm.weight is missing"},
    {"llama.gguf", "token_embd.weight", "rope_freqs.weight", KT_ERROR_UNSUPPORTED,
     "put the model's config.json beside it"},
    {"llama.gguf", "blk.1.attn_norm.weight", "blk.1.attn_q.weightxxx", KT_ERROR_NOT_FOUND,
     "model.layers.1.input_layernorm.weight is missing"},
};

START_TEST(tensors_of_other_names)
{
    static char bytes[1 << 17];
    kt_model *model;
    size_t size = reference_read(renamed[_i].file, bytes, sizeof bytes);
    char *at = memmem(bytes, size, renamed[_i].from, strlen(renamed[_i].from));
    ck_assert_ptr_nonnull(at);
    memcpy(at, renamed[_i].to, strlen(renamed[_i].from));
    fixture_write("x.gguf", bytes, size);
    ck_assert_fails(kt_model_load(fixture_context, fixture_path("x.gguf"), NULL, &model),
                    renamed[_i].status, renamed[_i].sentence);
}
END_TEST

/* Both parts in blocks; 2 heads, 32 latent features, keys of 64 and values of 3. */
START_TEST(parts_of_kv_b)
{
    enum { HEADS = 2, RANK = 32, KEY = 64, VALUE = 3, K_ROW = KEY / 32 * 34, V_ROW = 34 };
    static uint8_t k_data[HEADS * RANK * K_ROW], v_data[HEADS * VALUE * V_ROW];
    float part[KEY], *joined;
    for (size_t i = 0; i < sizeof k_data; i++)
        k_data[i] = (uint8_t)(i % 34 == 1 ? 0x2c : i * 7);
    for (size_t i = 0; i < sizeof v_data; i++)
        v_data[i] = (uint8_t)(i % 34 == 1 ? 0xac : i * 5);
    struct kt_tensor out, k = {.name = "k",
                               .file = "f",
                               .dtype = KT_DTYPE_Q8_0,
                               .ndim = 3,
                               .shape = {HEADS, RANK, KEY},
                               .data = k_data};
    struct kt_tensor v = {.name = "v",
                          .file = "f",
                          .dtype = KT_DTYPE_Q8_0,
                          .ndim = 3,
                          .shape = {HEADS, VALUE, RANK},
                          .data = v_data};
    ck_assert_int_eq(kt_gguf_join_kv_b(fixture_context, &k, &v, &out), KT_OK);
    ck_assert_int_eq(out.dtype, KT_DTYPE_F32);
    ck_assert_int_eq(out.shape[0], HEADS * (KEY + VALUE));
    ck_assert_int_eq(out.shape[1], RANK);
    joined = (float *)out.data;
    for (int h = 0; h < HEADS; h++, joined += (KEY + VALUE) * RANK) {
        for (int r = 0; r < RANK; r++) {
            kt_format_of(k.dtype)->decode(KEY / 32, k_data + (h * RANK + r) * K_ROW, part);
            for (int i = 0; i < KEY; i++)
                ck_assert_float_eq(joined[i * RANK + r], part[i]);
        }
        for (int i = 0; i < VALUE; i++) {
            kt_format_of(v.dtype)->decode(1, v_data + (h * VALUE + i) * V_ROW, part);
            ck_assert_mem_eq(joined + (KEY + i) * RANK, part, RANK * sizeof *part);
        }
    }
    kt_buffer_free(fixture_context, (void *)out.data);
    v.shape[2] = 64;
    ck_assert_fails(kt_gguf_join_kv_b(fixture_context, &k, &v, &out), KT_ERROR_MISMATCH,
                    "f: tensors k and v have shapes [2, 32, 64] and [2, 3, 64]");
    v.dtype = KT_DTYPE_UNKNOWN;
    v.dtype_name = "Q5_K";
    ck_assert_fails(kt_gguf_join_kv_b(fixture_context, &k, &v, &out), KT_ERROR_UNSUPPORTED,
                    "tensor v has dtype Q5_K");
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("metadata", .setup = fixture_setup, .teardown = fixture_teardown),
        LOOP(metadata_that_makes_no_configuration, sizeof bad_metadata / sizeof *bad_metadata),
        TEST(older_files),
        LOOP(tensors_of_other_names, sizeof renamed / sizeof *renamed),
        TEST(parts_of_kv_b),
    };
    return RUN_TESTS("gguf_config", tests);
}
