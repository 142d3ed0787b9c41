/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/gguf_header.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "formats/gguf_bytes.h"
#include "formats/safetensors_header.h"

enum {
    MAX_DIMENSIONS = 4,
    MAX_NAME = 200,
    MAX_KEYS = 1 << 16,
    MAX_TENSORS = 1 << 20,
    LEAST_PAIR = 8 + 1 + 4 + 1,       /* bytes: a key of one letter, type, value of one byte */
    LEAST_TENSOR = 8 + 1 + 4 + 4 + 8, /* a name of one letter, no dimensions, type, offset */
    DEFAULT_ALIGNMENT = 32
};

/* The types of the format by their numbers: elements and bytes of a block, whether libkt has a
 * decoder for them or not. */
static const struct type {
    const char *name;
    kt_dtype dtype;
    uint32_t block, bytes;
} types[] = {
    [0] = {"F32", KT_DTYPE_F32, 1, 4},
    [1] = {"F16", KT_DTYPE_F16, 1, 2},
    [2] = {"Q4_0", KT_DTYPE_Q4_0, 32, 18},
    [3] = {"Q4_1", KT_DTYPE_UNKNOWN, 32, 20},
    [6] = {"Q5_0", KT_DTYPE_UNKNOWN, 32, 22},
    [7] = {"Q5_1", KT_DTYPE_UNKNOWN, 32, 24},
    [8] = {"Q8_0", KT_DTYPE_Q8_0, 32, 34},
    [9] = {"Q8_1", KT_DTYPE_UNKNOWN, 32, 36},
    [10] = {"Q2_K", KT_DTYPE_UNKNOWN, 256, 84},
    [11] = {"Q3_K", KT_DTYPE_UNKNOWN, 256, 110},
    [12] = {"Q4_K", KT_DTYPE_Q4_K, 256, 144},
    [13] = {"Q5_K", KT_DTYPE_UNKNOWN, 256, 176},
    [14] = {"Q6_K", KT_DTYPE_Q6_K, 256, 210},
    [15] = {"Q8_K", KT_DTYPE_UNKNOWN, 256, 292},
    [16] = {"IQ2_XXS", KT_DTYPE_UNKNOWN, 256, 66},
    [17] = {"IQ2_XS", KT_DTYPE_UNKNOWN, 256, 74},
    [18] = {"IQ3_XXS", KT_DTYPE_UNKNOWN, 256, 98},
    [19] = {"IQ1_S", KT_DTYPE_UNKNOWN, 256, 50},
    [20] = {"IQ4_NL", KT_DTYPE_UNKNOWN, 32, 18},
    [21] = {"IQ3_S", KT_DTYPE_UNKNOWN, 256, 110},
    [22] = {"IQ2_S", KT_DTYPE_UNKNOWN, 256, 82},
    [23] = {"IQ4_XS", KT_DTYPE_UNKNOWN, 256, 136},
    [24] = {"I8", KT_DTYPE_UNKNOWN, 1, 1}, /* KT_DTYPE_I8 has scales beside it */
    [25] = {"I16", KT_DTYPE_UNKNOWN, 1, 2},
    [26] = {"I32", KT_DTYPE_I32, 1, 4},
    [27] = {"I64", KT_DTYPE_I64, 1, 8},
    [28] = {"F64", KT_DTYPE_F64, 1, 8},
    [29] = {"IQ1_M", KT_DTYPE_UNKNOWN, 256, 56},
    [30] = {"BF16", KT_DTYPE_BF16, 1, 2},
    [34] = {"TQ1_0", KT_DTYPE_UNKNOWN, 256, 54},
    [35] = {"TQ2_0", KT_DTYPE_UNKNOWN, 256, 66},
    [39] = {"MXFP4", KT_DTYPE_UNKNOWN, 32, 17},
};

static kt_status bad_tensor(const struct kt_gguf_bytes *b, const struct kt_tensor *t,
                            const char *problem)
{
    return kt_fail(b->ctx, KT_ERROR_FORMAT, "%s: tensor %s: %s; the file is damaged", b->path,
                   t->name, problem);
}

