/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_table.h
 * Decoding by tables of 16 products.
 *
 * Scaling and rounding to bfloat16 commute with a factor of a power of two. So all that E4M3
 * becomes under a scale is told by 16 products: of the 8 subnormal numbers, and of the 8 mantissas
 * of normal numbers as if their exponent were 0, to which that of the code is added. I4 has 16
 * codes anyway. Shuffles look up the low and the high bytes of the products, by the magnitude of a
 * code where it is subnormal, else by 8 + its mantissa: the smaller of the two. */
#ifndef KT_BACKENDS_CPU_DECODE_TABLE_H
#define KT_BACKENDS_CPU_DECODE_TABLE_H

#include "backends/cpu/kernels.h"

static const float f8_values[16] = {0 * 0x1p-9f,   1 * 0x1p-9f,   2 * 0x1p-9f,   3 * 0x1p-9f,
                                    4 * 0x1p-9f,   5 * 0x1p-9f,   6 * 0x1p-9f,   7 * 0x1p-9f,
                                    8 * 0x1p-10f,  9 * 0x1p-10f,  10 * 0x1p-10f, 11 * 0x1p-10f,
                                    12 * 0x1p-10f, 13 * 0x1p-10f, 14 * 0x1p-10f, 15 * 0x1p-10f};
static const float i4_values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

#endif
