/* SPDX-License-Identifier: Apache-2.0 */
/* Models in GGUF files against the same models as Hugging Face checkpoints; both were written by
 * tests/reference/gguf/make_models.py. */
#include <jansson.h>
#include <math.h>
#include <sys/stat.h>

#include "core/weight.h"
#include "fixture.h"
#include "model/gguf.h"

static const char *const twins[][2] = {
    {"deepseek3", "deepseek3-00001-of-00003.gguf"},
    {"deepseek3", "deepseek3-00003-of-00003.gguf"},
    {"deepseek2", "deepseek2.gguf"},
    {"qwen2moe", "qwen2moe.gguf"},
    {"qwen3moe", "qwen3moe.gguf"},
    {"qwen2", "qwen2.gguf"},
    {"qwen3", "qwen3.gguf"},
};

enum { NUM_TWINS = sizeof twins / sizeof *twins };

static const char *reference_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/gguf/%s", KT_REFERENCE_DIR, name);
    return path;
}

static kt_model *load(const char *path)
{
    kt_model *model;
    kt_status status = kt_model_load(fixture_context, path, NULL, &model);
    ck_assert_msg(status == KT_OK, "%s", kt_last_error(fixture_context));
    return model;
}

START_TEST(tensors_and_configuration_are_those_of_the_checkpoint)
{
    kt_model *gguf = load(reference_path(twins[_i][1])), *want = load(reference_path(twins[_i][0]));
    const struct kt_checkpoint *a = gguf->checkpoint, *b = want->checkpoint;
    ck_assert_uint_eq(a->num_tensors, b->num_tensors);
    for (size_t i = 0; i < a->num_tensors; i++) {
        const struct kt_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        ck_assert_str_eq(x->name, y->name);
        ck_assert_str_eq(x->dtype_name, y->dtype_name);
        ck_assert_int_eq(x->dtype, y->dtype);
        ck_assert_int_eq(x->ndim, y->ndim);
        ck_assert_mem_eq(x->shape, y->shape, (size_t)x->ndim * sizeof *x->shape);
        ck_assert_uint_eq(x->bytes, y->bytes);
        ck_assert_mem_eq(x->data, y->data, x->bytes);
        ck_assert_int_eq(gguf->used[i], 1);
    }
    /* Both were zeroed before they were filled, padding too. */
    ck_assert_mem_eq(&gguf->config, &want->config, sizeof gguf->config);
    ck_assert_uint_eq(gguf->num_parameters, want->num_parameters);
    ck_assert_uint_eq(gguf->num_active_parameters, want->num_active_parameters);
    ck_assert_str_eq(fixture_log, "");
    kt_model_free(gguf);
    kt_model_free(want);
}
END_TEST

/* Logits of a few tokens; free them. */
static float *logits_of(kt_model *model, size_t *num)
{
    static const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 23},
                         labels[] = {3, 1, 4, 1, 5, 9, 2, 6, 0};
    enum { TOKENS = sizeof ids / sizeof *ids };
    kt_executor *executor;
    kt_batch *batch;
    kt_model_info info = {.size = sizeof info};
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_int_eq(kt_executor_create(model, NULL, NULL, &executor), KT_OK);
    ck_assert_int_eq(kt_batch_create(fixture_context, &batch), KT_OK);
    ck_assert_int_eq(kt_batch_add(batch, ids, labels, TOKENS), KT_OK);
    *num = (size_t)TOKENS * (size_t)info.vocab_size;
    float *logits = malloc(*num * sizeof *logits);
    ck_assert_int_eq(kt_executor_logits(executor, batch, logits), KT_OK);
    kt_batch_free(batch);
    kt_executor_free(executor);
    return logits;
}

START_TEST(logits_are_those_of_the_checkpoint)
{
    size_t num, num_want;
    kt_model *gguf = load(reference_path(twins[_i][1])), *want = load(reference_path(twins[_i][0]));
    float *x = logits_of(gguf, &num), *y = logits_of(want, &num_want);
    ck_assert_uint_eq(num, num_want);
    ck_assert_mem_eq(x, y, num * sizeof *x);
    free(x);
    free(y);
    kt_model_free(gguf);
    kt_model_free(want);
}
END_TEST