/* The file lists dimensions from the one that runs fastest. */
static kt_status read_shape(struct kt_gguf_bytes *b, struct kt_tensor *t)
{
    uint64_t ndim, size;
    KT_TRY(kt_gguf_number(b, 4, t->name, &ndim));
    if (ndim < 1 || ndim > MAX_DIMENSIONS)
        return bad_tensor(b, t, "it has no dimension or more than 4");
    t->ndim = (int32_t)ndim;
    for (int32_t i = t->ndim - 1; i >= 0; i--) {
        KT_TRY(kt_gguf_number(b, 8, t->name, &size));
        if (size < 1 || size > INT64_MAX)
            return bad_tensor(b, t, "one of its dimensions is 0 or too large");
        t->shape[i] = (int64_t)size;
    }
    return KT_OK;
}

static kt_status read_type(struct kt_gguf_bytes *b, struct kt_tensor *t)
{
    uint64_t number, elements = 1;
    KT_TRY(kt_gguf_number(b, 4, t->name, &number));
    if (number >= sizeof types / sizeof *types || !types[number].name)
        return kt_fail(b->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: tensor %s has type %llu, which is not known; is the file newer than "
                       "this program?",
                       b->path, t->name, (unsigned long long)number);
    const struct type *type = &types[number];
    t->dtype = type->dtype;
    t->dtype_name = strdup(type->name);
    if (!t->dtype_name)
        return kt_fail_memory(b->ctx, 0, "the list of tensors");
    for (int32_t i = 0; i < t->ndim; i++)
        if (!kt_mul_u64(elements, (uint64_t)t->shape[i], &elements))
            return bad_tensor(b, t, "its shape overflows");
    if (t->shape[t->ndim - 1] % type->block)
        return bad_tensor(b, t, "its rows do not consist of whole blocks of its type");
    return kt_mul_u64(elements / type->block, type->bytes, &t->bytes)
               ? KT_OK
               : bad_tensor(b, t, "its shape overflows");
}

/* t->data is the offset behind the header until place_data. */
static kt_status read_tensor(struct kt_gguf_bytes *b, struct kt_tensor *t)
{
    uint64_t offset;
    char *name = NULL;
    KT_TRY(kt_gguf_name(b, "the name of a tensor", &name));
    t->name = name;
    t->file = b->path;
    if (strlen(name) > MAX_NAME)
        return bad_tensor(b, t, "its name is too long");
    KT_TRY(read_shape(b, t));
    KT_TRY(read_type(b, t));
    KT_TRY(kt_gguf_number(b, 8, t->name, &offset));
    t->data = (const void *)(uintptr_t)offset;
    return KT_OK;
}

