/* SPDX-License-Identifier: Apache-2.0 */
/* Loops without branches, so that compilers make vectors of them. */
#include "weights/encode.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "weights/dtype.h"

static int32_t bits_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Magnitudes are ordered as their bits are; NaN comes behind infinity. */
float kt_encode_largest(int64_t n, const float *x)
{
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most > 0x7f800000 ? INFINITY : float_of(most);
}

float kt_encode_scale(kt_dtype dtype, float largest)
{
    float range = dtype == KT_DTYPE_F8_E4M3 ? 448 : dtype == KT_DTYPE_I8 ? 127 : 7;
    if (largest == 0 || dtype == KT_DTYPE_F32 || dtype == KT_DTYPE_BF16)
        return 1;
    return fmaxf(largest / range, FLT_MIN);
}

float kt_encode_limit(kt_dtype dtype)
{
    return dtype == KT_DTYPE_BF16 ? float_of(0x7f7f7fff) : FLT_MAX;
}

/* Normal numbers: the float's bits, rounded to 3 of mantissa, with the exponent's bias changed from
 * 127 to 7. Subnormal ones are multiples of 2^-9, and so are floats from 2^14 to 2^15. */
static uint8_t f8_e4m3_from_f32(float x)
{
    float magnitude = fabsf(x);
    magnitude = magnitude < 448 ? magnitude : 448;
    int32_t bits = bits_of(magnitude);
    int32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    int32_t subnormal = bits_of(magnitude + 0x1p14f) - bits_of(0x1p14f);
    int32_t code = magnitude < 0x1p-6f ? subnormal : normal;
    return (uint8_t)(code | (bits_of(x) >> 24 & 0x80));
}

static void encode_f8_e4m3(int64_t n, const float *x, float scale, uint8_t *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = f8_e4m3_from_f32(x[i] / scale);
}

/* Floats around 1.5 x 2^23 are integers. */
static int32_t round_to_int(float x, float low, float high)
{
    x = x < low ? low : x;
    x = x > high ? high : x;
    return bits_of(x + 0x1.8p23f) - bits_of(0x1.8p23f);
}

static void encode_i8(int64_t n, const float *x, float scale, int8_t *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (int8_t)round_to_int(x[i] / scale, -127, 127);
}

static void encode_i4(int64_t n, const float *x, float scale, uint8_t *to)
{
    for (int64_t i = 0; i < n / 2; i++) {
        int32_t low = round_to_int(x[2 * i] / scale, -8, 7) + 8;
        int32_t high = round_to_int(x[2 * i + 1] / scale, -8, 7) + 8;
        to[i] = (uint8_t)(low | high << 4);
    }
}

static void encode_bf16(int64_t n, const float *x, uint16_t *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = kt_f32_to_bf16(x[i]);
}

void kt_encode(kt_dtype dtype, int64_t n, const float *x, float scale, void *to)
{
    switch (dtype) {
    case KT_DTYPE_F8_E4M3:
        encode_f8_e4m3(n, x, scale, to);
        break;
    case KT_DTYPE_I8:
        encode_i8(n, x, scale, to);
        break;
    case KT_DTYPE_I4:
        encode_i4(n, x, scale, to);
        break;
    case KT_DTYPE_BF16:
        encode_bf16(n, x, to);
        break;
    default:
        memcpy(to, x, (size_t)n * sizeof *x);
    }
}
