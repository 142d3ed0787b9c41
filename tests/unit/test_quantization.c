/* SPDX-License-Identifier: Apache-2.0 */
/* Loading of quantised checkpoints. */
#include <math.h>

#include "model/model.h"
#include "tiny_quantised.h"
#include "main.h"

static struct tiny tiny;
static kt_model *model;

static const char fp8_config[] = "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":"
                                 "\"dynamic\",\"weight_block_size\":[4,3]}";
static const char int8_config[] = "{\"quant_method\":\"kt\",\"bits\":8}";
static const char int4_config[] = "{\"quant_method\":\"kt\",\"bits\":4,\"group_size\":6}";

static const struct format {
    kt_dtype dtype;
    int64_t rows, cols; /* that share a scale */
    const char *config;
} formats[] = {{KT_DTYPE_F8_E4M3, 4, 3, fp8_config},
               {KT_DTYPE_I8, 1, 1000, int8_config},
               {KT_DTYPE_I4, 1, 6, int4_config}};
enum { FP8, INT8, INT4, FORMATS };

static void setup(void)
{
    fixture_setup();
    tiny_create(&tiny, 1);
    model = NULL;
}

static void teardown(void)
{
    kt_model_free(model);
    tiny_free(&tiny);
    fixture_teardown();
}

static struct kt_tensor *quantise(const char *name, const struct format *f)
{
    tiny_set(&tiny, "quantization_config", f->config);
    return tiny_quantise(&tiny, name, f->dtype, f->rows, f->cols);
}

/* All matrices, routers, embeddings and the head included; INT4 where it can be. */
static void quantise_all(const struct format *f)
{
    size_t num = tiny.num;
    for (size_t i = 0; i < num; i++)
        if (tiny.tensors[i].ndim == 2 &&
            (f->dtype != KT_DTYPE_I4 || tiny.tensors[i].shape[1] % 2 == 0))
            quantise(tiny.tensors[i].name, f);
}

static void check(const struct kt_weight *w, const char *name, const struct format *f)
{
    if (f->dtype == KT_DTYPE_I4 && w->cols % 2)
        return;
    ck_assert_int_eq(w->dtype, f->dtype);
    tiny_check(&tiny, w, name, f->rows, f->cols);
}

START_TEST(every_matrix_can_be_quantised)
{
    const struct format *f = &formats[_i];
    uint64_t parameters = 0, bytes = 0, tensors = 0;
    for (size_t i = 0; i < tiny.num; i++)
        parameters += tiny.tensors[i].bytes / sizeof(float);
    quantise_all(f);
    for (size_t i = 0; i < tiny.num; i++)
        bytes += tiny.tensors[i].bytes;
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    for (int32_t i = 0; i < model->num_linears; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s.weight", model->linears[i].name);
        check(&model->linears[i].weight, name, f);
    }
    check(&model->layers[1].router, "model.layers.1.mlp.gate.weight", f);
    check(&model->embed_tokens, "model.embed_tokens.weight", f);
    check(&model->layers[1].expert_weights[0][2], "model.layers.1.mlp.experts.2.gate_proj.weight",
          f);
    ck_assert_uint_eq(model->num_parameters, parameters);
    ck_assert_uint_eq(model->num_bytes, bytes);
    ck_assert_str_eq(fixture_log, "");
    for (size_t i = 0; i < kt_model_num_tensors(model); i++) {
        kt_tensor_info t = {.size = sizeof t};
        ck_assert_int_eq(kt_model_get_tensor(model, i, &t), KT_OK);
        ck_assert_int_eq(t.used, strstr(t.name, "_scale") ? 2 : 1);
        ck_assert_int_ne(t.dtype, KT_DTYPE_U8);
        uint64_t elements = (uint64_t)(t.shape[0] * (t.ndim == 2 ? t.shape[1] : 1));
        tensors += t.used == 1 ? elements : 0;
    }
    ck_assert_uint_eq(tensors, parameters);
}
END_TEST

START_TEST(formats_mix)
{
    const char *a = "model.layers.1.mlp.experts.0.up_proj.weight";
    const char *b = "model.layers.1.mlp.experts.1.up_proj.weight";
    const char *c = "model.layers.1.mlp.experts.2.up_proj.weight";
    quantise(a, &formats[FP8]);
    quantise(b, &formats[INT8]);
    quantise(c, &formats[INT4]);
    tiny_set(&tiny, "quantization_config",
             "{\"quant_method\":\"kt\",\"bits\":4,\"group_size\":6,\"weight_block_size\":[4,3]}");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    const struct kt_weight *up = model->layers[1].expert_weights[1];
    check(&up[0], a, &formats[FP8]);
    check(&up[1], b, &formats[INT8]);
    check(&up[2], c, &formats[INT4]);
    ck_assert_int_eq(up[3].dtype, KT_DTYPE_F32);
}
END_TEST

