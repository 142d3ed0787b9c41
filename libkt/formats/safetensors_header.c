/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/safetensors_header.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "formats/json.h"

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100000000 };

struct file_view {
    kt_context *ctx;
    const char *path;
    const char *data; /* behind the header */
    uint64_t data_bytes;
};

static kt_status bad_tensor(const struct file_view *f, const char *name, const char *problem)
{
    return kt_fail(f->ctx, KT_ERROR_FORMAT, "%s: tensor %s: %s; the file is damaged", f->path, name,
                   problem);
}

static kt_status read_shape(const struct file_view *f, const json_t *shape, struct kt_tensor *t,
                            uint64_t *elements)
{
    *elements = 1;
    if (!json_is_array(shape))
        return bad_tensor(f, t->name, "it has no \"shape\" list");
    if (json_array_size(shape) > KT_MAX_DIMENSIONS)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: tensor %s has %zu dimensions; at most %d can be used", f->path, t->name,
                       json_array_size(shape), KT_MAX_DIMENSIONS);
    t->ndim = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->ndim; i++) {
        const json_t *n = json_array_get(shape, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 0)
            return bad_tensor(f, t->name, "its shape holds something else than sizes");
        t->shape[i] = json_integer_value(n);
        if (!kt_mul_u64(*elements, (uint64_t)t->shape[i], elements))
            return bad_tensor(f, t->name, "its shape overflows");
    }
    return KT_OK;
}

static kt_status read_range(const struct file_view *f, const json_t *range, struct kt_tensor *t)
{
    const json_t *first = json_array_get(range, 0), *last = json_array_get(range, 1);
    if (json_array_size(range) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        json_integer_value(first) < 0 || json_integer_value(last) < json_integer_value(first))
        return bad_tensor(f, t->name, "its \"data_offsets\" are not two rising numbers");
    uint64_t begin = (uint64_t)json_integer_value(first), end = (uint64_t)json_integer_value(last);
    if (end > f->data_bytes)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: truncated: tensor %s ends at byte %llu of the data, but the file has "
                       "%llu; copy or download the file again",
                       f->path, t->name, (unsigned long long)end,
                       (unsigned long long)f->data_bytes);
    t->data = f->data + begin;
    t->bytes = end - begin;
    return KT_OK;
}

static kt_status read_tensor(const struct file_view *f, const json_t *entry, struct kt_tensor *t)
{
    uint64_t elements, bytes;
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype)
        return bad_tensor(f, t->name, "it has no \"dtype\"");
    if (!kt_dtype_from_name(dtype, &t->dtype))
        t->dtype = KT_DTYPE_UNKNOWN;
    t->dtype_name = strdup(dtype);
    if (!t->dtype_name)
        return kt_fail_memory(f->ctx, strlen(dtype), "the list of tensors");
    KT_TRY(read_shape(f, json_object_get(entry, "shape"), t, &elements));
    KT_TRY(read_range(f, json_object_get(entry, "data_offsets"), t));
    if (t->dtype == KT_DTYPE_UNKNOWN)
        return KT_OK;
    if (!kt_mul_u64(elements, kt_dtype_size(t->dtype), &bytes) || bytes != t->bytes)
        return bad_tensor(f, t->name, "its byte range does not have the size of its shape");
    return KT_OK;
}

static int by_data(const void *a, const void *b)
{
    const struct kt_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The format wants the data to be covered exactly once. */
static kt_status check_cover(const struct file_view *f, const struct kt_tensor *tensors, size_t num)
{
    uint64_t covered = 0;
    for (size_t i = 0; i < num; i++) {
        uint64_t begin = (uint64_t)((const char *)tensors[i].data - f->data);
        if (begin < covered)
            return bad_tensor(f, tensors[i].name, "its bytes overlap with another tensor's");
        if (begin > covered)
            return bad_tensor(f, tensors[i].name, "there is a gap in front of its bytes");
        covered = begin + tensors[i].bytes;
    }
    if (covered != f->data_bytes)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: %llu bytes follow the last tensor; the file is damaged", f->path,
                       (unsigned long long)(f->data_bytes - covered));
    return KT_OK;
}

static kt_status read_tensors(const struct file_view *f, json_t *header, struct kt_tensor *tensors,
                              size_t *num)
{
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        struct kt_tensor *t = &tensors[(*num)++];
        t->file = f->path;
        t->name = strdup(name);
        if (!t->name)
            return kt_fail_memory(f->ctx, strlen(name), "the list of tensors");
        KT_TRY(read_tensor(f, entry, t));
    }
    qsort(tensors, *num, sizeof *tensors, by_data);
    return check_cover(f, tensors, *num);
}

static kt_status load_header(kt_context *ctx, const char *path, const unsigned char *bytes,
                             uint64_t size, struct file_view *view, json_t **header)
{
    uint64_t length = 0;
    json_error_t error;
    if (size < LENGTH_BYTES)
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: truncated: %llu bytes are too few for a safetensors file", path,
                       (unsigned long long)size);
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)bytes[i] << (8 * i);
    if (length > size - LENGTH_BYTES || length > MAX_HEADER_BYTES)
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: the header claims %llu bytes but the file has %llu (limit %d); it is "
                       "truncated or not a safetensors file",
                       path, (unsigned long long)length, (unsigned long long)size,
                       MAX_HEADER_BYTES);
    kt_status status = kt_json_decode(ctx, path, (const char *)bytes + LENGTH_BYTES, (size_t)length,
                                      JSON_REJECT_DUPLICATES, header, &error);
    if (status == KT_ERROR_OUT_OF_MEMORY)
        return status;
    if (!json_is_object(*header)) {
        const char *problem = *header ? "not a JSON object" : error.text;
        json_decref(*header);
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: malformed safetensors header: %s", path, problem);
    }
    *view = (struct file_view){ctx, path, (const char *)bytes + LENGTH_BYTES + length,
                               size - LENGTH_BYTES - length};
    return KT_OK;
}

kt_status kt_safetensors_parse(kt_context *ctx, const char *path, const void *bytes, uint64_t size,
                               struct kt_tensor **tensors, size_t *num)
{
    struct file_view view = {0};
    json_t *header = NULL;
    *tensors = NULL;
    *num = 0;
    KT_TRY(load_header(ctx, path, bytes, size, &view, &header));
    struct kt_tensor *list = calloc(json_object_size(header) + 1, sizeof *list);
    kt_status status = list ? read_tensors(&view, header, list, num)
                            : kt_fail_memory(ctx, json_object_size(header), "the list of tensors");
    json_decref(header);
    if (status == KT_OK) {
        *tensors = list;
    } else {
        kt_tensors_free(list, *num);
        *num = 0;
    }
    return status;
}

void kt_tensors_free(struct kt_tensor *tensors, size_t num)
{
    for (size_t i = 0; i < num; i++) {
        free((char *)tensors[i].name);
        free((char *)tensors[i].dtype_name);
    }
    free(tensors);
}
