/* SPDX-License-Identifier: Apache-2.0 */
#include "weights/encode.h"

#include <float.h>
#include <math.h>

#include "weights/bits.h"
#include "weights/weight.h"

/* Magnitudes are ordered as their bits are; NaN comes behind infinity. Without branches, so that
 * compilers make vectors of it. */
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
    float range = kt_format_of(dtype)->range;
    return largest == 0 || range == 0 ? 1 : fmaxf(largest / range, FLT_MIN);
}

float kt_encode_limit(kt_dtype dtype)
{
    return kt_format_of(dtype)->limit;
}

void kt_encode(kt_dtype dtype, int64_t n, const float *x, float scale, void *to)
{
    kt_format_of(dtype)->encode(n, x, scale, to);
}
