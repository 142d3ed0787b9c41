/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/avx512.h
 * What the files compiled for AVX-512 share. */
#ifndef KT_BACKENDS_CPU_X86_AVX512_H
#define KT_BACKENDS_CPU_X86_AVX512_H

#include <immintrin.h>
#include <kt/types.h>

#define VECTOR __m512
#define VECTOR_LANES 16
#define VECTOR_ZERO() _mm512_setzero_ps()
#define VECTOR_LOAD(p) _mm512_loadu_ps(p)
#define VECTOR_STORE(p, x) _mm512_storeu_ps(p, x)
#define VECTOR_BROADCAST(p) _mm512_set1_ps(*(p))
#define VECTOR_SET(x) _mm512_set1_ps(x)
#define VECTOR_SCALE_ADD(x, y, z) _mm512_fmadd_ps(x, y, z)
#define VECTOR_REDUCE(x) _mm512_reduce_add_ps(x)
#define VECTOR_LOAD_PART(p, n) _mm512_maskz_loadu_ps(first_lanes(n), p)
#define VECTOR_STORE_PART(p, n, x) _mm512_mask_storeu_ps(p, first_lanes(n), x)

/* sum += x * y by one instruction. Written out, because GCC spills a factor that all rows share and
 * then loads it for each row when it may choose a memory operand. */
#define MULTIPLY_ADD(instruction)                                                                  \
    static inline __attribute__((always_inline)) __m512 multiply_add(__m512 x, __m512 y,           \
                                                                     __m512 sum)                   \
    {                                                                                              \
        __asm__(instruction " %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));                           \
        return sum;                                                                                \
    }
#define VECTOR_MULTIPLY_ADD(x, y, sum) multiply_add(x, y, sum)

static inline __mmask16 first_lanes(int64_t n)
{
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}

static inline __mmask32 first_halves(int64_t n)
{
    return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1;
}

/* The first n (at most 16) elements of a row as float32, then zeros. */
static inline __m512 load_part(kt_dtype dtype, const char *row, int64_t index, int64_t n)
{
    __mmask16 mask = first_lanes(n);
    if (dtype == KT_DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, (const float *)(const void *)row + index);
    __m256i half = _mm256_maskz_loadu_epi16(mask, row + index * 2);
    if (dtype == KT_DTYPE_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* r[i] lane j <-> r[j] lane i, of 32-bit lanes. */
static inline void transpose16(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
