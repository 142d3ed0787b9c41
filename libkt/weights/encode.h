/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/encode.h
 * Float32 into the formats that kt_convert writes: F32, BF16, F8_E4M3, I8 and I4 (see weight.h).
 * Everything rounds to nearest, ties to even. */
#ifndef KT_WEIGHTS_ENCODE_H
#define KT_WEIGHTS_ENCODE_H

#include <kt/types.h>

/** The largest |x[i]|, 0 for n = 0; infinity when an element is NaN or infinite. */
float kt_encode_largest(int64_t n, const float *x);

/** The scale for elements of at most |largest|, which becomes the largest number of the format, or
 * of I4 its 7 (so -8 is not used): largest / 448 for F8_E4M3, / 127 for I8, / 7 for I4; at least
 * the smallest normal number. 1 for zeros, and for formats without a scale. */
float kt_encode_scale(kt_dtype dtype, float largest);

/** The largest finite number that does not round to infinity in a format without a scale. */
float kt_encode_limit(kt_dtype dtype);

/** to[i] = x[i] / scale, beyond the format's range its end; x is finite. F32 and BF16 ignore
 * `scale`. n is even for I4. */
void kt_encode(kt_dtype dtype, int64_t n, const float *x, float scale, void *to);

#endif
