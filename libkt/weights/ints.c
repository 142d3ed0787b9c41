/* SPDX-License-Identifier: Apache-2.0 */
/* INT8 and INT4. Loops without branches, so that compilers make vectors of them. */
#include "weights/bits.h"
#include "weights/formats.h"

void kt_decode_i8(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)((const int8_t *)blocks)[i];
}

void kt_decode_i4(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t pair = ((const uint8_t *)blocks)[i];
        to[2 * i] = (float)((pair & 15) - 8);
        to[2 * i + 1] = (float)((pair >> 4) - 8);
    }
}

/* Floats around 1.5 x 2^23 are integers. */
static int32_t round_to_int(float x, float low, float high)
{
    x = x < low ? low : x;
    x = x > high ? high : x;
    return bits_of(x + 0x1.8p23f) - bits_of(0x1.8p23f);
}

void kt_encode_i8(int64_t n, const float *x, float scale, void *to)
{
    int8_t *codes = to;
    for (int64_t i = 0; i < n; i++)
        codes[i] = (int8_t)round_to_int(x[i] / scale, -127, 127);
}

void kt_encode_i4(int64_t n, const float *x, float scale, void *to)
{
    uint8_t *pairs = to;
    for (int64_t i = 0; i < n / 2; i++) {
        int32_t low = round_to_int(x[2 * i] / scale, -8, 7) + 8;
        int32_t high = round_to_int(x[2 * i + 1] / scale, -8, 7) + 8;
        pairs[i] = (uint8_t)(low | high << 4);
    }
}
