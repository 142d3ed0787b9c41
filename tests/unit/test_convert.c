/* SPDX-License-Identifier: Apache-2.0 */
/* What kt_convert makes of checkpoints: tensors, configuration, and the model's numbers. */
#include <math.h>

#include "convert_test.h"
#include "weights/encode.h"
#include "core/memory.h"
#include "golden_case.h"
#include "model/quantization.h"
#include "tiny_quantised.h"
#include "main.h"

enum { F8_BLOCK = 128, I4_GROUP = 128 };

static struct kt_checkpoint *open_checkpoint(const char *folder)
{
    struct kt_checkpoint *c;
    ck_assert_ok(fixture_context, kt_checkpoint_open(fixture_context, folder, &c));
    return c;
}

static kt_model *load(const char *folder)
{
    kt_model *model;
    fixture_log[0] = 0;
    ck_assert_ok(fixture_context, kt_model_load(fixture_context, folder, NULL, &model));
    ck_assert_ptr_null(strstr(fixture_log, "no use for"));
    return model;
}

/* Linears of DeepSeek, also of the layer that predicts further tokens. */
static int is_linear(const char *name, int experts_only)
{
    if (strstr(name, ".mlp.experts."))
        return 1;
    return !experts_only && strstr(name, "_proj") && strstr(name, ".weight") &&
           !strstr(name, "eh_proj");
}

/* The matrix in `to`, by the definition in docs/checkpoints.md. */
static void check_matrix(const struct kt_checkpoint *out, const struct kt_tensor *t, kt_dtype to)
{
    const struct kt_tensor *codes = kt_checkpoint_find(out, t->name), *scales = NULL;
    struct kt_weight from = {
        .data = t->data, .dtype = t->dtype, .rows = t->shape[0], .cols = t->shape[1]};
    int64_t rows = to == KT_DTYPE_F8_E4M3 ? F8_BLOCK : 1;
    int64_t cols = to == KT_DTYPE_I8 ? from.cols : to == KT_DTYPE_I4 ? I4_GROUP : F8_BLOCK;
    char name[256];
    float block[128 * 128], back[128 * 128];
    ck_assert_ptr_nonnull(codes);
    if (kt_scale_suffix(to)) {
        snprintf(name, sizeof name, "%s%s", t->name, kt_scale_suffix(to));
        scales = kt_checkpoint_find(out, name);
        ck_assert_ptr_nonnull(scales);
        ck_assert_str_eq(strrchr(scales->file, '/'), strrchr(t->file, '/'));
        ck_assert_int_eq(scales->shape[0], (from.rows + rows - 1) / rows);
        ck_assert_int_eq(scales->shape[1], (from.cols + cols - 1) / cols);
    }
    struct kt_weight got = {.data = codes->data,
                            .dtype = to,
                            .rows = from.rows,
                            .cols = from.cols,
                            .scale = scales ? scales->data : NULL,
                            .scale_rows = rows,
                            .scale_cols = cols,
                            .scale_ld = scales ? scales->shape[1] : 0};
    for (int64_t r = 0; r < from.rows; r += rows)
        for (int64_t c = 0; c < from.cols; c += cols) {
            int64_t nr = kt_min_i64(rows, from.rows - r), nc = kt_min_i64(cols, from.cols - c);
            for (int64_t i = 0; i < nr; i++) {
                kt_weight_decode(&from, r + i, c, nc, block + i * nc);
                kt_weight_decode(&got, r + i, c, nc, back + i * nc);
            }
            float scale = kt_encode_scale(to, kt_encode_largest(nr * nc, block));
            for (int64_t i = 0; i < nr * nc; i += 2) {
                char code[8];
                float pair[2];
                struct kt_weight w = {.data = code, .dtype = to, .rows = 1, .cols = 2};
                kt_encode(to, 2, block + i, scale, code);
                kt_weight_decode(&w, 0, 0, 2, pair);
                ck_assert_float_eq(back[i], pair[0] * scale);
                if (i + 1 < nr * nc)
                    ck_assert_float_eq(back[i + 1], pair[1] * scale);
            }
        }
}

static void check_all(const char *source, const char *target, kt_dtype to, int experts_only)
{
    struct kt_checkpoint *in = open_checkpoint(source), *out = open_checkpoint(target);
    size_t converted = 0;
    for (size_t i = 0; i < in->num_tensors; i++) {
        const struct kt_tensor *t = &in->tensors[i], *copy = kt_checkpoint_find(out, t->name);
        ck_assert_msg(copy != NULL, "%s is missing", t->name);
        ck_assert_str_eq(strrchr(copy->file, '/'), strrchr(t->file, '/'));
        if (is_linear(t->name, experts_only) && t->dtype != to) {
            check_matrix(out, t, to);
            converted++;
            continue;
        }
        ck_assert_int_eq(copy->dtype, t->dtype);
        ck_assert_mem_eq(copy->shape, t->shape, sizeof t->shape);
        ck_assert_mem_eq(copy->data, t->data, t->bytes);
    }
    ck_assert_uint_gt(converted, 0);
    ck_assert_uint_eq(out->num_tensors, in->num_tensors + (kt_scale_suffix(to) ? converted : 0));
    ck_assert_uint_eq(out->num_files, in->num_files);
    kt_checkpoint_close(in);
    kt_checkpoint_close(out);
}