START_TEST(tied_embeddings_are_counted_once)
{
    tiny_set(&tiny, "tie_word_embeddings", "true");
    tiny_remove(&tiny, "lm_head.weight");
    quantise("model.embed_tokens.weight", &formats[FP8]);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    uint64_t bytes = 0;
    for (size_t i = 0; i < tiny.num; i++)
        bytes += tiny.tensors[i].bytes;
    ck_assert_uint_eq(model->num_bytes, bytes);
    check(&model->lm_head->weight, "model.embed_tokens.weight", &formats[FP8]);
}
END_TEST

START_TEST(narrow_scales_are_widened)
{
    const char *name = "model.layers.0.mlp.down_proj.weight";
    tiny_narrow(quantise(name, &formats[FP8]), _i ? KT_DTYPE_F16 : KT_DTYPE_BF16);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    check(&model->layers[0].mlp.down->weight, name, &formats[FP8]);
}
END_TEST

static const char expert[] = "model.layers.1.mlp.experts.2.up_proj.weight";

START_TEST(missing_scales_are_named)
{
    const char *scales = quantise(expert, &formats[_i])->name;
    char name[160];
    snprintf(name, sizeof name, "%s", scales);
    tiny_remove(&tiny, name);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NOT_FOUND, name);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "model.safetensors: tensor"));
}
END_TEST

START_TEST(scales_of_another_shape_are_named)
{
    struct kt_tensor *scales = quantise(expert, &formats[FP8]);
    ck_assert_int_eq(scales->shape[0], 2);
    scales->shape[0] = 3;
    scales->shape[1] = 2;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, scales->name);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "[3, 2]"));
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "[2, 3]"));
    scales->shape[0] = 6;
    scales->ndim = 1;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, "[6]");
    scales->shape[0] = 2;
    scales->shape[1] = 3;
    scales->ndim = 2;
    tiny_set(&tiny, "quantization_config",
             "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}");
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, "[1, 1]");
}
END_TEST

START_TEST(scales_of_another_dtype_are_named)
{
    struct kt_tensor *scales = quantise(expert, &formats[INT8]);
    scales->dtype = KT_DTYPE_I32;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "_scale have dtype I32");
}
END_TEST

static const struct {
    int format;
    float scale;
    const char *sentence;
} bad_scales[] = {{FP8, NAN, "NaN or infinity"},        {FP8, -1, "negative"},
                  {INT8, INFINITY, "NaN or infinity"},  {INT8, -1e-30f, "negative"},
                  {INT4, -INFINITY, "NaN or infinity"}, {INT4, -2, "negative"}};

START_TEST(scales_are_finite_and_not_negative)
{
    struct kt_tensor *scales = quantise(expert, &formats[bad_scales[_i].format]);
    char name[160];
    snprintf(name, sizeof name, "%s", scales->name);
    ((float *)scales->data)[1] = -0.0f;
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    kt_model_free(model);
    ((float *)scales->data)[1] = bad_scales[_i].scale;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NUMERIC, name);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), bad_scales[_i].sentence));
}
END_TEST

START_TEST(nan_is_found_in_fp8)
{
    quantise(expert, &formats[FP8]);
    uint8_t *codes = (uint8_t *)tiny_find(&tiny, expert)->data;
    codes[7] = _i ? 0xfe : 0x7e; /* the largest finite numbers */
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    kt_model_free(model);
    codes[7]++;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NUMERIC, expert);
    kt_model_options options;
    kt_model_options_init(&options, sizeof options);
    options.check_finite = 0;
    ck_assert_int_eq(kt_model_load(fixture_context, fixture_folder, &options, &model), KT_OK);
    ck_assert_fails(kt_model_check_finite(model), KT_ERROR_NUMERIC, expert);
}
END_TEST

START_TEST(dtypes_that_nothing_describes_are_refused)
{
    quantise(expert, &formats[_i]);
    tiny_set(&tiny, "quantization_config", NULL);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "quantization_config");
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), expert));
    tiny_set(&tiny, "quantization_config", formats[_i == FP8 ? INT8 : FP8].config);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "quantization_config");
    tiny_set(&tiny, "quantization_config", int8_config);
    if (_i == INT4)
        ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "group_size");
}
END_TEST

START_TEST(shapes_are_told_in_elements)
{
    quantise(expert, &formats[INT4]);
    tiny_find(&tiny, expert)->shape[0] /= 2;
    tiny_find(&tiny, expert)->shape[1] *= 2;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, "_scale");
    tiny_remove(&tiny, "model.layers.1.mlp.experts.2.up_proj.weight_scale");
    tiny_addf(&tiny, "%s_scale", 3, 3, expert);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, "shape [3, 16]");
}
END_TEST

