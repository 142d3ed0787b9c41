/* SPDX-License-Identifier: Apache-2.0 */
/* Models in GGUF files against the same models as Hugging Face checkpoints; both were written by
 * tests/reference/gguf/make_models.py. */
#include <jansson.h>
#include <math.h>

#include "weights/weight.h"
#include "fixture.h"
#include "gguf_reference.h"
#include "model/gguf.h"
#include "main.h"

static const char *const twins[][2] = {
    {"deepseek3", "deepseek3-00001-of-00003.gguf"},
    {"deepseek3", "deepseek3-00003-of-00003.gguf"},
    {"deepseek2", "deepseek2.gguf"},
    {"qwen2moe", "qwen2moe.gguf"},
    {"qwen3moe", "qwen3moe.gguf"},
    {"qwen2", "qwen2.gguf"},
    {"qwen3", "qwen3.gguf"},
    {"llama", "llama.gguf"},
    {"mixtral", "mixtral.gguf"},
};

enum { NUM_TWINS = sizeof twins / sizeof *twins };

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
    static char bytes[1 << 18];
    size_t size = reference_read("quantised.gguf", bytes, sizeof bytes);
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

/* The model's tensors decoded, and its configuration, as a Hugging Face checkpoint in the fixture's
 * folder. */
static void write_decoded(const kt_model *model, const char *file)
{
    const struct kt_checkpoint *c = model->checkpoint;
    struct kt_tensor *decoded = calloc(c->num_tensors, sizeof *decoded);
    struct kt_gguf *gguf;
    json_t *config;
    for (size_t i = 0; i < c->num_tensors; i++) {
        struct kt_tensor *t = &decoded[i];
        *t = c->tensors[i];
        struct kt_weight w = {.data = t->data,
                              .dtype = t->dtype,
                              .rows = t->ndim == 2 ? t->shape[0] : 1,
                              .cols = t->shape[t->ndim - 1]};
        float *numbers = malloc((size_t)(w.rows * w.cols) * sizeof *numbers);
        for (int64_t r = 0; r < w.rows; r++)
            kt_weight_decode(&w, r, 0, w.cols, numbers + r * w.cols);
        t->data = numbers;
        t->dtype = KT_DTYPE_F32;
        t->bytes = (uint64_t)(w.rows * w.cols) * sizeof *numbers;
    }
    ck_assert_int_eq(kt_safetensors_write(fixture_context, fixture_path("model.safetensors"),
                                          decoded, c->num_tensors, NULL),
                     KT_OK);
    ck_assert_int_eq(kt_gguf_open(fixture_context, file, &gguf), KT_OK);
    ck_assert_int_eq(kt_gguf_config(gguf, &config), KT_OK);
    ck_assert_int_eq(json_dump_file(config, fixture_path("config.json"), 0), 0);
    json_decref(config);
    kt_gguf_close(gguf);
    for (size_t i = 0; i < c->num_tensors; i++)
        free((void *)decoded[i].data);
    free(decoded);
}

START_TEST(logits_of_blocks_are_those_of_their_numbers)
{
    size_t num, num_want;
    double error = 0, norm = 0;
    kt_model *blocks = load(reference_path("quantised.gguf"));
    write_decoded(blocks, reference_path("quantised.gguf"));
    kt_model *numbers = load(fixture_folder);
    ck_assert_int_eq(numbers->lm_head->weight.dtype, KT_DTYPE_F32);
    float *x = logits_of(blocks, &num), *y = logits_of(numbers, &num_want);
    ck_assert_uint_eq(num, num_want);
    for (size_t i = 0; i < num; i++) {
        error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += (double)y[i] * y[i];
    }
    ck_assert_double_gt(norm, 0);
    ck_assert_double_le(sqrt(error / norm), 1e-5);
    free(x);
    free(y);
    kt_model_free(blocks);
    kt_model_free(numbers);
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

int main(void)
{
    const struct test tests[] = {
        GROUP("models", .setup = fixture_setup, .teardown = fixture_teardown),
        LOOP(tensors_and_configuration_are_those_of_the_checkpoint, NUM_TWINS),
        LOOP(logits_are_those_of_the_checkpoint, NUM_TWINS),
        TEST(blocks_are_bound_where_they_belong),
        TEST(logits_of_blocks_are_those_of_their_numbers),
        TEST(scales_that_are_not_finite_are_found),
        TEST(a_folder_stands_for_the_model_in_it),
        TEST(names_of_a_set_must_be_right),
        TEST(config_json_beside_comes_first),
    };
    return RUN_TESTS("gguf", tests);
}
