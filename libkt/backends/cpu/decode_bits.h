/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_bits.h
 * Arithmetic on the bits of numbers, the same in vectors of 256 and 512 bits. Before including,
 * define VECTOR, BITS (its integers) and V(name), the intrinsic of that size. */
#ifndef KT_BACKENDS_CPU_DECODE_BITS_H
#define KT_BACKENDS_CPU_DECODE_BITS_H

#include <immintrin.h>

/* To bfloat16, to nearest even, in the upper half of each lane; the lower half is left over. No NaN
 * here has a payload that could carry. */
static inline BITS round_up_halves(VECTOR x)
{
    BITS bits = (BITS)x, odd = V(srli_epi32)(bits, 16) & V(set1_epi32)(1);
    return V(add_epi32)(bits, V(add_epi32)(odd, V(set1_epi32)(0x7fff)));
}

/* E4M3 / 256 as binary16, from codes whose sign fills the upper byte. The 7 bits of magnitude at
 * bit 7 of a binary16, the sign at its top: the number / 256, subnormal ones included. All ones
 * carry into bit 14 and become a NaN. */
static inline BITS widen_codes(BITS codes)
{
    BITS half = V(slli_epi16)(codes, 7) & V(set1_epi16)((short)0xbfff);
    return half | (V(add_epi16)(half, V(set1_epi16)(0x80)) & V(set1_epi16)(0x4000));
}

#endif
