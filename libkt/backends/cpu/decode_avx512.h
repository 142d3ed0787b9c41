/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_avx512.h
 * What decoders with vectors of 512 bits share. */
#ifndef KT_BACKENDS_CPU_DECODE_AVX512_H
#define KT_BACKENDS_CPU_DECODE_AVX512_H

#include <immintrin.h>

#include "backends/cpu/kernels.h"

#define VECTOR __m512
#define VECTOR_LANES 16
#define VECTOR_SET(x) _mm512_set1_ps(x)
#define VECTOR_MULTIPLY(x, y) _mm512_mul_ps(x, y)
#define VECTOR_SUBTRACT(x, y) _mm512_sub_ps(x, y)

static inline void widen_bytes(__m256i bytes, __m512 v[2])
{
    v[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    v[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
}

/* As in decode_avx2.c. */
static inline void widen_f8(const uint8_t *codes, __m512 v[2])
{
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)codes);
    __m512i half = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7);
    half = _mm512_and_si512(half, _mm512_set1_epi16((short)0xbfff));
    __m512i nan = _mm512_and_si512(_mm512_add_epi16(half, _mm512_set1_epi16(0x80)),
                                   _mm512_set1_epi16(0x4000));
    half = _mm512_or_si512(half, nan);
    v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
}

/* To bfloat16, to nearest even, in the upper half of each lane; the lower half is left over. */
static inline __m512i round_up_halves(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

static inline void store_float32(int rounded, char *to, const __m512 v[2])
{
    for (int i = 0; i < 2; i++) {
        __m512i x = _mm512_castps_si512(v[i]);
        if (rounded)
            x = _mm512_and_si512(round_up_halves(v[i]), _mm512_set1_epi32((int)0xffff0000));
        _mm512_storeu_si512(to + 64 * i, x);
    }
}

/* a & b | c in one instruction */
#define AND_OR(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xea)

#endif
