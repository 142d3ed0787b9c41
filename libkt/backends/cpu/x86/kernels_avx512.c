/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 F, BW, VL, DQ. bfloat16 factors are rounded and multiplied as float32. */
#include "backends/cpu/x86/avx512.h"
#include "backends/cpu/rows_template.h"
#include "backends/cpu/x86/silu_avx512.h"
#include "core/memory.h"

MULTIPLY_ADD("vfmadd231ps")
#define TILE_ROWS 12
#define TILE_VECTORS 2
#define TILE_UNROLL 1
#define UNITS(k) (k)
#include "backends/cpu/tile_template.h"

enum { NR = TILE_VECTORS * VECTOR_LANES };

/* To nearest even; NaN stays NaN. */
static inline __m512 round_bf16(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32((int)0xffff0000)));
}

#define DOT_ROWS 5
#define DOT_COLS 4
#define DOT_DEPTH 16
#define DOT_ELEMENT_SIZE 4
#define DOT_LOAD_A(row, p, n) load_part(KT_DTYPE_F32, row, p, n)
#define DOT_LOAD_B(dtype, row, p, n) load_part(dtype, row, p, n)
#include "backends/cpu/dot_template.h"

#define OUTER_UNITS 8
#define OUTER_DEPTH 1
#define OUTER_ELEMENT_SIZE 4
#define OUTER_LOAD_B(dtype, b, b_bytes, depth, col, n, w)                                          \
    ((w)[0] = load_part(dtype, b, col, n), (w)[1] = load_part(dtype, b, (col) + 16, (n)-16))
#include "backends/cpu/outer_template.h"

static void convert_bf16(int64_t n, const float *from, void *to)
{
    float *out = to;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        _mm512_mask_storeu_ps(out + i, mask, round_bf16(_mm512_maskz_loadu_ps(mask, from + i)));
    }
}

static inline __attribute__((always_inline)) void pack_nt(const kt_dtype dtype, const bool bf16,
                                                          int64_t k, int64_t cols,
                                                          const struct kt_matrix *b, float *panels)
{
    int64_t row_bytes = b->ld * (int64_t)(dtype == KT_DTYPE_F32 ? 4 : 2);
    for (int64_t j = 0; j < (cols + NR - 1) / NR * NR; j += VECTOR_LANES) {
        float *panel = panels + j / NR * k * NR;
        for (int64_t p = 0; p < k; p += VECTOR_LANES) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                __m512 x = VECTOR_ZERO();
                if (j + i < cols)
                    x = load_part(dtype, (const char *)b->data + (j + i) * row_bytes, p, k - p);
                if (bf16 && dtype != KT_DTYPE_BF16)
                    x = round_bf16(x);
                r[i] = _mm512_castps_si512(x);
            }
            transpose16(r);
            for (int i = 0; i < kt_min_i64(16, k - p); i++)
                _mm512_storeu_si512(panel + (p + i) * NR + j % NR, r[i]);
        }
    }
}

#include "backends/cpu/x86/pack_template.h"

void kt_kernels_init_avx512(struct kt_kernels *kernels)
{
    fill_kernels(kernels, 40, 40);
    kernels->row.silu_mul = silu_mul_avx512;
    kernels->row.silu_mul_backward = silu_mul_backward_avx512;
}