static int by_data(const void *a, const void *b)
{
    const struct kt_tensor *x = *(const struct kt_tensor *const *)a,
                           *y = *(const struct kt_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

static kt_status check_overlap(const struct kt_gguf_bytes *b, struct kt_tensor *tensors, size_t num)
{
    kt_status status = KT_OK;
    const struct kt_tensor **sorted = malloc((num + 1) * sizeof *sorted);
    if (!sorted)
        return kt_fail_memory(b->ctx, num * sizeof *sorted, "the list of tensors");
    for (size_t i = 0; i < num; i++)
        sorted[i] = &tensors[i];
    qsort(sorted, num, sizeof *sorted, by_data);
    for (size_t i = 1; i < num && status == KT_OK; i++)
        if ((const char *)sorted[i]->data <
            (const char *)sorted[i - 1]->data + sorted[i - 1]->bytes)
            status = bad_tensor(b, sorted[i], "its bytes overlap with another tensor's");
    free(sorted);
    return status;
}

/* Turns offsets into addresses. */
static kt_status place_data(const struct kt_gguf_bytes *b, uint64_t alignment,
                            struct kt_tensor *tensors, size_t num)
{
    uint64_t begin = (b->at + alignment - 1) / alignment * alignment;
    uint64_t data_bytes = begin <= b->size ? b->size - begin : 0;
    for (size_t i = 0; i < num; i++) {
        struct kt_tensor *t = &tensors[i];
        uint64_t offset = (uint64_t)(uintptr_t)t->data;
        if (offset % alignment)
            return bad_tensor(b, t, "it does not start at a multiple of the alignment");
        if (offset > data_bytes || t->bytes > data_bytes - offset)
            return kt_fail(
                b->ctx, KT_ERROR_FORMAT,
                "%s: truncated: tensor %s takes %llu bytes from byte %llu of the data on, "
                "but the file has %llu; copy or download the file again",
                b->path, t->name, (unsigned long long)t->bytes, (unsigned long long)offset,
                (unsigned long long)data_bytes);
        t->data = b->bytes + begin + offset;
    }
    return check_overlap(b, tensors, num);
}

static kt_status read_alignment(const struct kt_gguf_bytes *b, const json_t *metadata,
                                uint64_t *alignment)
{
    int64_t value = DEFAULT_ALIGNMENT;
    struct kt_json json = {b->ctx, b->path, "", metadata};
    KT_TRY(kt_json_int(&json, "general.alignment", KT_JSON_OPTIONAL, 1, 1 << 30, &value));
    if (value & (value - 1))
        return kt_fail(b->ctx, KT_ERROR_FORMAT,
                       "%s: \"general.alignment\" is %lld, which is not a power of two", b->path,
                       (long long)value);
    *alignment = (uint64_t)value;
    return KT_OK;
}

static kt_status check_version(struct kt_gguf_bytes *b)
{
    const uint8_t *magic;
    uint64_t version;
    KT_TRY(kt_gguf_take(b, 4, "the beginning of a GGUF file", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return kt_fail(b->ctx, KT_ERROR_FORMAT,
                       "%s: does not begin with \"GGUF\"; it is not a GGUF file", b->path);
    KT_TRY(kt_gguf_number(b, 4, "the version", &version));
    if (version == 2 || version == 3)
        return KT_OK;
    return kt_fail(b->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: GGUF version %llu is not supported; versions 2 and 3, little-endian, are",
                   b->path, (unsigned long long)version);
}

static kt_status read_all(struct kt_gguf_bytes *b, struct kt_tensor **tensors, size_t *num,
                          json_t **metadata)
{
    uint64_t num_tensors, num_keys, alignment = 0;
    KT_TRY(check_version(b));
    KT_TRY(kt_gguf_count(b, "the number of tensors", LEAST_TENSOR, MAX_TENSORS, &num_tensors));
    KT_TRY(kt_gguf_count(b, "the number of metadata keys", LEAST_PAIR, MAX_KEYS, &num_keys));
    KT_TRY(kt_gguf_read_metadata(b, num_keys, metadata));
    KT_TRY(read_alignment(b, *metadata, &alignment));
    *tensors = calloc((size_t)num_tensors + 1, sizeof **tensors);
    if (!*tensors)
        return kt_fail_memory(b->ctx, num_tensors * sizeof **tensors, "the list of tensors");
    while (*num < num_tensors)
        KT_TRY(read_tensor(b, &(*tensors)[(*num)++]));
    return place_data(b, alignment, *tensors, *num);
}

/* Most of a file is weights; this much may be metadata. */
enum { METADATA_BYTES = 40 << 20 };

kt_status kt_gguf_parse(kt_context *ctx, const char *path, const void *bytes, uint64_t size,
                        struct kt_tensor **tensors, size_t *num, json_t **metadata)
{
    struct kt_gguf_bytes b = {.ctx = ctx, .path = path, .bytes = bytes, .size = size};
    *tensors = NULL;
    *num = 0;
    *metadata = NULL;
    kt_budget_start(&b.budget, ctx, path, size < METADATA_BYTES ? size : METADATA_BYTES);
    kt_status status = read_all(&b, tensors, num, metadata);
    if (status == KT_OK)
        return KT_OK;
    kt_tensors_free(*tensors, *num);
    json_decref(*metadata);
    *tensors = NULL;
    *num = 0;
    *metadata = NULL;
    return status;
}