/* Sums of each tensor's elements, as the Python package decodes them. */
START_TEST(blocks_are_bound_where_they_belong)
{
    const char *name;
    json_t *golden, *goldens = json_load_file(reference_path("quantised.json"), 0, NULL);
    kt_model *model = load(reference_path("quantised.gguf"));
    ck_assert_uint_eq(json_object_size(goldens), model->checkpoint->num_tensors);
    ck_assert_int_eq(model->lm_head->weight.dtype, KT_DTYPE_Q6_K);
    ck_assert_int_eq(model->embed_tokens.dtype, KT_DTYPE_Q4_0);
    ck_assert_int_eq(model->layers[0].expert_weights[0][2].dtype, KT_DTYPE_Q4_K);
    ck_assert_int_eq(model->layers[0].expert_weights[2][0].dtype, KT_DTYPE_Q8_0);
    json_object_foreach(goldens, name, golden)
    {
        double sum = 0, weighted = 0, absolute = 0;
        float row[1024];
        const struct kt_tensor *t = kt_checkpoint_find(model->checkpoint, name);
        ck_assert_msg(t != NULL, "%s", name);
        ck_assert_str_eq(t->dtype_name, json_string_value(json_object_get(golden, "type")));
        json_t *shape = json_object_get(golden, "shape");
        ck_assert_int_eq(t->ndim, (int)json_array_size(shape));
        for (int i = 0; i < t->ndim; i++)
            ck_assert_int_eq(t->shape[i], json_integer_value(json_array_get(shape, (size_t)i)));
        struct kt_weight w = {.data = t->data,
                              .dtype = t->dtype,
                              .rows = t->ndim == 2 ? t->shape[0] : 1,
                              .cols = t->shape[t->ndim - 1]};
        for (int64_t r = 0, n = 0; r < w.rows; r++) {
            kt_weight_decode(&w, r, 0, w.cols, row);
            for (int64_t c = 0; c < w.cols; c++, n++) {
                sum += row[c];
                weighted += (double)row[c] * (double)(n % 7 + 1);
                absolute += fabs((double)row[c]) * 7;
            }
        }
        ck_assert_double_eq_tol(sum, json_real_value(json_object_get(golden, "sum")),
                                1e-12 * absolute);
        ck_assert_double_eq_tol(weighted, json_real_value(json_object_get(golden, "weighted")),
                                1e-12 * absolute);
    }
    kt_model_free(model);
    json_decref(goldens);
}
END_TEST

/* A model of blocks counts as not finite when a scale is. */
START_TEST(scales_that_are_not_finite_are_found)
{
    kt_model *model;
    FILE *f = fopen(reference_path("quantised.gguf"), "rb");
    static char bytes[1 << 18];
    size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    model = load(reference_path("quantised.gguf"));
    const struct kt_tensor *t =
        kt_checkpoint_find(model->checkpoint, "model.layers.0.mlp.experts.1.down_proj.weight");
    size_t at = (size_t)((const char *)t->data - (const char *)model->checkpoint->files[0].map);
    kt_model_free(model);
    memcpy(bytes + at + 34 * 5, (char[]){0, 0x7c}, 2);
    fixture_write("x.gguf", bytes, size);
    ck_assert_fails(kt_model_load(fixture_context, fixture_path("x.gguf"), NULL, &model),
                    KT_ERROR_NUMERIC, "experts.1.down_proj.weight holds NaN or infinity");
}
END_TEST

static void link_file(const char *name, const char *as)
{
    ck_assert_int_eq(symlink(reference_path(name), fixture_path(as)), 0);
}

START_TEST(a_folder_stands_for_the_model_in_it)
{
    kt_model *model;
    link_file("qwen3.gguf", "any name.gguf");
    kt_model_free(load(fixture_folder));
    link_file("qwen2.gguf", "other.gguf");
    ck_assert_fails(kt_model_load(fixture_context, fixture_folder, NULL, &model), KT_ERROR_FORMAT,
                    "several GGUF models");
    kt_model_free(load(fixture_path("other.gguf")));
    fixture_files(1);
    link_file("deepseek3-00001-of-00003.gguf", "a-00001-of-00003.gguf");
    link_file("deepseek3-00002-of-00003.gguf", "a-00002-of-00003.gguf");
    ck_assert_fails(kt_model_load(fixture_context, fixture_folder, NULL, &model),
                    KT_ERROR_NOT_FOUND, "a-00003-of-00003.gguf: no such file");
    link_file("deepseek3-00003-of-00003.gguf", "a-00003-of-00003.gguf");
    kt_model_free(load(fixture_folder));
    /* safetensors in the folder come first */
    link_file("qwen2/model.safetensors", "model.safetensors");
    link_file("qwen2/config.json", "config.json");
    model = load(fixture_folder);
    ck_assert_str_eq(model->config.architecture->name, "Qwen2ForCausalLM");
    kt_model_free(model);
}
END_TEST

