/* SPDX-License-Identifier: Apache-2.0 */
/* F32, F16 and BF16. */
#include "weights/dtype.h"
#include "weights/formats.h"

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

void kt_decode_f32(int64_t n, const void *blocks, float *to)
{
    memcpy(to, blocks, (size_t)n * sizeof *to);
}

void kt_decode_f16(int64_t n, const void *blocks, float *to)
{
    const uint16_t *half = blocks;
    for (int64_t i = 0; i < n; i++)
        to[i] = kt_f16_to_f32(half[i]);
}

void kt_decode_bf16(int64_t n, const void *blocks, float *to)
{
    const uint16_t *half = blocks;
    for (int64_t i = 0; i < n; i++)
        to[i] = kt_bf16_to_f32(half[i]);
}

bool kt_dtype_to_f32(kt_dtype dtype, const void *from, float *to, size_t n)
{
    switch (dtype) {
    case KT_DTYPE_F32:
        kt_decode_f32((int64_t)n, from, to);
        return true;
    case KT_DTYPE_F16:
        kt_decode_f16((int64_t)n, from, to);
        return true;
    case KT_DTYPE_BF16:
        kt_decode_bf16((int64_t)n, from, to);
        return true;
    default:
        return false;
    }
}

void kt_encode_f32(int64_t n, const float *x, float scale, void *to)
{
    (void)scale;
    memcpy(to, x, (size_t)n * sizeof *x);
}

void kt_encode_bf16(int64_t n, const float *x, float scale, void *to)
{
    (void)scale;
    uint16_t *half = to;
    for (int64_t i = 0; i < n; i++)
        half[i] = kt_f32_to_bf16(x[i]);
}