START_TEST(misaligned_scales_are_named)
{
    const char *odd = "model.layers.0.self_attn.kv_b_proj.weight"; /* 70 bytes */
    char *text;
    quantise(odd, &formats[FP8]);
    struct kt_tensor *codes = tiny_find(&tiny, odd), first = tiny.tensors[0];
    tiny.tensors[0] = *codes;
    *codes = first;
    ck_assert_int_eq(kt_safetensors_write(fixture_context, fixture_path("model.safetensors"),
                                          tiny.tensors, tiny.num, NULL),
                     KT_OK);
    text = json_dumps(tiny.config, 0);
    fixture_write("config.json", text, strlen(text));
    free(text);
    ck_assert_fails(kt_model_load(fixture_context, fixture_folder, NULL, &model), KT_ERROR_FORMAT,
                    "multiple of its element size");
}
END_TEST

START_TEST(norms_must_be_plain)
{
    struct kt_tensor *t = tiny_find(&tiny, "model.layers.0.input_layernorm.weight");
    tiny_set(&tiny, "quantization_config", fp8_config);
    t->dtype = KT_DTYPE_F8_E4M3;
    t->bytes /= 4;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "input_layernorm");
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "norms, biases"));
}
END_TEST

static const struct {
    const char *config;
    kt_status status;
    const char *sentence;
} bad_configs[] = {
    {"{\"quant_method\":\"gptq\",\"bits\":4}", KT_ERROR_UNSUPPORTED, "\"gptq\""},
    {"{\"quant_method\":\"awq\"}", KT_ERROR_UNSUPPORTED, "\"awq\""},
    {"{\"quant_method\":\"bitsandbytes\"}", KT_ERROR_UNSUPPORTED, "kt convert"},
    {"{\"quant_method\":\"compressed-tensors\"}", KT_ERROR_UNSUPPORTED, "compressed-tensors"},
    {"{}", KT_ERROR_NOT_FOUND, "quantization_config.quant_method"},
    {"[]", KT_ERROR_FORMAT, "quantization_config"},
    {"{\"quant_method\":7}", KT_ERROR_FORMAT, "quantization_config.quant_method"},
    {"{\"quant_method\":\"fp8\"}", KT_ERROR_NOT_FOUND, "quantization_config.weight_block_size"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":128}", KT_ERROR_FORMAT, "weight_block_size"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}", KT_ERROR_FORMAT, "two sizes"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}", KT_ERROR_FORMAT, "two sizes"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[-128,128]}", KT_ERROR_FORMAT, "two sizes"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[1e3,\"1\"]}", KT_ERROR_FORMAT, "two sizes"},
    {"{\"quant_method\":\"fp8\",\"weight_block_size\":[128,99999999999]}", KT_ERROR_FORMAT,
     "sizes"},
    {"{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\",\"weight_block_size\":[128,128]}",
     KT_ERROR_UNSUPPORTED, "e5m2"},
    {"{\"quant_method\":\"kt\"}", KT_ERROR_NOT_FOUND, "quantization_config.bits"},
    {"{\"quant_method\":\"kt\",\"bits\":3}", KT_ERROR_FORMAT, "quantization_config.bits"},
    {"{\"quant_method\":\"kt\",\"bits\":6}", KT_ERROR_UNSUPPORTED, "8 or 4"},
    {"{\"quant_method\":\"kt\",\"bits\":4}", KT_ERROR_NOT_FOUND, "group_size"},
    {"{\"quant_method\":\"kt\",\"bits\":4,\"group_size\":0}", KT_ERROR_FORMAT, "group_size"},
    {"{\"quant_method\":\"kt\",\"bits\":4,\"group_size\":33}", KT_ERROR_FORMAT, "even"},
};

START_TEST(bad_configurations_are_refused)
{
    tiny_set(&tiny, "quantization_config", bad_configs[_i].config);
    ck_assert_fails(tiny_load(&tiny, &model), bad_configs[_i].status, bad_configs[_i].sentence);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "config.json"));
    ck_assert_ptr_null(model);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("load", .setup = setup, .teardown = teardown),
        LOOP(every_matrix_can_be_quantised, FORMATS),
        TEST(formats_mix),
        TEST(tied_embeddings_are_counted_once),
        LOOP(narrow_scales_are_widened, 2),
        LOOP(missing_scales_are_named, FORMATS),
        TEST(scales_of_another_shape_are_named),
        TEST(scales_of_another_dtype_are_named),
        LOOP(scales_are_finite_and_not_negative, sizeof bad_scales / sizeof *bad_scales),
        LOOP(nan_is_found_in_fp8, 2),
        LOOP(dtypes_that_nothing_describes_are_refused, FORMATS),
        TEST(shapes_are_told_in_elements),
        TEST(misaligned_scales_are_named),
        TEST(norms_must_be_plain),
        LOOP(bad_configurations_are_refused, sizeof bad_configs / sizeof *bad_configs),
    };
    return RUN_TESTS("quantization", tests);
}
