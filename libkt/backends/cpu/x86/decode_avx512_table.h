/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/decode_avx512_table.h
 * Tables of 16 products in vectors of 512 bits, see decode_table.h. */
#ifndef KT_BACKENDS_CPU_X86_DECODE_AVX512_TABLE_H
#define KT_BACKENDS_CPU_X86_DECODE_AVX512_TABLE_H

#include "backends/cpu/x86/decode_avx512.h"

#define LOAD_BITS(p) _mm512_loadu_si512(p)
#define STORE_BITS(p, x) _mm512_storeu_si512(p, x)
#define LOAD_HALF(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))

/* The order of 64 codes from which unpacking gives results in the order of memory. */
static inline __m512i order_codes(enum kt_decoding decoding, __m512i codes)
{
    if (decoding == KT_DECODE_BF16)
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), codes);
}

static inline bool any_equal(__m512i a, __m512i b)
{
    return _mm512_cmpeq_epi8_mask(a, b) != 0;
}

#include "backends/cpu/decode_table.h"

static void make_table(struct code_table *t, kt_dtype dtype, float scale)
{
    const float *values = dtype == KT_DTYPE_I4 ? i4_values : f8_values;
    __m512 products = _mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(scale));
    __m512i words = _mm512_srli_epi32(round_up_halves(products), 16);
    t->low = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(words));
    t->high = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(words, 8)));
    t->scale = scale;
}

#endif
