/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/line.h
 * Rearranging 64-byte lines into what tiles hold: 32 bfloat16, or 16 pairs of them; 64 int8, or 16
 * fours of them. AVX-512 where the file is compiled for it, else plain C. */
#ifndef KT_BACKENDS_AMX_LINE_H
#define KT_BACKENDS_AMX_LINE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>

typedef __m512i line;

static inline __mmask16 line_lanes(int64_t n)
{
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}

static inline line line_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

static inline void line_store(void *p, line x)
{
    _mm512_storeu_si512(p, x);
}

/** To aligned memory that is not read soon. */
static inline void line_stream(void *p, line x)
{
    _mm512_stream_si512(p, x);
}

/** Sixteen floats x * factor + y, rounded once. */
static inline line line_multiply_add(line x, float factor, line y)
{
    return (line)_mm512_fmadd_ps((__m512)x, _mm512_set1_ps(factor), (__m512)y);
}

/** The first n of 32 bfloat16, then zeros; nothing else is read. */
static inline line line_load_part(const uint16_t *p, int64_t n)
{
    __mmask32 lanes = n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u;
    return _mm512_maskz_loadu_epi16(lanes, p);
}

/** The first n of 32 floats rounded to bfloat16, then zeros. */
static inline line line_round(const float *x, int64_t n)
{
    __m512 low = _mm512_maskz_loadu_ps(line_lanes(n), x);
    __m512 high = n > 16 ? _mm512_maskz_loadu_ps(line_lanes(n - 16), x + 16) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/** Pairs (even[i], odd[i]), i < 16, rounded to bfloat16. */
static inline line line_round_pairs(const float *even, const float *odd)
{
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even)));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(odd)));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/** The first n of 64 floats times `factor`, rounded to int8 (nearest even), then zeros. */
static inline line line_quantise(const float *x, int64_t n, float factor)
{
    __m128i part[4];
    for (int i = 0; i < 4; i++) {
        __mmask16 lanes = line_lanes(n - 16 * i);
        __m512 scaled =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + 16 * i), _mm512_set1_ps(factor));
        part[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(part[1], part[0])),
                              _mm256_set_m128i(part[3], part[2]), 1);
}

/** Fours (x[0][i], ..., x[3][i]), i < 16, times factors[i], rounded to int8; x[k] is 16 floats, and
 * zero for k >= n. */
static inline line line_quantise_fours(const float *x, int64_t n, const float factors[16])
{
    __m512 factor = _mm512_loadu_ps(factors);
    __m512i fours = _mm512_setzero_si512();
    for (int k = 0; k < 4 && k < n; k++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * k), factor));
        q = _mm512_and_si512(q, _mm512_set1_epi32(0xff));
        fours = _mm512_or_si512(fours, _mm512_sll_epi32(q, _mm_cvtsi32_si128(8 * k)));
    }
    return fours;
}

/** Pairs (a[i], b[i]) of 32 bfloat16: those with i % 8 < 4 into *low, the others into *high. */
static inline void line_interleave(line a, line b, line *low, line *high)
{
    *low = _mm512_unpacklo_epi16(a, b);
    *high = _mm512_unpackhi_epi16(a, b);
}

/** Words of 32 bits in the order of columns again: *first gets columns 0 to 15 of 32 whose pairs
 * line_interleave put into low and high. */
static inline void line_join(line low, line high, line *first, line *second)
{
    const __m512i from = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    *first = _mm512_permutex2var_epi32(low, from, high);
    *second = _mm512_permutex2var_epi32(low, _mm512_add_epi32(from, _mm512_set1_epi32(8)), high);
}

/** Transposes 16 x 16 words of 32 bits. */
static inline void line_transpose(line r[16])
{
    line t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#else
#include "weights/dtype.h"

typedef struct {
    uint32_t word[16];
} line;

static inline line line_load(const void *p)
{
    line x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void line_store(void *p, line x)
{
    memcpy(p, &x, sizeof x);
}

static inline void line_stream(void *p, line x)
{
    line_store(p, x);
}

static inline line line_multiply_add(line x, float factor, line y)
{
    float a[16], b[16];
    memcpy(a, &x, sizeof a);
    memcpy(b, &y, sizeof b);
    for (int i = 0; i < 16; i++)
        b[i] = fmaf(a[i], factor, b[i]);
    return line_load(b);
}

static inline line line_load_part(const uint16_t *p, int64_t n)
{
    line x = {{0}};
    if (n > 0)
        memcpy(&x, p, (size_t)(n < 32 ? n : 32) * sizeof *p);
    return x;
}

static inline line line_round(const float *x, int64_t n)
{
    uint16_t half[32] = {0};
    for (int i = 0; i < 32 && i < n; i++)
        half[i] = kt_f32_to_bf16(x[i]);
    return line_load(half);
}

static inline line line_round_pairs(const float *even, const float *odd)
{
    line x;
    for (int i = 0; i < 16; i++)
        x.word[i] = kt_f32_to_bf16(even[i]) | (uint32_t)kt_f32_to_bf16(odd[i]) << 16;
    return x;
}

static inline uint8_t line_round_to_int8(float x)
{
    return (uint8_t)lrintf(x);
}

static inline line line_quantise(const float *x, int64_t n, float factor)
{
    uint8_t q[64] = {0};
    for (int i = 0; i < 64 && i < n; i++)
        q[i] = line_round_to_int8(x[i] * factor);
    return line_load(q);
}

static inline line line_quantise_fours(const float *x, int64_t n, const float factors[16])
{
    uint8_t q[64] = {0};
    for (int k = 0; k < 4 && k < n; k++)
        for (int i = 0; i < 16; i++)
            q[4 * i + k] = line_round_to_int8(x[16 * k + i] * factors[i]);
    return line_load(q);
}

static inline void line_interleave(line a, line b, line *low, line *high)
{
    uint16_t left[32], right[32], out[2][32];
    memcpy(left, &a, sizeof left);
    memcpy(right, &b, sizeof right);
    for (int i = 0; i < 32; i++) {
        int at = i / 8 * 8 + i % 4 * 2;
        out[i % 8 / 4][at] = left[i];
        out[i % 8 / 4][at + 1] = right[i];
    }
    *low = line_load(out[0]);
    *high = line_load(out[1]);
}

static inline void line_join(line low, line high, line *first, line *second)
{
    for (int i = 0; i < 16; i++) {
        const line *from = i % 8 < 4 ? &low : &high;
        int at = i / 8 * 4 + i % 4;
        first->word[i] = from->word[at];
        second->word[i] = from->word[at + 8];
    }
}

static inline void line_transpose(line r[16])
{
    line t[16];
    memcpy(t, r, sizeof t);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            r[i].word[j] = t[j].word[i];
}
#endif

static inline line line_zero(void)
{
    line x;
    memset(&x, 0, sizeof x);
    return x;
}

#endif
