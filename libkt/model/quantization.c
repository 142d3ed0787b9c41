/* SPDX-License-Identifier: Apache-2.0 */
#include "model/quantization.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"

enum { MAX_BLOCK_SIZE = 1 << 24 };

static kt_status bad_block_size(const struct kt_json *json)
{
    return kt_fail(json->ctx, KT_ERROR_FORMAT,
                   "%s: \"%sweight_block_size\" must be two sizes from 1 to %d, such as [128, 128]",
                   json->path, json->prefix, MAX_BLOCK_SIZE);
}

static kt_status read_block_size(const struct kt_json *json, enum kt_json_need need,
                                 struct kt_quantization *q)
{
    json_t *sizes = NULL;
    int32_t *const to[2] = {&q->block_rows, &q->block_cols};
    KT_TRY(kt_json_container(json, "weight_block_size", need, JSON_ARRAY, &sizes));
    if (!sizes)
        return KT_OK;
    if (json_array_size(sizes) != 2)
        return bad_block_size(json);
    for (size_t i = 0; i < 2; i++) {
        const json_t *size = json_array_get(sizes, i);
        if (!json_is_integer(size) || json_integer_value(size) < 1 ||
            json_integer_value(size) > MAX_BLOCK_SIZE)
            return bad_block_size(json);
        *to[i] = (int32_t)json_integer_value(size);
    }
    return KT_OK;
}

static kt_status read_fp8(const struct kt_json *json, struct kt_quantization *q)
{
    const char *fmt = "e4m3";
    KT_TRY(kt_json_string(json, "fmt", KT_JSON_OPTIONAL, &fmt));
    if (strcmp(fmt, "e4m3") != 0)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%sfmt\" is \"%s\"; of FP8 formats only e4m3 is supported", json->path,
                       json->prefix, fmt);
    return read_block_size(json, KT_JSON_REQUIRED, q);
}

static kt_status read_kt(const struct kt_json *json, struct kt_quantization *q)
{
    int32_t bits = 0;
    KT_TRY(kt_config_int(json, "bits", true, 4, 8, &bits));
    if (bits != 4 && bits != 8)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED, "%s: \"%sbits\" is %d; it can be 8 or 4",
                       json->path, json->prefix, bits);
    KT_TRY(kt_config_int(json, "group_size", bits == 4, 2, MAX_BLOCK_SIZE, &q->group_size));
    if (q->group_size % 2)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"%sgroup_size\" is %d; it must be even, since a byte holds two "
                       "elements",
                       json->path, json->prefix, q->group_size);
    q->int8 = true;
    return read_block_size(json, KT_JSON_OPTIONAL, q);
}

kt_status kt_quantization_read(const struct kt_json *config, struct kt_quantization *q)
{
    json_t *object = NULL;
    const char *method;
    KT_TRY(
        kt_json_container(config, "quantization_config", KT_JSON_OPTIONAL, JSON_OBJECT, &object));
    if (!object)
        return KT_OK;
    struct kt_json json = {config->ctx, config->path, "quantization_config.", object};
    KT_TRY(kt_json_string(&json, "quant_method", KT_JSON_REQUIRED, &method));
    if (strcmp(method, "fp8") == 0)
        return read_fp8(&json, q);
    if (strcmp(method, "kt") == 0)
        return read_kt(&json, q);
    return kt_fail(json.ctx, KT_ERROR_UNSUPPORTED,
                   "%s: the checkpoint is quantised with \"%s\", which is not supported; take the "
                   "model's BF16 or FP8 checkpoint, which kt convert makes smaller (fp8, int8, "
                   "int4)",
                   json.path, method);
}

const char *kt_scale_suffix(kt_dtype dtype)
{
    switch (dtype) {
    case KT_DTYPE_F8_E4M3:
        return "_scale_inv";
    case KT_DTYPE_I8:
    case KT_DTYPE_I4:
        return "_scale";
    default:
        return NULL;
    }
}

kt_dtype kt_tensor_weight_dtype(const struct kt_tensor *t)
{
    return t->dtype == KT_DTYPE_U8 ? KT_DTYPE_I4 : t->dtype;
}

kt_status kt_tensor_check_aligned(kt_context *ctx, const struct kt_tensor *t)
{
    size_t size = kt_dtype_size(t->dtype);
    if (!size || (uintptr_t)t->data % size == 0)
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_FORMAT,
                   "%s: tensor %s does not start at a multiple of its element size; write the "
                   "file again with a current safetensors package",
                   t->file, t->name);
}

static kt_status not_described(kt_context *ctx, const struct kt_tensor *t, const char *wanted)
{
    return kt_fail(
        ctx, KT_ERROR_UNSUPPORTED,
        "%s: tensor %s has dtype %s, but config.json has no quantization_config with %s; "
        "are the two from one checkpoint?",
        t->file, t->name, t->dtype_name, wanted);
}

