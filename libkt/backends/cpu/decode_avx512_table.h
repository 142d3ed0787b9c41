/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_avx512_table.h
 * Tables of 16 products in vectors of 512 bits, see decode_table.h. */
#ifndef KT_BACKENDS_CPU_DECODE_AVX512_TABLE_H
#define KT_BACKENDS_CPU_DECODE_AVX512_TABLE_H

#include "backends/cpu/decode_avx512.h"
#include "backends/cpu/decode_table.h"

#define DECODE_TABLES 64

static inline int has_tables(enum kt_decoding decoding)
{
    return decoding != KT_DECODE_F32;
}

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
