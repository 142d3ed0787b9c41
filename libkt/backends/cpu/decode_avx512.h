/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_avx512.h
 * What decoders with vectors of 512 bits share. */
#ifndef KT_BACKENDS_CPU_DECODE_AVX512_H
#define KT_BACKENDS_CPU_DECODE_AVX512_H

#include <immintrin.h>

#include "backends/cpu/decode_table.h"

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

/* -- tables, see decode_table.h -----------------------------------------------------------------
 */

#define DECODE_TABLES 64

struct code_table {
    float scale;
    __m512i low, high; /* bytes of 16 bfloat16 in each lane */
};

static void make_table(struct code_table *t, kt_dtype dtype, float scale)
{
    const float *values = dtype == KT_DTYPE_I4 ? i4_values : f8_values;
    __m512 products = _mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(scale));
    __m512i words = _mm512_srli_epi32(round_up_halves(products), 16);
    t->low = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(words));
    t->high = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(words, 8)));
    t->scale = scale;
}

/* The order of 64 codes from which unpacking gives results in the order of memory. */
static inline __m512i order_codes(enum kt_decoding decoding, __m512i codes)
{
    if (decoding == KT_DECODE_BF16)
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), codes);
}

/* bfloat16 of the first and second 8 codes of each lane. */
static inline void store_words(enum kt_decoding decoding, __m512i first, __m512i second, char *to)
{
    __m512i zero = _mm512_setzero_si512();
    if (decoding == KT_DECODE_BF16) {
        _mm512_storeu_si512(to, first);
        _mm512_storeu_si512(to + 64, second);
        return;
    }
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(zero, first));
    _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(zero, first));
    _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(zero, second));
    _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(zero, second));
}

/* a & b | c in one instruction */
#define AND_OR(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xea)

/* What a code, in the upper byte of each word, adds to its mantissa: sign and exponent. */
static inline __m512i sign_and_exponent(__m512i codes)
{
    __m512i exponent = _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi16(0x780));
    return AND_OR(codes, _mm512_set1_epi16((short)0x8000), exponent);
}

static inline int look_up_f8(enum kt_decoding decoding, const struct code_table *t,
                             const uint8_t *from, char *to)
{
    __m512i codes = order_codes(decoding, _mm512_loadu_si512(from)), zero = _mm512_setzero_si512();
    __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
    __m512i index =
        _mm512_min_epu8(magnitude, AND_OR(codes, _mm512_set1_epi8(7), _mm512_set1_epi8(8)));
    __m512i low = _mm512_shuffle_epi8(t->low, index), high = _mm512_shuffle_epi8(t->high, index);
    __m512i first = _mm512_add_epi16(_mm512_unpacklo_epi8(low, high),
                                     sign_and_exponent(_mm512_unpacklo_epi8(zero, codes)));
    __m512i second = _mm512_add_epi16(_mm512_unpackhi_epi8(low, high),
                                      sign_and_exponent(_mm512_unpackhi_epi8(zero, codes)));
    store_words(decoding, first, second, to);
    return _mm512_cmpeq_epi8_mask(magnitude, _mm512_set1_epi8(0x7f)) != 0;
}

static inline int look_up_i4(enum kt_decoding decoding, const struct code_table *t,
                             const uint8_t *from, char *to)
{
    __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)from);
    __m512i wide = _mm512_cvtepu8_epi16(pairs);
    __m512i index = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
    index = order_codes(decoding, _mm512_and_si512(index, _mm512_set1_epi8(15)));
    __m512i low = _mm512_shuffle_epi8(t->low, index), high = _mm512_shuffle_epi8(t->high, index);
    store_words(decoding, _mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high), to);
    return 0;
}

#endif
