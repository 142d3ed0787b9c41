/* SPDX-License-Identifier: Apache-2.0 */
/* 8-bit floats. Loops without branches, so that compilers make vectors of them. */
#include <math.h>

#include "weights/bits.h"
#include "weights/formats.h"
#include "weights/weight.h"

/* Sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, NaN is all ones (OCP 8-bit
 * floating point specification). */
float kt_f8_e4m3_to_f32(uint8_t x)
{
    uint32_t bits = (uint32_t)(x & 0x7f) << 20;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p120f; /* the exponent's bias: 127 there, 7 here */
    value = (x & 0x7f) == 0x7f ? NAN : value;
    return x & 0x80 ? -value : value;
}

void kt_decode_f8_e4m3(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = kt_f8_e4m3_to_f32(((const uint8_t *)blocks)[i]);
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

void kt_encode_f8_e4m3(int64_t n, const float *x, float scale, void *to)
{
    uint8_t *codes = to;
    for (int64_t i = 0; i < n; i++)
        codes[i] = f8_e4m3_from_f32(x[i] / scale);
}
