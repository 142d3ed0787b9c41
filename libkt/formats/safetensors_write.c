/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "formats/atomic_file.h"
#include "formats/json.h"
#include "formats/safetensors.h"

static kt_status check_size(kt_context *ctx, const char *path, const struct kt_tensor *t)
{
    uint64_t bytes = kt_dtype_size(t->dtype);
    for (int32_t i = 0; i < t->ndim; i++)
        if (t->shape[i] < 0 || !kt_mul_u64(bytes, (uint64_t)t->shape[i], &bytes))
            bytes = 0;
    if ((t->dtype != KT_DTYPE_UNKNOWN && bytes != t->bytes) || t->ndim > KT_MAX_DIMENSIONS)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: tensor %s: its size does not fit its shape and dtype", path, t->name);
    return KT_OK;
}

/* NULL when memory is out. */
static json_t *describe(const struct kt_tensor *t, uint64_t offset)
{
    json_t *shape = json_array();
    for (int32_t i = 0; i < t->ndim; i++) {
        if (json_array_append_new(shape, json_integer(t->shape[i])) != 0) {
            json_decref(shape);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype",
                     t->dtype == KT_DTYPE_UNKNOWN ? t->dtype_name : kt_dtype_name(t->dtype),
                     "shape", shape, "data_offsets", (json_int_t)offset,
                     (json_int_t)(offset + t->bytes));
}

static bool add_metadata(const char *const *metadata, json_t *header)
{
    json_t *pairs = json_object();
    bool ok = json_object_set_new(header, "__metadata__", pairs) == 0;
    for (; ok && metadata[0]; metadata += 2)
        ok = json_object_set_new(pairs, metadata[0], json_string(metadata[1])) == 0;
    return ok;
}

static kt_status fill_header(kt_context *ctx, const char *path, const struct kt_tensor *tensors,
                             size_t num, const char *const *metadata, json_t *header)
{
    uint64_t offset = 0;
    if (metadata && !add_metadata(metadata, header))
        return kt_fail_memory(ctx, 0, "a safetensors header");
    for (size_t i = 0; i < num; i++) {
        KT_TRY(check_size(ctx, path, &tensors[i]));
        if (json_object_get(header, tensors[i].name))
            return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s: tensor %s is given twice", path,
                           tensors[i].name);
        if (json_object_set_new(header, tensors[i].name, describe(&tensors[i], offset)) != 0)
            return kt_fail_memory(ctx, 0, "a safetensors header");
        offset += tensors[i].bytes;
    }
    return KT_OK;
}

/* The length before `text` and spaces behind it, so that data are aligned. */
static kt_status frame(kt_context *ctx, const char *text, char **header, size_t *size)
{
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    *size = 8 + padded;
    *header = malloc(*size);
    if (!*header)
        return kt_fail_memory(ctx, *size, "a safetensors header");
    for (int i = 0; i < 8; i++)
        (*header)[i] = (char)(unsigned char)((uint64_t)padded >> (8 * i));
    memcpy(*header + 8, text, length);
    memset(*header + 8 + length, ' ', padded - length);
    return KT_OK;
}

kt_status kt_safetensors_header(kt_context *ctx, const char *path, const struct kt_tensor *tensors,
                                size_t num, const char *const *metadata, char **header,
                                size_t *size)
{
    json_t *object = json_object();
    char *text = NULL;
    kt_status status = object ? fill_header(ctx, path, tensors, num, metadata, object)
                              : kt_fail_memory(ctx, 0, "a safetensors header");
    if (status == KT_OK)
        status = kt_json_encode(ctx, path, object, JSON_COMPACT, &text);
    if (status == KT_OK)
        status = frame(ctx, text, header, size);
    free(text);
    json_decref(object);
    return status;
}

kt_status kt_safetensors_write(kt_context *ctx, const char *path, const struct kt_tensor *tensors,
                               size_t num, const char *const *metadata)
{
    struct kt_atomic_file *f = NULL;
    char *header;
    size_t size;
    KT_TRY(kt_safetensors_header(ctx, path, tensors, num, metadata, &header, &size));
    kt_status status = kt_atomic_open(ctx, path, &f);
    if (status == KT_OK)
        status = kt_atomic_write(f, header, size);
    free(header);
    for (size_t i = 0; i < num && status == KT_OK; i++)
        status = kt_atomic_write(f, tensors[i].data, tensors[i].bytes);
    if (status == KT_OK)
        return kt_atomic_commit(f);
    kt_atomic_discard(f);
    return status;
}