static const char *const cases[] = {"v3", "v3bf16", "v2f16", "qwen3moe"};

START_TEST(linears_are_converted_and_the_rest_is_copied)
{
    kt_dtype to = convert_formats[_i % CONVERT_FORMATS];
    const char *name = cases[_i / CONVERT_FORMATS], *target = fixture_path("out");
    const char *source = convert_case(name);
    if (to == (_i / CONVERT_FORMATS == 1 ? KT_DTYPE_BF16 : KT_DTYPE_F32) && strcmp(name, "v2f16")) {
        ck_assert_fails(convert_to(source, target, to, 0), KT_ERROR_INVALID_ARGUMENT,
                        "nothing to convert");
        ck_assert(!kt_file_exists(target));
        return;
    }
    ck_assert_converts(source, target, to, 0);
    check_all(source, target, to, 0);
    ck_assert(!convert_has(target, "kt_convert.json"));
    ck_assert_int_eq(convert_has(target, "model.safetensors.index.json"),
                     convert_has(source, "model.safetensors.index.json"));
    kt_model *before = load(source), *after = load(target);
    ck_assert_uint_eq(before->num_parameters, after->num_parameters);
    ck_assert_uint_eq(before->num_active_parameters, after->num_active_parameters);
    kt_model_free(before);
    kt_model_free(after);
}
END_TEST

START_TEST(experts_alone_are_converted)
{
    kt_dtype to = convert_formats[_i];
    const char *target = fixture_path("out");
    if (to == KT_DTYPE_F32)
        return;
    ck_assert_converts(convert_case("v3"), target, to, 1);
    check_all(convert_case("v3"), target, to, 1);
    kt_model_free(load(target));
}
END_TEST

/* Every way from one quantised format to another is decoding and encoding. */
START_TEST(formats_follow_each_other)
{
    kt_dtype from = convert_formats[2 + _i / CONVERT_FORMATS];
    kt_dtype to = convert_formats[_i % CONVERT_FORMATS];
    const char *first = fixture_path("first"), *second = fixture_path("second");
    const char *wide = fixture_path("wide"), *direct = fixture_path("direct");
    if (from == to)
        return;
    ck_assert_converts(convert_case("v3"), first, from, 0);
    ck_assert_converts(first, second, to, 0);
    ck_assert_converts(first, wide, KT_DTYPE_F32, 0);
    if (to != KT_DTYPE_F32) {
        ck_assert_converts(wide, direct, to, 0);
        convert_same_folders(second, direct);
    }
    struct kt_checkpoint *c = open_checkpoint(wide);
    kt_model *decoded = load(wide), *quantised = load(first);
    for (int32_t i = 0; i < decoded->num_linears; i++) {
        const struct kt_weight *a = &decoded->linears[i].weight, *b = &quantised->linears[i].weight;
        float x[128], y[128];
        for (int64_t r = 0; r < a->rows; r++) {
            kt_weight_decode(a, r, 0, a->cols, x);
            kt_weight_decode(b, r, 0, b->cols, y);
            ck_assert_mem_eq(x, y, (size_t)a->cols * sizeof *x);
        }
    }
    for (size_t i = 0; i < c->num_tensors; i++)
        ck_assert_ptr_null(strstr(c->tensors[i].name, "_scale"));
    kt_checkpoint_close(c);
    kt_model_free(decoded);
    kt_model_free(quantised);
}
END_TEST

static json_t *read_config(const char *folder)
{
    size_t size;
    char *text = convert_read(folder, "config.json", &size);
    json_t *config = json_loads(text, 0, NULL);
    free(text);
    ck_assert_ptr_nonnull(config);
    return config;
}

static void check_quantization(const char *folder, const char *want)
{
    json_t *config = read_config(folder), *found = json_object_get(config, "quantization_config");
    json_t *wanted = want ? json_loads(want, 0, NULL) : NULL;
    if (found)
        json_object_del(found, "modules_to_not_convert");
    char *text = json_dumps(found, JSON_COMPACT);
    ck_assert_msg(want ? json_equal(found, wanted) : !found, "%s, not %s", text, want);
    free(text);
    json_decref(wanted);
    json_decref(config);
}

