/* SPDX-License-Identifier: Apache-2.0 */
#include "weights/dtype.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [KT_DTYPE_F32] = {"F32", 4},         [KT_DTYPE_F16] = {"F16", 2},
    [KT_DTYPE_BF16] = {"BF16", 2},       [KT_DTYPE_F64] = {"F64", 8},
    [KT_DTYPE_I64] = {"I64", 8},         [KT_DTYPE_I32] = {"I32", 4},
    [KT_DTYPE_U8] = {"U8", 1},           [KT_DTYPE_BOOL] = {"BOOL", 1},
    [KT_DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [KT_DTYPE_I8] = {"I8", 1},
    [KT_DTYPE_I4] = {"I4", 0},           [KT_DTYPE_Q8_0] = {"Q8_0", 0},
    [KT_DTYPE_Q4_0] = {"Q4_0", 0},       [KT_DTYPE_Q4_K] = {"Q4_K", 0},
    [KT_DTYPE_Q6_K] = {"Q6_K", 0},
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

float kt_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 1023u, bits;
    float f;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {
        f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}

bool kt_dtype_to_f32(kt_dtype dtype, const void *from, float *to, size_t n)
{
    const uint16_t *half = from;
    switch (dtype) {
    case KT_DTYPE_F32:
        memcpy(to, from, n * sizeof *to);
        return true;
    case KT_DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            to[i] = kt_bf16_to_f32(half[i]);
        return true;
    case KT_DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            to[i] = kt_f16_to_f32(half[i]);
        return true;
    default:
        return false;
    }
}
