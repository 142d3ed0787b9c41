/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/decode_avx512.h
 * What decoders with vectors of 512 bits share. */
#ifndef KT_BACKENDS_CPU_X86_DECODE_AVX512_H
#define KT_BACKENDS_CPU_X86_DECODE_AVX512_H

#include <immintrin.h>

#define VECTOR __m512
#define VECTOR_LANES 16
#define VECTOR_SET(x) _mm512_set1_ps(x)
#define VECTOR_MULTIPLY(x, y) _mm512_mul_ps(x, y)
#define VECTOR_SUBTRACT(x, y) _mm512_sub_ps(x, y)
#define BITS __m512i
#define V(name) _mm512_##name

#include "backends/cpu/decode_bits.h"
#include "backends/cpu/kernels.h"

static inline void widen_bytes(__m256i bytes, __m512 v[2])
{
    v[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    v[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
}

static inline void widen_f8(const uint8_t *codes, __m512 v[2])
{
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)codes);
    __m512i half = widen_codes(_mm512_cvtepi8_epi16(bytes));
    v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
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

#endif
