/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 with BF16: products of pairs of bfloat16, summed in float32. */
#include "backends/cpu/x86/avx512.h"
#include "backends/cpu/kernels.h"
#include "core/memory.h"

MULTIPLY_ADD("vdpbf16ps")
#define TILE_ROWS 12
#define TILE_VECTORS 2
#define TILE_UNROLL 1
#define UNITS(k) ((k) / 2)
#include "backends/cpu/tile_template.h"

enum { NR = TILE_VECTORS * VECTOR_LANES };

static inline __m512i round_pair(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static void convert(int64_t n, const float *from, void *to)
{
    uint16_t *out = to;
    int64_t padded = (n + 1) / 2 * 2;
    for (int64_t i = 0; i < n; i += 32) {
        __m512i pair = round_pair(_mm512_maskz_loadu_ps(first_lanes(n - i), from + i),
                                  _mm512_maskz_loadu_ps(first_lanes(n - i - 16), from + i + 16));
        _mm512_mask_storeu_epi16(out + i, first_halves(padded - i), pair);
    }
}

/* The first n (at most 32) elements from `index` of a row as bfloat16, then zeros. */
static inline __m512i load_halves(const kt_dtype dtype, const char *row, int64_t index, int64_t n)
{
    if (dtype == KT_DTYPE_BF16)
        return _mm512_maskz_loadu_epi16(first_halves(n), row + index * 2);
    return round_pair(load_part(dtype, row, index, n), load_part(dtype, row, index + 16, n - 16));
}

#define DOT_ROWS 5
#define DOT_COLS 4
#define DOT_DEPTH 32
#define DOT_ELEMENT_SIZE 2
#define DOT_LOAD_A(row, p, n) (__m512) load_halves(KT_DTYPE_BF16, row, p, n)
#define DOT_LOAD_B(dtype, row, p, n) (__m512) load_halves(dtype, row, p, n)
#include "backends/cpu/dot_template.h"

static inline __attribute__((always_inline)) void
pack_nt(const kt_dtype dtype, int64_t k, int64_t cols, const struct kt_matrix *b, uint16_t *panels)
{
    const int64_t size = dtype == KT_DTYPE_F32 ? 4 : 2;
    int64_t row_bytes = b->ld * size, pairs = (k + 1) / 2;
    for (int64_t j = 0; j < (cols + NR - 1) / NR * NR; j += 16) {
        uint16_t *panel = panels + j / NR * pairs * 2 * NR;
        for (int64_t p = 0; p < pairs; p += 16) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                __builtin_prefetch((const char *)b->data + (j + 16 + i) * row_bytes + 2 * p * size,
                                   0, 2);
                r[i] = _mm512_setzero_si512();
                if (j + i < cols)
                    r[i] = load_halves(dtype, (const char *)b->data + (j + i) * row_bytes, 2 * p,
                                       k - 2 * p);
            }
            transpose16(r);
            for (int i = 0; i < kt_min_i64(16, pairs - p); i++)
                _mm512_storeu_si512(panel + 2 * ((p + i) * NR + j % NR), r[i]);
        }
    }
}

/* w = columns [col, col + 16) and [col + 16, col + 32) of two rows of the factor as pairs; n
 * columns are there, and the second row if depth > 1. */
static inline __attribute__((always_inline)) void
interleave_rows(const kt_dtype dtype, const char *row, int64_t row_bytes, int64_t depth,
                int64_t col, int64_t n, __m512i w[2])
{
    static const uint16_t low_lanes[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                           37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                           11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i low = _mm512_loadu_si512(low_lanes);
    __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    __m512i even = load_halves(dtype, row, col, n), odd = _mm512_setzero_si512();
    if (depth > 1)
        odd = load_halves(dtype, row + row_bytes, col, n);
    w[0] = _mm512_permutex2var_epi16(even, low, odd);
    w[1] = _mm512_permutex2var_epi16(even, high, odd);
}

#define OUTER_UNITS 8
#define OUTER_DEPTH 2
#define OUTER_ELEMENT_SIZE 2
#define OUTER_LOAD_B(dtype, b, b_bytes, depth, col, n, w)                                          \
    interleave_rows(dtype, b, b_bytes, depth, col, n, (__m512i *)(w))
#include "backends/cpu/outer_template.h"

/* Row pair by row pair through all panels, as the rows lie far apart in memory. What comes next is
 * fetched into level 2, since rows a page apart share a few sets of level 1. */
static inline __attribute__((always_inline)) void
pack_nn(const kt_dtype dtype, int64_t k, int64_t cols, const struct kt_matrix *b, uint16_t *panels)
{
    enum { AHEAD = 64 }; /* rows */
    const int64_t size = dtype == KT_DTYPE_F32 ? 4 : 2;
    int64_t row_bytes = b->ld * size, pairs = (k + 1) / 2;
    const char *row = b->data;
    for (int64_t p = 0; p < pairs; p++, row += 2 * row_bytes) {
        for (int64_t j = 0; j < cols; j += NR) {
            __m512i w[2];
            const char *next = row + AHEAD * row_bytes + j * size;
            __builtin_prefetch(next, 0, 2);
            __builtin_prefetch(next + row_bytes, 0, 2);
            interleave_rows(dtype, row, row_bytes, k - 2 * p, j, cols - j, w);
            uint16_t *to = panels + (j / NR * pairs + p) * 2 * NR;
            _mm512_storeu_si512(to, w[0]);
            _mm512_storeu_si512(to + NR, w[1]);
        }
    }
}

#define PACK(name)                                                                                 \
    static void name##_any(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)        \
    {                                                                                              \
        if (b->dtype == KT_DTYPE_F32)                                                              \
            name(KT_DTYPE_F32, k, cols, b, panel);                                                 \
        else if (b->dtype == KT_DTYPE_F16)                                                         \
            name(KT_DTYPE_F16, k, cols, b, panel);                                                 \
        else                                                                                       \
            name(KT_DTYPE_BF16, k, cols, b, panel);                                                \
    }
PACK(pack_nt)
PACK(pack_nn)

void kt_kernels_init_avx512bf16(struct kt_kernels *kernels)
{
    kernels->bf16 = (struct kt_gemm_kernel){.bf16 = true,
                                            .mr = TILE_ROWS,
                                            .nr = NR,
                                            .element_size = 2,
                                            .k_step = 2,
                                            .convert = convert,
                                            .pack_nt = pack_nt_any,
                                            .pack_nn = pack_nn_any,
                                            .tile = tile,
                                            .dot_rows = 40,
                                            .dot = dot,
                                            .outer_rows = 40,
                                            .outer = outer};
}
