/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/silu_avx512.h
 * The row kernels of the gated activation for AVX-512, without a division, which would take as long
 * as everything else. */
#ifndef KT_BACKENDS_CPU_X86_SILU_AVX512_H
#define KT_BACKENDS_CPU_X86_SILU_AVX512_H

#include "backends/cpu/x86/avx512.h"

/* 1 / (1 + e^-x), e^-x = 2^n e^r with |r| <= ln 2 / 2 and e^r as its Taylor polynomial of degree 7
 * (remainder below 6e-9). The reciprocal is an estimate of 14 bits and a Newton step. */
static inline __m512 sigmoid_lanes(__m512 x)
{
    __m512 minus = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), _mm512_set1_ps(87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(minus, _mm512_set1_ps(0x1.715476p0f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62ep-1f), minus);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.0bfbe8p-15f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    __m512 sum = _mm512_add_ps(_mm512_scalef_ps(p, n), _mm512_set1_ps(1.0f));
    __m512 y = _mm512_rcp14_ps(sum);
    return _mm512_mul_ps(y, _mm512_fnmadd_ps(sum, y, _mm512_set1_ps(2.0f)));
}

static void silu_mul_avx512(int64_t n, const float *gate, const float *up, float *h)
{
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        __m512 s = sigmoid_lanes(g);
        _mm512_mask_storeu_ps(h + i, mask, _mm512_mul_ps(_mm512_mul_ps(g, s), u));
    }
}

static void silu_mul_backward_avx512(int64_t n, float scale, const float *gate, const float *up,
                                     const float *dh, float *dgate, float *dup)
{
    __m512 one = _mm512_set1_ps(1.0f), factor = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        __m512 d = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, dh + i), factor);
        __m512 s = sigmoid_lanes(g), ds = _mm512_mul_ps(d, s);
        __m512 slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one);
        _mm512_mask_storeu_ps(dgate + i, mask, _mm512_mul_ps(_mm512_mul_ps(ds, u), slope));
        _mm512_mask_storeu_ps(dup + i, mask, _mm512_mul_ps(ds, g));
    }
}

#endif