START_TEST(names_of_a_set_must_be_right)
{
    kt_model *model;
    link_file("deepseek3-00002-of-00003.gguf", "alone.gguf");
    ck_assert_fails(kt_model_load(fixture_context, fixture_path("alone.gguf"), NULL, &model),
                    KT_ERROR_FORMAT, "is one of 3 files");
    link_file("deepseek3-00002-of-00003.gguf", "a-00001-of-00003.gguf");
    ck_assert_fails(
        kt_model_load(fixture_context, fixture_path("a-00001-of-00003.gguf"), NULL, &model),
        KT_ERROR_FORMAT, "it is number 2 of 3, but its name says 1 of 3");
    link_file("qwen3.gguf", "b-00001-of-00001.gguf");
    ck_assert_fails(
        kt_model_load(fixture_context, fixture_path("b-00001-of-00001.gguf"), NULL, &model),
        KT_ERROR_NOT_FOUND, "split.no");
}
END_TEST

START_TEST(config_json_beside_comes_first)
{
    static const char config[] =
        "{\"model_type\":\"qwen3\",\"vocab_size\":24,\"hidden_size\":16,\"intermediate_size\":20,"
        "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
        "\"head_dim\":8,\"max_position_embeddings\":77,\"use_sliding_window\":true,"
        "\"sliding_window\":9,\"max_window_layers\":1}";
    kt_model *model;
    link_file("qwen3.gguf", "x.gguf");
    fixture_write("config.json", config, strlen(config));
    model = load(fixture_path("x.gguf"));
    ck_assert_int_eq(model->config.max_position_embeddings, 77);
    ck_assert_int_eq(model->layers[2].window, 9);
    kt_model_free(model);
    fixture_write("config.json", "{}", 2);
    ck_assert_fails(kt_model_load(fixture_context, fixture_path("x.gguf"), NULL, &model),
                    KT_ERROR_FORMAT, "config.json");
}
END_TEST

/* Metadata with one key set to a JSON value; NULL removes it. */
static const struct {
    const char *file, *key, *value;
    kt_status status;
    const char *sentence;
} bad_metadata[] = {
    {"deepseek2.gguf", "general.architecture", NULL, KT_ERROR_NOT_FOUND, "general.architecture"},
    {"deepseek2.gguf", "general.architecture", "\"llama\"", KT_ERROR_UNSUPPORTED, "another order"},
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
    {"qwen3.gguf", "blk.1.attn_q_norm.weight", "blk.1.attn_k_b.weight.xx", KT_ERROR_UNSUPPORTED,
     "use a file that has attn_kv_b"},
    {"qwen3.gguf", "blk.1.attn_q_norm.weight", "blk.9.attn_q_norm.weight", KT_ERROR_NOT_FOUND,
     "model.layers.1.self_attn.q_norm.weight is missing"},
};

START_TEST(tensors_of_other_names)
{
    static char bytes[1 << 17];
    kt_model *model;
    FILE *f = fopen(reference_path(renamed[_i].file), "rb");
    size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    char *at = memmem(bytes, size, renamed[_i].from, strlen(renamed[_i].from));
    ck_assert_ptr_nonnull(at);
    memcpy(at, renamed[_i].to, strlen(renamed[_i].from));
    fixture_write("x.gguf", bytes, size);
    ck_assert_fails(kt_model_load(fixture_context, fixture_path("x.gguf"), NULL, &model),
                    renamed[_i].status, renamed[_i].sentence);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *tc = tcase_create("models");
    tcase_add_checked_fixture(tc, fixture_setup, fixture_teardown);
    tcase_add_loop_test(tc, tensors_and_configuration_are_those_of_the_checkpoint, 0, NUM_TWINS);
    tcase_add_loop_test(tc, logits_are_those_of_the_checkpoint, 0, NUM_TWINS);
    tcase_add_test(tc, blocks_are_bound_where_they_belong);
    tcase_add_test(tc, scales_that_are_not_finite_are_found);
    tcase_add_test(tc, a_folder_stands_for_the_model_in_it);
    tcase_add_test(tc, names_of_a_set_must_be_right);
    tcase_add_test(tc, config_json_beside_comes_first);
    tcase_add_loop_test(tc, metadata_that_makes_no_configuration, 0,
                        sizeof bad_metadata / sizeof *bad_metadata);
    tcase_add_test(tc, older_files);
    tcase_add_loop_test(tc, tensors_of_other_names, 0, sizeof renamed / sizeof *renamed);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
