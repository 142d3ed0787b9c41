/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/dot_template.h
 * Products of few rows with a transposed right factor, as dot products along the depth: the factor
 * is read once, where it lies, and nothing is packed. Include after tile_template.h's macros, with
 *   DOT_ROWS, DOT_COLS   size of a group of results, each one vector of partial sums
 *   DOT_DEPTH            depth of one vector of units
 *   DOT_LOAD_A(row, p, n)         units of a converted row from depth p, n of them, then zeros
 *   DOT_LOAD_B(dtype, row, p, n)  the same of the right factor, converted
 *   VECTOR_REDUCE(x)     sum of the lanes
 * Defines dot(), for kt_gemm_kernel.dot. */

static inline __attribute__((always_inline)) void
dot_group(const kt_dtype dtype, const int rows, const int cols, int64_t k, const char *a,
          int64_t a_bytes, const char *b, int64_t b_bytes, float alpha, int accumulate, float *c,
          int64_t ldc)
{
    VECTOR sum[DOT_ROWS][DOT_COLS], right[DOT_COLS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < cols; j++)
            sum[i][j] = VECTOR_ZERO();
    for (int64_t p = 0; p < k; p += DOT_DEPTH) {
#pragma GCC unroll 8
        for (int j = 0; j < cols; j++)
            right[j] = DOT_LOAD_B(dtype, b + j * b_bytes, p, k - p);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            VECTOR x = DOT_LOAD_A(a + i * a_bytes, p, k - p);
#pragma GCC unroll 8
            for (int j = 0; j < cols; j++)
                sum[i][j] = VECTOR_MULTIPLY_ADD(x, right[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] =
                (accumulate ? c[i * ldc + j] : 0.0f) + alpha * VECTOR_REDUCE(sum[i][j]);
}

static inline __attribute__((always_inline)) void
dot_columns(const kt_dtype dtype, const int rows, int64_t cols, int64_t k, const char *a,
            int64_t a_bytes, const struct kt_matrix *b, float alpha, int accumulate, float *c,
            int64_t ldc)
{
    int64_t b_bytes = b->ld * (dtype == KT_DTYPE_F32 ? 4 : 2), j = 0;
    const char *right = b->data;
    for (; j + DOT_COLS <= cols; j += DOT_COLS)
        dot_group(dtype, rows, DOT_COLS, k, a, a_bytes, right + j * b_bytes, b_bytes, alpha,
                  accumulate, c + j, ldc);
    for (; j < cols; j++)
        dot_group(dtype, rows, 1, k, a, a_bytes, right + j * b_bytes, b_bytes, alpha, accumulate,
                  c + j, ldc);
}

#define DOT_PARAMETERS                                                                             \
    int64_t cols, int64_t k, const char *a, int64_t a_bytes, const struct kt_matrix *b,            \
        float alpha, int accumulate, float *c, int64_t ldc
#define DOT_VARIANT(rows)                                                                          \
    static void dot_##rows(DOT_PARAMETERS)                                                         \
    {                                                                                              \
        if (b->dtype == KT_DTYPE_BF16)                                                             \
            dot_columns(KT_DTYPE_BF16, rows, cols, k, a, a_bytes, b, alpha, accumulate, c, ldc);   \
        else if (b->dtype == KT_DTYPE_F16)                                                         \
            dot_columns(KT_DTYPE_F16, rows, cols, k, a, a_bytes, b, alpha, accumulate, c, ldc);    \
        else                                                                                       \
            dot_columns(KT_DTYPE_F32, rows, cols, k, a, a_bytes, b, alpha, accumulate, c, ldc);    \
    }

DOT_VARIANT(1)
DOT_VARIANT(2)
#if DOT_ROWS > 2
DOT_VARIANT(3)
DOT_VARIANT(4)
DOT_VARIANT(5)
#endif

static void (*const dot_variants[DOT_ROWS])(DOT_PARAMETERS) = {
    dot_1, dot_2,
#if DOT_ROWS > 2
    dot_3, dot_4, dot_5,
#endif
};

static void dot(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                const struct kt_matrix *b, float alpha, int accumulate, float *c, int64_t ldc)
{
    int64_t groups = (rows + DOT_ROWS - 1) / DOT_ROWS, size = (rows + groups - 1) / groups;
    int64_t a_bytes = lda * DOT_ELEMENT_SIZE;
    /* Columns go by small blocks, which stay in cache for the next group of rows. */
    for (int64_t j = 0; j < cols; j += 2 * DOT_COLS) {
        struct kt_matrix block = *b;
        block.data = (const char *)b->data + j * b->ld * (b->dtype == KT_DTYPE_F32 ? 4 : 2);
        for (int64_t i = 0; i < rows; i += size)
            dot_variants[kt_min_i64(size, rows - i) - 1](
                kt_min_i64(2 * DOT_COLS, cols - j), k, (const char *)a + i * a_bytes, a_bytes,
                &block, alpha, accumulate, c + i * ldc + j, ldc);
    }
}