#define FP8_CONFIG                                                                                 \
    "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"weight_block_size\":[128,128],"                  \
    "\"activation_scheme\":\"dynamic\"}"

START_TEST(config_says_what_the_target_holds)
{
    const char *fp8 = fixture_path("fp8"), *mixed = fixture_path("mixed");
    const char *more = fixture_path("more"), *back = fixture_path("back");
    ck_assert_converts(convert_case("v3"), fp8, KT_DTYPE_F8_E4M3, 0);
    check_quantization(fp8, FP8_CONFIG);
    ck_assert_converts(fp8, mixed, KT_DTYPE_I4, 1);
    check_quantization(mixed, "{\"quant_method\":\"kt\",\"bits\":4,\"group_size\":128,"
                              "\"weight_block_size\":[128,128]}");
    kt_model *model = load(mixed);
    ck_assert_int_eq(model->layers[1].expert_weights[0][0].dtype, KT_DTYPE_I4);
    ck_assert_int_eq(model->layers[1].o->weight.dtype, KT_DTYPE_F8_E4M3);
    kt_model_free(model);
    ck_assert_converts(mixed, more, KT_DTYPE_I8, 1);
    check_quantization(more,
                       "{\"quant_method\":\"kt\",\"bits\":8,\"weight_block_size\":[128,128]}");
    ck_assert_converts(mixed, back, KT_DTYPE_BF16, 1);
    check_quantization(back, FP8_CONFIG);
    nftw(back, convert_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    ck_assert_converts(mixed, back, KT_DTYPE_BF16, 0);
    check_quantization(back, NULL);
    json_t *config = read_config(back);
    ck_assert_str_eq(json_string_value(json_object_get(config, "torch_dtype")), "bfloat16");
    json_decref(config);
}
END_TEST

START_TEST(config_keeps_everything_else)
{
    const char *target = fixture_path("out");
    ck_assert_converts(convert_case("v3"), target, KT_DTYPE_F8_E4M3, 0);
    json_t *before = read_config(convert_case("v3")), *after = read_config(target);
    const json_t *kept =
        json_object_get(json_object_get(after, "quantization_config"), "modules_to_not_convert");
    int router = 0, linears = 0;
    for (size_t i = 0; i < json_array_size(kept); i++) {
        const char *name = json_string_value(json_array_get(kept, i));
        router += strcmp(name, "model.layers.1.mlp.gate") == 0;
        linears += is_linear(name, 0);
    }
    ck_assert_int_eq(router, 1);
    ck_assert_int_eq(linears, 0);
    json_object_del(after, "quantization_config");
    ck_assert(json_equal(before, after));
    json_decref(before);
    json_decref(after);
    size_t size;
    char *text = convert_read(target, "config.json", &size);
    ck_assert_ptr_nonnull(strstr(text, "\"rms_norm_eps\": 1e-6,"));
    free(text);
}
END_TEST

START_TEST(threads_do_not_matter)
{
    const char *one = fixture_path("one"), *four = fixture_path("four");
    kt_context *two_threads = fixture_context;
    for (int32_t threads = 1; threads <= 4; threads += 3) {
        fixture_context = test_context(threads, 0);
        ck_assert_converts(convert_case("v3"), threads == 1 ? one : four, convert_formats[2 + _i],
                           0);
        kt_context_free(fixture_context);
    }
    fixture_context = two_threads;
    convert_same_folders(one, four);
}
END_TEST

/* Scales in BF16, a dtype that we do not know, and tensors of odd lengths before wider ones. */
START_TEST(unusual_tensors_pass)
{
    static struct tiny tiny;
    const char *name = "model.layers.0.self_attn.kv_b_proj.weight";
    char *target = strdup(fixture_path("out"));
    tiny_create(&tiny, 1);
    tiny_set(&tiny, "quantization_config",
             "{\"quant_method\":\"fp8\",\"weight_block_size\":[4,3]}");
    struct kt_tensor *odd = tiny_add(&tiny, "model.layers.2.odd", 7, 0);
    odd->dtype = KT_DTYPE_UNKNOWN;
    odd->dtype_name = "F6_E2M3";
    odd->bytes = 7;
    tiny_narrow(tiny_quantise(&tiny, name, KT_DTYPE_F8_E4M3, 4, 3), KT_DTYPE_BF16);
    tiny_write(&tiny);
    ck_assert_converts(fixture_folder, target, _i ? KT_DTYPE_I8 : KT_DTYPE_F32, 0);
    kt_model *model = load(target), *before = load(fixture_folder);
    const struct kt_tensor *copy = kt_checkpoint_find(model->checkpoint, "model.layers.2.odd");
    ck_assert_str_eq(copy->dtype_name, "F6_E2M3");
    ck_assert_mem_eq(copy->data, odd->data, 7);
    const struct kt_weight *w = &model->layers[0].kv_b->weight;
    float x[8], y[8];
    for (int64_t r = 0; r < w->rows; r++) {
        kt_weight_decode(&before->layers[0].kv_b->weight, r, 0, w->cols, x);
        kt_weight_decode(w, r, 0, w->cols, y);
        float bound = _i ? kt_encode_largest(w->cols, x) / 127 * 0.51f : 0;
        for (int64_t i = 0; i < w->cols; i++)
            ck_assert_float_le(fabsf(x[i] - y[i]), bound);
    }
    kt_model_free(model);
    kt_model_free(before);
    tiny_free(&tiny);
    free(target);
}
END_TEST

/* The model of a folder with the input of a case, its adapter, and a backend for its experts. */
static struct golden_case open_model(const char *name, const char *folder, const char *experts,
                                     kt_compute compute)
{
    struct golden_case c = {.ctx = fixture_context};
    char path[512];
    ck_assert_ok(c.ctx, kt_model_load(c.ctx, folder, NULL, &c.model));
    snprintf(path, sizeof path, "%s/cases/%s/adapter", KT_REFERENCE_DIR, name);
    ck_assert_ok(c.ctx, kt_lora_load(c.model, path, &c.lora));
    snprintf(path, sizeof path, "%s/cases/%s/golden.safetensors", KT_REFERENCE_DIR, name);
    c.numbers = open_checkpoint(path);
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &c.batch));
    golden_fill_batch(&c);
    c.executor = golden_executor_on(&c, experts, c.lora, compute, 0);
    return c;
}

