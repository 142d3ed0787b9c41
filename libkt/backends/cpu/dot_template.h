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

enum {
    DOT_BYTES = 64 << 10, /* of converted rows at a time */
    DOT_NEAR = 16 << 10   /* what is fetched so far ahead finds room in level-1 cache */
};

/* One vector of depth, n units of it there. */
#define DOT_STEP(n)                                                                                \
    {                                                                                              \
        _Pragma("GCC unroll 8") for (int j = 0; j < cols; j++) right[j] =                          \
            DOT_LOAD_B(dtype, b + j * b_bytes, p, n);                                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)                                     \
        {                                                                                          \
            VECTOR x = DOT_LOAD_A(a + i * a_bytes, p, n);                                          \
            _Pragma("GCC unroll 8") for (int j = 0; j < cols; j++) sum[i * cols + j] =             \
                VECTOR_MULTIPLY_ADD(x, right[j], sum[i * cols + j]);                               \
        }                                                                                          \
    }

static inline __attribute__((always_inline)) void
dot_group(const kt_dtype dtype, const int rows, const int cols, int64_t k, const char *a,
          int64_t a_bytes, const char *b, int64_t b_bytes, int64_t ahead, float alpha,
          bool accumulate, float *c, int64_t ldc)
{
    const int64_t size = dtype == KT_DTYPE_F32 ? 4 : 2;
    VECTOR sum[DOT_ROWS * DOT_COLS], right[2 * DOT_COLS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < cols; j++)
            sum[i * cols + j] = VECTOR_ZERO();
    int64_t p = 0;
    for (; p + DOT_DEPTH <= k; p += DOT_DEPTH) {
        const char *next = b + p * size + ahead;
        if (ahead > DOT_NEAR) {
#pragma GCC unroll 8
            for (int j = 0; j < cols; j++)
                __builtin_prefetch(next + j * b_bytes, 0, 2);
        } else {
#pragma GCC unroll 8
            for (int j = 0; j < cols; j++)
                __builtin_prefetch(next + j * b_bytes);
        }
        DOT_STEP(DOT_DEPTH)
    }
    if (p < k)
        DOT_STEP(k - p)
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] =
                (accumulate ? c[i * ldc + j] : 0.0f) + alpha * VECTOR_REDUCE(sum[i * cols + j]);
}

static inline __attribute__((always_inline)) void
dot_columns(const kt_dtype dtype, const int rows, int64_t cols, int64_t k, const char *a,
            int64_t a_bytes, const struct kt_matrix *b, int64_t ahead, float alpha, bool accumulate,
            float *c, int64_t ldc)
{
    int64_t b_bytes = b->ld * (dtype == KT_DTYPE_F32 ? 4 : 2), j = 0;
    const char *right = b->data;
    /* One row hides the latency of its sums behind more columns. */
    for (; rows == 1 && j + 2 * DOT_COLS <= cols; j += 2 * DOT_COLS)
        dot_group(dtype, 1, 2 * DOT_COLS, k, a, a_bytes, right + j * b_bytes, b_bytes, ahead, alpha,
                  accumulate, c + j, ldc);
    for (; j + DOT_COLS <= cols; j += DOT_COLS)
        dot_group(dtype, rows, DOT_COLS, k, a, a_bytes, right + j * b_bytes, b_bytes, ahead, alpha,
                  accumulate, c + j, ldc);
    for (; j < cols; j++)
        dot_group(dtype, rows, 1, k, a, a_bytes, right + j * b_bytes, b_bytes, ahead, alpha,
                  accumulate, c + j, ldc);
}

#define DOT_PARAMETERS                                                                             \
    int64_t cols, int64_t k, const char *a, int64_t a_bytes, const struct kt_matrix *b,            \
        int64_t ahead, float alpha, bool accumulate, float *c, int64_t ldc
#define DOT_VARIANT(rows)                                                                          \
    static void dot_##rows(DOT_PARAMETERS)                                                         \
    {                                                                                              \
        if (b->dtype == KT_DTYPE_BF16)                                                             \
            dot_columns(KT_DTYPE_BF16, rows, cols, k, a, a_bytes, b, ahead, alpha, accumulate, c,  \
                        ldc);                                                                      \
        else if (b->dtype == KT_DTYPE_F16)                                                         \
            dot_columns(KT_DTYPE_F16, rows, cols, k, a, a_bytes, b, ahead, alpha, accumulate, c,   \
                        ldc);                                                                      \
        else                                                                                       \
            dot_columns(KT_DTYPE_F32, rows, cols, k, a, a_bytes, b, ahead, alpha, accumulate, c,   \
                        ldc);                                                                      \
    }

DOT_VARIANT(1)
DOT_VARIANT(2)
#if DOT_ROWS > 2
DOT_VARIANT(3)
DOT_VARIANT(4)
#endif
#if DOT_ROWS > 4
DOT_VARIANT(5)
#endif

static void (*const dot_variants[DOT_ROWS])(DOT_PARAMETERS) = {
    dot_1, dot_2,
#if DOT_ROWS > 2
    dot_3, dot_4,
#endif
#if DOT_ROWS > 4
    dot_5,
#endif
};

static void dot(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                const struct kt_matrix *b, float alpha, bool accumulate, float *c, int64_t ldc)
{
    int64_t groups = (rows + DOT_ROWS - 1) / DOT_ROWS, size = (rows + groups - 1) / groups;
    int64_t a_bytes = lda * DOT_ELEMENT_SIZE, b_size = b->dtype == KT_DTYPE_F32 ? 4 : 2;
    int64_t max_depth = DOT_BYTES / DOT_ELEMENT_SIZE / rows / DOT_DEPTH * DOT_DEPTH;
    max_depth = kt_max_i64(max_depth, 128);
    /* The left factor goes by pieces of depth that stay in level-1 cache for all columns, and
     * columns by small blocks that stay there for the next group of rows. */
    for (int64_t from = 0; from < k; from += max_depth) {
        const char *left = (const char *)a + from * DOT_ELEMENT_SIZE;
        int64_t depth = kt_min_i64(max_depth, k - from);
        struct kt_matrix block = *b;
        for (int64_t j = 0; j < cols; j += 2 * DOT_COLS) {
            block.data = (const char *)b->data + (j * b->ld + from) * b_size;
            for (int64_t i = 0; i < rows; i += size)
                dot_variants[kt_min_i64(size, rows - i) - 1](
                    kt_min_i64(2 * DOT_COLS, cols - j), depth, left + i * a_bytes, a_bytes, &block,
                    i ? 0 : 2 * DOT_COLS * b->ld * b_size, alpha, accumulate || from > 0,
                    c + i * ldc + j, ldc);
        }
    }
}