/* Sets dtype and the block that shares a scale. */
static kt_status describe(kt_context *ctx, const struct kt_quantization *q,
                          const struct kt_tensor *t, struct kt_weight *w)
{
    w->dtype = kt_tensor_weight_dtype(t);
    if (!kt_format_of(w->dtype))
        return kt_fail(
            ctx, KT_ERROR_UNSUPPORTED,
            "%s: tensor %s has dtype %s, which is not a weight's; libkt reads BF16, F16, "
            "F32, FP8 (e4m3), INT8 and INT4, so convert the checkpoint to BF16 first",
            t->file, t->name, t->dtype_name);
    if (w->dtype == KT_DTYPE_F8_E4M3 && !q->block_rows)
        return not_described(ctx, t, "\"weight_block_size\"");
    if (w->dtype == KT_DTYPE_I8 && !q->int8)
        return not_described(ctx, t, "\"quant_method\": \"kt\"");
    if (w->dtype == KT_DTYPE_I4 && !q->group_size)
        return not_described(ctx, t, "\"quant_method\": \"kt\" and \"group_size\"");
    w->scale_rows = w->dtype == KT_DTYPE_F8_E4M3 ? q->block_rows : 1;
    w->scale_cols = w->dtype == KT_DTYPE_F8_E4M3 ? q->block_cols
                    : w->dtype == KT_DTYPE_I4    ? q->group_size
                                                 : INT64_MAX;
    return KT_OK;
}

static kt_status check_size(kt_context *ctx, const struct kt_tensor *t, const struct kt_weight *w)
{
    uint64_t row = kt_format_row_bytes(w->dtype, w->cols), bytes;
    if (row && !__builtin_mul_overflow(row, (uint64_t)w->rows, &bytes) && bytes == t->bytes)
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_FORMAT,
                   "%s: tensor %s: %llu bytes are not the size of %lld x %lld elements of %s",
                   t->file, t->name, (unsigned long long)t->bytes, (long long)w->rows,
                   (long long)w->cols, kt_dtype_name(w->dtype));
}

static kt_status check_scales(kt_context *ctx, const struct kt_tensor *t, const struct kt_weight *w,
                              const struct kt_tensor *scales)
{
    const int64_t want[2] = {(w->rows - 1) / w->scale_rows + 1, (w->cols - 1) / w->scale_cols + 1};
    char found[128], wanted[128];
    if (scales->dtype != KT_DTYPE_F32 && scales->dtype != KT_DTYPE_BF16 &&
        scales->dtype != KT_DTYPE_F16)
        return kt_fail(ctx, KT_ERROR_UNSUPPORTED,
                       "%s: the scales %s have dtype %s; they must be F32, BF16 or F16",
                       scales->file, scales->name, scales->dtype_name);
    if (scales->ndim != 2 || memcmp(scales->shape, want, sizeof want) != 0)
        return kt_fail(ctx, KT_ERROR_MISMATCH,
                       "%s: the scales %s have shape %s, but %s and config.json's "
                       "quantization_config ask for %s",
                       scales->file, scales->name,
                       kt_shape_text(scales->ndim, scales->shape, found, sizeof found), t->name,
                       kt_shape_text(2, want, wanted, sizeof wanted));
    return kt_tensor_check_aligned(ctx, scales);
}

static kt_status find_scales(kt_context *ctx, const struct kt_checkpoint *c,
                             const struct kt_tensor *t, kt_dtype dtype,
                             const struct kt_tensor **scales)
{
    char *name;
    if (asprintf(&name, "%s%s", t->name, kt_scale_suffix(dtype)) < 0)
        return kt_fail_memory(ctx, 0, "a tensor's name");
    kt_status status = KT_OK;
    *scales = kt_checkpoint_find(c, name);
    if (!*scales)
        status = kt_fail(ctx, KT_ERROR_NOT_FOUND,
                         "%s: tensor %s has dtype %s, but its scales, %s, are missing; copy or "
                         "download the checkpoint again",
                         t->file, t->name, t->dtype_name, name);
    free(name);
    return status;
}

kt_status kt_tensor_weight(kt_context *ctx, const struct kt_checkpoint *c,
                           const struct kt_quantization *q, const struct kt_tensor *t,
                           struct kt_weight *w, const struct kt_tensor **scales)
{
    char shape[128];
    *scales = NULL;
    *w = (struct kt_weight){.data = t->data};
    KT_TRY(describe(ctx, q, t, w));
    KT_TRY(kt_tensor_check_aligned(ctx, t));
    if (t->ndim != 2 || t->shape[0] < 1 || t->shape[1] < 1 || t->shape[1] > INT64_MAX / 2)
        return kt_fail(ctx, KT_ERROR_MISMATCH, "%s: tensor %s has shape %s, which is no matrix",
                       t->file, t->name, kt_shape_text(t->ndim, t->shape, shape, sizeof shape));
    w->rows = t->shape[0];
    w->cols = t->dtype == KT_DTYPE_U8 ? 2 * t->shape[1] : t->shape[1];
    KT_TRY(check_size(ctx, t, w));
    if (!kt_scale_suffix(w->dtype))
        return KT_OK;
    KT_TRY(find_scales(ctx, c, t, w->dtype, scales));
    KT_TRY(check_scales(ctx, t, w, *scales));
    w->scale = (*scales)->dtype == KT_DTYPE_F32 ? (*scales)->data : NULL;
    w->scale_cols = w->scale_cols < w->cols ? w->scale_cols : w->cols;
    w->scale_ld = (*scales)->shape[1];
    return KT_OK;
}
