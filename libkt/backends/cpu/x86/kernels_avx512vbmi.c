/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 with BF16, VBMI and GFNI: products of a row with codes of E4M3 or I4, which never leave
 * registers. */
#include <string.h>

#include "backends/cpu/x86/avx512.h"
#include "backends/cpu/x86/codes_avx512.h"
#include "backends/cpu/kernels.h"

enum { DOT_COLS = 4, CODES = WIDENED_CODES };

/* 32 codes of I4. */
static inline __m512i widen_i4(const uint8_t *codes)
{
    const __m512i values = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        (short)0xc100, (short)0xc0e0, (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040,
        (short)0xc000, (short)0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0));
    return look_up_nibbles(codes, values);
}

/* 128 codes. */
static inline __attribute__((always_inline)) struct widened load_codes(const kt_dtype dtype,
                                                                       const uint8_t *codes)
{
    if (dtype == KT_DTYPE_I4)
        return (struct widened){widen_i4(codes), widen_i4(codes + 16), widen_i4(codes + 32),
                                widen_i4(codes + 48)};
    return codes_to_bf16(_mm512_loadu_si512(codes), _mm512_loadu_si512(codes + 64));
}

/* 128 bfloat16 in the order of load_codes. */
static inline __attribute__((always_inline)) struct widened load_row(const kt_dtype dtype,
                                                                     const char *p)
{
    const __m512i from = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
    const __m512i other = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
    __m512i c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    if (dtype == KT_DTYPE_I4)
        return (struct widened){a, b, c, d};
    return (struct widened){
        _mm512_permutex2var_epi64(a, from, b), _mm512_permutex2var_epi64(a, other, b),
        _mm512_permutex2var_epi64(c, from, d), _mm512_permutex2var_epi64(c, other, d)};
}

static inline __m512 dot_widened(const struct widened *x, const struct widened *y)
{
    __m512 sum = _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh)x->a_first, (__m512bh)y->a_first);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)x->a_second, (__m512bh)y->a_second);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)x->b_first, (__m512bh)y->b_first);
    return _mm512_dpbf16_ps(sum, (__m512bh)x->b_second, (__m512bh)y->b_second);
}

static inline int64_t bytes_of(const kt_dtype dtype, int64_t codes)
{
    return dtype == KT_DTYPE_I4 ? (codes + 1) / 2 : codes;
}

/* Fewer codes: the row is filled up with zeros. */
static __attribute__((noinline)) __m512 dot_rest(const kt_dtype dtype, int64_t n, const char *a,
                                                 const uint8_t *codes)
{
    uint16_t row[CODES] = {0};
    uint8_t rest[CODES] = {0};
    memcpy(row, a, (size_t)n * sizeof *row);
    memcpy(rest, codes, (size_t)bytes_of(dtype, n));
    struct widened x = load_row(dtype, (const char *)row), y = load_codes(dtype, rest);
    return dot_widened(&x, &y);
}

/* `cols` rows of a weight from `row` on. While they are read, those after them are fetched. */
static inline __attribute__((always_inline)) void
dot_codes(const kt_dtype dtype, const int cols, int64_t k, const char *a, const struct kt_weight *w,
          int64_t row, int64_t col, float alpha, bool accumulate, float *c)
{
    int64_t ld = bytes_of(dtype, w->cols), left = w->scale_cols - col % w->scale_cols;
    const uint8_t *codes = (const uint8_t *)w->data + row * ld + bytes_of(dtype, col);
    const float *scale[DOT_COLS];
    __m512 sum[DOT_COLS];
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++) {
        scale[j] = kt_weight_scale(w, row + j, col);
        sum[j] = _mm512_setzero_ps();
    }
    int64_t p = 0, at = 0;
    for (; p + CODES <= k; p += CODES, codes += bytes_of(dtype, CODES)) {
        struct widened x = load_row(dtype, a + 2 * p);
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) {
            const uint8_t *from = codes + j * ld;
            uintptr_t next = (uintptr_t)from + (uintptr_t)(cols * ld);
            for (int64_t line = 0; line < bytes_of(dtype, CODES); line += 64)
                __builtin_prefetch((const void *)(next + (uintptr_t)line), 0, 2);
            struct widened y = load_codes(dtype, from);
            sum[j] = _mm512_fmadd_ps(dot_widened(&x, &y), _mm512_set1_ps(scale[j][at]), sum[j]);
        }
        left -= CODES;
        if (left == 0) {
            left = w->scale_cols;
            at++;
        }
    }
    if (p < k) {
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++)
            sum[j] = _mm512_fmadd_ps(dot_rest(dtype, k - p, a + 2 * p, codes + j * ld),
                                     _mm512_set1_ps(scale[j][at]), sum[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++)
        c[j] = (accumulate ? c[j] : 0.0f) + alpha * _mm512_reduce_add_ps(sum[j]);
}

static inline __attribute__((always_inline)) void
dot_rows(const kt_dtype dtype, int64_t cols, int64_t k, const char *a, const struct kt_weight *w,
         int64_t row, int64_t col, float alpha, bool accumulate, float *c)
{
    for (; cols >= DOT_COLS; cols -= DOT_COLS, row += DOT_COLS, c += DOT_COLS)
        dot_codes(dtype, DOT_COLS, k, a, w, row, col, alpha, accumulate, c);
    for (; cols > 0; cols--, row++, c++)
        dot_codes(dtype, 1, k, a, w, row, col, alpha, accumulate, c);
}

static bool dot_weight(int64_t cols, int64_t k, const void *a, const struct kt_weight *w,
                       int64_t row, int64_t col, float alpha, bool accumulate, float *c)
{
    if (!w->scale || w->scale_cols % CODES || col % CODES)
        return false;
    if (w->dtype == KT_DTYPE_F8_E4M3)
        dot_rows(KT_DTYPE_F8_E4M3, cols, k, a, w, row, col, alpha, accumulate, c);
    else if (w->dtype == KT_DTYPE_I4)
        dot_rows(KT_DTYPE_I4, cols, k, a, w, row, col, alpha, accumulate, c);
    else
        return false;
    return true;
}

void kt_kernels_init_avx512vbmi(struct kt_kernels *kernels)
{
    kernels->bf16.dot_weight = dot_weight;
    kernels->decode_pairs = kt_decode_pairs_avx512vbmi;
}