static void close_model(struct golden_case *c)
{
    kt_executor_free(c->executor);
    kt_batch_free(c->batch);
    kt_checkpoint_close(c->numbers);
    kt_lora_free(c->lora);
    kt_model_free(c->model);
}

static void check_same(int64_t n, float *got, float *want, double tolerance)
{
    double *wide = test_widen(n, want);
    ck_assert_double_le(test_error(n, got, wide), tolerance);
    free(wide);
    free(got);
    free(want);
}

static const struct run {
    const char *experts;
    int experts_only;
    kt_compute compute;
    double tolerance;
} runs[] = {{"reference", 1, KT_COMPUTE_F32, 1e-7},
            {"reference", 0, KT_COMPUTE_F32, 1e-6},
            {NULL, 0, KT_COMPUTE_F32, 1e-6},
            {NULL, 0, KT_COMPUTE_BF16, 5e-3}};
enum { RUNS = sizeof runs / sizeof *runs };

/* Logits and gradients with weights decoded as they are used, and with the same numbers in F32. */
START_TEST(models_compute_the_same_decoded)
{
    const struct run *r = &runs[_i % RUNS];
    kt_dtype to = convert_formats[2 + _i / RUNS];
    char *quantised = strdup(fixture_path("quantised")), *wide = strdup(fixture_path("wide"));
    ck_assert_converts(convert_case("v3"), quantised, to, r->experts_only);
    ck_assert_converts(quantised, wide, KT_DTYPE_F32, 0);
    struct golden_case a = open_model("v3", quantised, r->experts, r->compute);
    struct golden_case b = open_model("v3", wide, r->experts, r->compute);
    int64_t n = golden_count(golden_tensor(&a, "logits"));
    float *x = malloc((size_t)n * sizeof *x), *y = malloc((size_t)n * sizeof *y);
    ck_assert_ok(a.ctx, kt_executor_logits(a.executor, a.batch, x));
    ck_assert_ok(b.ctx, kt_executor_logits(b.executor, b.batch, y));
    ck_assert_double_gt(golden_error(&a, "logits", x), 1e-4); /* it is quantised */
    check_same(n, x, y, r->tolerance);
    golden_step(&a, a.executor);
    golden_step(&b, b.executor);
    check_same((int64_t)kt_lora_num_parameters(a.lora), golden_gradients(a.lora),
               golden_gradients(b.lora), 10 * r->tolerance);
    close_model(&a);
    close_model(&b);
    free(quantised);
    free(wide);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("convert", .timeout = 60, .setup = fixture_setup, .teardown = convert_teardown),
        LOOP(linears_are_converted_and_the_rest_is_copied,
             CONVERT_FORMATS * (sizeof cases / sizeof *cases)),
        LOOP(experts_alone_are_converted, CONVERT_FORMATS),
        LOOP(formats_follow_each_other, 3 * CONVERT_FORMATS),
        TEST(config_says_what_the_target_holds),
        TEST(config_keeps_everything_else),
        LOOP(threads_do_not_matter, 3),
        LOOP(unusual_tensors_pass, 2),
        LOOP(models_compute_the_same_decoded, 3 * RUNS),
    };
    return RUN_TESTS("convert", tests);
}
