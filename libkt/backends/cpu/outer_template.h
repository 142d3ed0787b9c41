/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/outer_template.h
 * Products of few rows with a right factor that is not transposed, as sums of outer products: the
 * factor's rows are read as they lie, a few at a time, and added to all results. Include after
 * tile_template.h's macros, with
 *   OUTER_UNITS          units of depth at a time
 *   OUTER_DEPTH          depth of one unit: 1, or 2 for pairs of bfloat16
 *   OUTER_ELEMENT_SIZE   bytes of an element of converted rows
 *   OUTER_LOAD_B(dtype, b, b_bytes, depth, col, n, w)   w[OUTER_VECTORS] = a unit of rows from `b`
 * on, `depth` of them there, their n columns from `col` on, then zeros Defines outer(), for
 * kt_gemm_kernel.outer. */

enum { OUTER_VECTORS = 2, OUTER_COLS = OUTER_VECTORS * VECTOR_LANES };

static inline __attribute__((always_inline)) void
outer_columns(const kt_dtype dtype, const bool whole, const int units, int64_t rows, int64_t n,
              const char *a, int64_t a_bytes, const char *b, int64_t b_bytes, int64_t depth,
              int64_t col, bool add, float *c, int64_t ldc)
{
    VECTOR w[OUTER_UNITS][OUTER_VECTORS], sum[OUTER_VECTORS];
    (void)depth;
#pragma GCC unroll 8
    for (int u = 0; u < units; u++) {
        const char *row = b + u * OUTER_DEPTH * b_bytes;
        /* The same columns of the rows that come next, into level 2: many columns come first. */
        for (int r = 0; r < OUTER_DEPTH; r++)
            __builtin_prefetch(row + (OUTER_UNITS * OUTER_DEPTH + r) * b_bytes +
                                   col * (dtype == KT_DTYPE_F32 ? 4 : 2),
                               0, 2);
        OUTER_LOAD_B(dtype, row, b_bytes, depth - u * OUTER_DEPTH, col, whole ? OUTER_COLS : n,
                     w[u]);
    }
    c += col;
    for (int64_t i = 0; i < rows; i++, a += a_bytes, c += ldc) {
#pragma GCC unroll 2
        for (int v = 0; v < OUTER_VECTORS; v++) {
            sum[v] = VECTOR_ZERO();
            if (add)
                sum[v] = whole ? VECTOR_LOAD(c + v * VECTOR_LANES)
                               : VECTOR_LOAD_PART(c + v * VECTOR_LANES, n - v * VECTOR_LANES);
        }
#pragma GCC unroll 8
        for (int u = 0; u < units; u++) {
            VECTOR x = VECTOR_BROADCAST((const float *)(const void *)a + u);
#pragma GCC unroll 2
            for (int v = 0; v < OUTER_VECTORS; v++)
                sum[v] = VECTOR_MULTIPLY_ADD(x, w[u][v], sum[v]);
        }
#pragma GCC unroll 2
        for (int v = 0; v < OUTER_VECTORS; v++) {
            if (whole)
                VECTOR_STORE(c + v * VECTOR_LANES, sum[v]);
            else
                VECTOR_STORE_PART(c + v * VECTOR_LANES, n - v * VECTOR_LANES, sum[v]);
        }
    }
}

static inline __attribute__((always_inline)) void
outer_depth(const kt_dtype dtype, const int units, int64_t rows, int64_t cols, const char *a,
            int64_t a_bytes, const char *b, int64_t b_bytes, int64_t depth, bool add, float *c,
            int64_t ldc)
{
    int64_t col = 0;
    for (; col + OUTER_COLS <= cols; col += OUTER_COLS)
        outer_columns(dtype, true, units, rows, OUTER_COLS, a, a_bytes, b, b_bytes, depth, col, add,
                      c, ldc);
    if (col < cols)
        outer_columns(dtype, false, units, rows, cols - col, a, a_bytes, b, b_bytes, depth, col,
                      add, c, ldc);
}

static inline __attribute__((always_inline)) void outer_of(const kt_dtype dtype, int64_t rows,
                                                           int64_t cols, int64_t k, const char *a,
                                                           int64_t lda, const struct kt_matrix *b,
                                                           bool accumulate, float *c, int64_t ldc)
{
    const int64_t step = OUTER_UNITS * OUTER_DEPTH;
    int64_t b_bytes = b->ld * (dtype == KT_DTYPE_F32 ? 4 : 2), p = 0;
    const char *right = b->data;
    for (; p + step <= k; p += step)
        outer_depth(dtype, OUTER_UNITS, rows, cols, a + p * OUTER_ELEMENT_SIZE,
                    lda * OUTER_ELEMENT_SIZE, right + p * b_bytes, b_bytes, step,
                    accumulate || p > 0, c, ldc);
    for (; p < k; p += OUTER_DEPTH)
        outer_depth(dtype, 1, rows, cols, a + p * OUTER_ELEMENT_SIZE, lda * OUTER_ELEMENT_SIZE,
                    right + p * b_bytes, b_bytes, k - p, accumulate || p > 0, c, ldc);
}

static void outer(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                  const struct kt_matrix *b, bool accumulate, float *c, int64_t ldc)
{
    if (b->dtype == KT_DTYPE_BF16)
        outer_of(KT_DTYPE_BF16, rows, cols, k, a, lda, b, accumulate, c, ldc);
    else if (b->dtype == KT_DTYPE_F16)
        outer_of(KT_DTYPE_F16, rows, cols, k, a, lda, b, accumulate, c, ldc);
    else
        outer_of(KT_DTYPE_F32, rows, cols, k, a, lda, b, accumulate, c, ldc);
}
