/* SPDX-License-Identifier: Apache-2.0 */
/* Every element type in one table. docs/adding-a-weight-format.md walks through a new row. */
#include <float.h>

#include "core/memory.h"
#include "weights/dtype.h"
#include "weights/formats.h"
#include "weights/weight.h"

static const struct {
    const char *name;
    size_t size; /* of an element; 0 for those stored in blocks */
    struct kt_format weight;
} dtypes[] = {
    /* No weights: other tensors of safetensors files. */
    [KT_DTYPE_F64] = {"F64", 8, {0}},
    [KT_DTYPE_I64] = {"I64", 8, {0}},
    [KT_DTYPE_I32] = {"I32", 4, {0}},
    [KT_DTYPE_U8] = {"U8", 1, {0}},
    [KT_DTYPE_BOOL] = {"BOOL", 1, {0}},

    [KT_DTYPE_F32] = {"F32", 4, {1, 4, kt_decode_f32, kt_encode_f32, 0, FLT_MAX}},
    [KT_DTYPE_F16] = {"F16", 2, {1, 2, kt_decode_f16, NULL, 0, 0}},
    [KT_DTYPE_BF16] = {"BF16", 2, {1, 2, kt_decode_bf16, kt_encode_bf16, 0, 0x1.fefffep127f}},
    [KT_DTYPE_F8_E4M3] = {"F8_E4M3", 1, {1, 1, kt_decode_f8_e4m3, kt_encode_f8_e4m3, 448, FLT_MAX}},
    [KT_DTYPE_I8] = {"I8", 1, {1, 1, kt_decode_i8, kt_encode_i8, 127, FLT_MAX}},
    [KT_DTYPE_I4] = {"I4", 0, {2, 1, kt_decode_i4, kt_encode_i4, 7, FLT_MAX}},
    [KT_DTYPE_Q8_0] = {"Q8_0", 0, {32, 34, kt_decode_q8_0, NULL, 0, 0}},
    [KT_DTYPE_Q4_0] = {"Q4_0", 0, {32, 18, kt_decode_q4_0, NULL, 0, 0}},
    [KT_DTYPE_Q4_K] = {"Q4_K", 0, {256, 144, kt_decode_q4_k, NULL, 0, 0}},
    [KT_DTYPE_Q6_K] = {"Q6_K", 0, {256, 210, kt_decode_q6_k, NULL, 0, 0}},
};

enum { NUM_DTYPES = sizeof dtypes / sizeof *dtypes };

const char *kt_dtype_name(int32_t dtype)
{
    return (unsigned)dtype < NUM_DTYPES ? dtypes[dtype].name : "?";
}

size_t kt_dtype_size(kt_dtype dtype)
{
    return (unsigned)dtype < NUM_DTYPES ? dtypes[dtype].size : 0;
}

bool kt_dtype_from_name(const char *name, kt_dtype *out)
{
    for (unsigned i = 0; i < NUM_DTYPES; i++) {
        if (dtypes[i].size && strcmp(dtypes[i].name, name) == 0) {
            *out = (kt_dtype)i;
            return true;
        }
    }
    return false;
}

const struct kt_format *kt_format_of(kt_dtype dtype)
{
    return (unsigned)dtype < NUM_DTYPES && dtypes[dtype].weight.block ? &dtypes[dtype].weight
                                                                      : NULL;
}

uint64_t kt_format_row_bytes(kt_dtype dtype, int64_t cols)
{
    const struct kt_format *f = kt_format_of(dtype);
    uint64_t bytes;
    if (!f || cols < 0 || cols % f->block ||
        !kt_mul_u64((uint64_t)(cols / f->block), (uint64_t)f->block_bytes, &bytes))
        return 0;
    return bytes;
}
