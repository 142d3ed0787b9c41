/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/gemm.h"

#include <string.h>

#include "core/memory.h"

enum {
    TRANSPOSE_BLOCK = 64,       /* depth that is transposed at a time */
    CONVERTED_BYTES = 16 << 20, /* of rows converted at a time */
    MIN_CONVERTED_DEPTH = 2048,
    MAX_BLOCK_ROWS = 480, /* rows that share a packed block; multiples of every kernel's mr */
    MIN_BLOCK_ROWS = 60,
    DOT_BLOCK_COLS = 48,
    MIN_OUTER_COLS = 64,
    MIN_DOT_ROWS = 8, /* dot_rows of kernels whose dot products are as fast as their tiles */
    DOT_NARROW_COLS = 12,
    DOT_NARROW_DEPTH = 1 << 15,
    NARROW_ROWS = 192, /* rows of a task that converts its own */
    TASKS_A_THREAD = 4
};

int64_t kt_gemm_row_stride(const struct kt_gemm_kernel *kernel, int64_t k)
{
    int64_t line = 64 / kernel->element_size;
    return ((k + line - 1) / line | 1) * line;
}

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

struct product {
    const struct kt_gemm_kernel *kernel;
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t lda;
    int trans_a;
    char *rows;
    int64_t row_stride;
    const struct kt_gemm_right *b;
    enum kt_gemm_way way; /* decided by all rows: blocks of them depend on the number of threads */
    int accumulate;
    float *c;
    int64_t ldc;
    int transposed_c; /* element (i, j) of the result is at c[j * ldc + i] */
    char *threads;
    uint64_t thread_bytes;
    int64_t block_rows, row_blocks, block_cols;
};

static char *row_at(const struct product *p, int64_t row, int64_t col)
{
    return p->rows + (row * p->row_stride + col) * p->kernel->element_size;
}

static void convert_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        p->kernel->convert(p->k, p->a + i * p->lda, row_at(p, i, 0));
}

static void convert_columns(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    float block[TRANSPOSE_BLOCK];
    (void)thread;
    for (int64_t from = 0; from < p->k; from += TRANSPOSE_BLOCK) {
        int64_t depth = kt_min_i64(TRANSPOSE_BLOCK, p->k - from);
        for (int64_t i = begin; i < end; i++) {
            for (int64_t q = 0; q < depth; q++)
                block[q] = p->a[(from + q) * p->lda + i];
            p->kernel->convert(depth, block, row_at(p, i, from));
        }
    }
}

static void multiply_block(const struct product *p, int64_t m, int64_t n, int64_t k, const void *a,
                           int64_t lda, const struct kt_gemm_right *b, int accumulate, float *c,
                           int64_t ldc, void *panels)
{
    kt_gemm_block_by(p->way, p->kernel, m, n, k, p->alpha, a, lda, b, accumulate, c, ldc, panels);
}

static void add_transposed(const struct product *p, int64_t row, int64_t rows, int64_t col,
                           int64_t cols, const float *tile)
{
    for (int64_t j = 0; j < cols; j++) {
        float *c = p->c + (col + j) * p->ldc + row;
        for (int64_t i = 0; i < rows; i++)
            c[i] = (p->accumulate ? c[i] : 0.0f) + tile[i * KT_GEMM_BLOCK_COLS + j];
    }
}

/* Task: block of converted rows x block of columns. */
static void multiply_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    char *panels = p->threads + (uint64_t)thread * p->thread_bytes;
    float *tile = (float *)(void *)(panels + kt_gemm_panel_bytes(p->kernel));
    for (int64_t task = begin; task < end; task++) {
        int64_t row = task % p->row_blocks * p->block_rows;
        int64_t col = task / p->row_blocks * p->block_cols;
        int64_t rows = kt_min_i64(p->block_rows, p->m - row);
        int64_t cols = kt_min_i64(p->block_cols, p->n - col);
        struct kt_gemm_right b = kt_gemm_right_at(p->b, 0, col);
        if (p->transposed_c) {
            multiply_block(p, rows, cols, p->k, row_at(p, row, 0), p->row_stride, &b, 0, tile,
                           KT_GEMM_BLOCK_COLS, panels);
            add_transposed(p, row, rows, col, cols, tile);
        } else {
            multiply_block(p, rows, cols, p->k, row_at(p, row, 0), p->row_stride, &b, p->accumulate,
                           p->c + row * p->ldc + col, p->ldc, panels);
        }
    }
}

/* Few columns: a task converts its rows itself, slab by slab of the depth, so that they are read
 * from memory once and found in cache by the tiles. */
static void multiply_narrow(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    char *panels = p->threads + (uint64_t)thread * p->thread_bytes;
    char *slab = panels + kt_gemm_panel_bytes(p->kernel);
    int64_t max_depth = kt_gemm_block_depth(p->kernel),
            stride = kt_gemm_row_stride(p->kernel, max_depth);
    for (int64_t from = 0; from < p->k; from += max_depth) {
        int64_t depth = kt_min_i64(max_depth, p->k - from);
        struct kt_gemm_right b = kt_gemm_right_at(p->b, from, 0);
        for (int64_t i = begin; i < end; i++)
            p->kernel->convert(depth, p->a + i * p->lda + from,
                               slab + (i - begin) * stride * p->kernel->element_size);
        multiply_block(p, end - begin, p->n, depth, slab, stride, &b, p->accumulate || from > 0,
                       p->c + begin * p->ldc, p->ldc, panels);
    }
}

static void clear(const struct product *p)
{
    for (int64_t i = 0; i < p->m && !p->accumulate; i++)
        memset(p->c + i * p->ldc, 0, (size_t)p->n * sizeof *p->c);
}

/* Panels, and a tile of transposed results or a slab of converted rows. */
static uint64_t thread_bytes(const struct kt_gemm_kernel *kernel)
{
    uint64_t tile = MIN_BLOCK_ROWS * KT_GEMM_BLOCK_COLS * sizeof(float);
    uint64_t slab = (uint64_t)NARROW_ROWS * (uint64_t)kernel->element_size *
                    (uint64_t)kt_gemm_row_stride(kernel, kt_gemm_block_depth(kernel));
    return kt_gemm_panel_bytes(kernel) + (tile > slab ? tile : slab);
}

/* What is converted at a time: a part of the depth rather than of the rows, since all rows of a
 * part share a packed block. */
struct part {
    int64_t rows, depth, stride;
};

static struct part converted_part(const struct kt_gemm_kernel *kernel, int64_t m, int64_t k)
{
    struct part part;
    int64_t step = kt_gemm_block_depth(kernel);
    int64_t depth = CONVERTED_BYTES / kernel->element_size / m / step * step;
    part.depth = kt_min_i64(k, kt_max_i64(depth, MIN_CONVERTED_DEPTH));
    part.stride = kt_gemm_row_stride(kernel, part.depth);
    int64_t rows = CONVERTED_BYTES / (part.stride * kernel->element_size);
    int64_t times = (m + rows - 1) / rows;
    part.rows = (m + times - 1) / times;
    return part;
}

uint64_t kt_gemm_scratch_bytes(const struct kt_context *ctx, const struct kt_gemm_kernel *kernel,
                               int64_t m, int64_t k)
{
    uint64_t transposed =
        DOT_NARROW_COLS * (uint64_t)kt_min_i64(k, DOT_NARROW_DEPTH) * sizeof(float);
    uint64_t row_bytes = (uint64_t)kt_gemm_row_stride(kernel, k) * (uint64_t)kernel->element_size;
    uint64_t converted =
        (uint64_t)m < CONVERTED_BYTES / row_bytes ? (uint64_t)m * row_bytes : CONVERTED_BYTES;
    return thread_bytes(kernel) * (uint64_t)kt_pool_num_threads(ctx->pool) +
           (converted > transposed ? converted : transposed);
}

static kt_status get_scratch(struct kt_context *ctx, struct kt_scratch *scratch, struct product *p,
                             uint64_t rows_bytes)
{
    uint64_t threads = (uint64_t)kt_pool_num_threads(ctx->pool);
    void *memory;
    p->thread_bytes = thread_bytes(p->kernel);
    KT_TRY(kt_scratch_get(scratch, threads * p->thread_bytes + rows_bytes, "a matrix product",
                          &memory));
    p->threads = memory;
    p->rows = p->threads + threads * p->thread_bytes;
    return KT_OK;
}

/* Very few columns in float32 (LoRA): dot products take the rows as they are. */
static int uses_row_dots(const struct product *p)
{
    return !p->kernel->bf16 && p->kernel->dot_rows >= MIN_DOT_ROWS && p->n <= DOT_NARROW_COLS &&
           p->k <= DOT_NARROW_DEPTH;
}

static void dot_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    (void)thread;
    p->kernel->dot(end - begin, p->n, p->k, p->a + begin * p->lda, p->lda, &p->b->matrix, p->alpha,
                   p->accumulate, p->c + begin * p->ldc, p->ldc);
}

/* The right factor [k, n] as [n, k] in `to`. */
static struct kt_gemm_right transpose_right(const struct product *p, float *to)
{
    const float *from = p->b->matrix.data;
    for (int64_t q = 0; q < p->k; q++)
        for (int64_t j = 0; j < p->n; j++)
            to[j * p->k + q] = from[q * p->b->matrix.ld + j];
    return (struct kt_gemm_right){.matrix = {to, KT_DTYPE_F32, p->k}, .transposed = 1};
}

static kt_status run_row_dots(struct kt_context *ctx, struct kt_scratch *scratch, struct product *p)
{
    struct kt_gemm_right right;
    if (!p->b->transposed) {
        KT_TRY(get_scratch(ctx, scratch, p, (uint64_t)(p->n * p->k) * sizeof(float)));
        right = transpose_right(p, (float *)(void *)p->rows);
        p->b = &right;
    }
    int small = kt_gemm_is_small(p->m, p->n, p->k);
    kt_parallel_for(ctx->pool, p->m, small ? p->m : MIN_BLOCK_ROWS, dot_rows, p);
    return KT_OK;
}

static kt_status run_narrow(struct kt_context *ctx, struct kt_scratch *scratch, struct product *p)
{
    int64_t share = p->m / (2 * kt_pool_num_threads(ctx->pool)) / p->kernel->mr * p->kernel->mr;
    int64_t rows = kt_min_i64(NARROW_ROWS, kt_max_i64(share, p->kernel->mr));
    if (kt_gemm_is_small(p->m, p->n, p->k))
        rows = NARROW_ROWS;
    KT_TRY(get_scratch(ctx, scratch, p, 0));
    kt_parallel_for(ctx->pool, p->m, rows, multiply_narrow, p);
    return KT_OK;
}

static int64_t outer_cols(const struct product *p, int64_t threads)
{
    int64_t share = round_up(p->n / (2 * threads), MIN_OUTER_COLS);
    return kt_min_i64(kt_gemm_outer_cols(p->m), kt_max_i64(share, MIN_OUTER_COLS));
}

/* Tall blocks pack a column fewer times; there should be a few tasks for each thread. */
static void choose_blocks(struct product *p, int64_t threads)
{
    int64_t rows = p->transposed_c ? MIN_BLOCK_ROWS : MAX_BLOCK_ROWS;
    p->block_cols = kt_gemm_block_cols(p->kernel);
    if (p->way != KT_GEMM_PACKED)
        p->block_cols = p->b->transposed ? DOT_BLOCK_COLS : outer_cols(p, threads);
    if (p->transposed_c)
        p->block_cols = kt_min_i64(p->block_cols, KT_GEMM_BLOCK_COLS);
    int64_t col_blocks = (p->n + p->block_cols - 1) / p->block_cols;
    while (rows > MIN_BLOCK_ROWS &&
           (p->m + rows - 1) / rows * col_blocks < TASKS_A_THREAD * threads)
        rows /= 2;
    p->row_blocks = (p->m + rows - 1) / rows;
    p->block_rows = round_up((p->m + p->row_blocks - 1) / p->row_blocks, p->kernel->mr);
    p->row_blocks = (p->m + p->block_rows - 1) / p->block_rows;
}

static void multiply_converted(struct kt_pool *pool, struct product *p)
{
    choose_blocks(p, kt_pool_num_threads(pool));
    int64_t tasks = (p->n + p->block_cols - 1) / p->block_cols * p->row_blocks;
    int small = kt_gemm_is_small(p->m, p->n, p->k);
    kt_parallel_for(pool, p->m, small ? p->m : 16, p->trans_a ? convert_columns : convert_rows, p);
    kt_parallel_for(pool, tasks, small ? tasks : 1, multiply_blocks, p);
}

static void multiply_part(struct kt_pool *pool, const struct product *whole,
                          const struct part *part, int64_t row, int64_t from)
{
    struct product p = *whole;
    struct kt_gemm_right b = kt_gemm_right_at(whole->b, from, 0);
    p.b = &b;
    p.m = kt_min_i64(part->rows, whole->m - row);
    p.k = kt_min_i64(part->depth, whole->k - from);
    p.a += p.trans_a ? from * p.lda + row : row * p.lda + from;
    p.c += row * (p.transposed_c ? 1 : p.ldc);
    p.accumulate |= from > 0;
    multiply_converted(pool, &p);
}

static kt_status run_converted(struct kt_context *ctx, struct kt_scratch *scratch,
                               struct product *p)
{
    struct part part = converted_part(p->kernel, p->m, p->k);
    p->row_stride = part.stride;
    KT_TRY(get_scratch(ctx, scratch, p,
                       (uint64_t)(part.rows * part.stride * p->kernel->element_size)));
    for (int64_t row = 0; row < p->m; row += part.rows)
        for (int64_t from = 0; from < p->k; from += part.depth)
            multiply_part(ctx->pool, p, &part, row, from);
    return KT_OK;
}

/* C^T = B^T A, so that the factor with fewer columns is the one that is transposed. */
static struct kt_gemm_right swap_factors(struct product *p)
{
    struct kt_gemm_right right = {.matrix = {p->a, KT_DTYPE_F32, p->lda}};
    int64_t m = p->m;
    p->a = p->b->matrix.data;
    p->lda = p->b->matrix.ld;
    p->m = p->n;
    p->n = m;
    p->transposed_c = 1;
    return right;
}

kt_status kt_gemm_run(struct kt_context *ctx, struct kt_scratch *scratch,
                      const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                      float alpha, const float *a, int64_t lda, int trans_a,
                      const struct kt_gemm_right *b, int accumulate, float *c, int64_t ldc)
{
    struct product p = {.kernel = kernel,
                        .m = m,
                        .n = n,
                        .k = k,
                        .alpha = alpha,
                        .a = a,
                        .lda = lda,
                        .trans_a = trans_a,
                        .b = b,
                        .accumulate = accumulate,
                        .c = c,
                        .ldc = ldc};
    struct kt_gemm_right right;
    if (m <= 0 || n <= 0)
        return KT_OK;
    if (k <= 0) {
        clear(&p);
        return KT_OK;
    }
    p.way = kt_gemm_way(kernel, m, b);
    if (m == 1 && p.way == KT_GEMM_DIRECT)
        p.way = KT_GEMM_ROW;
    if (!trans_a && !b->weight && (b->transposed || b->matrix.dtype == KT_DTYPE_F32) &&
        uses_row_dots(&p))
        return run_row_dots(ctx, scratch, &p);
    if (!trans_a && n <= kt_gemm_block_cols(kernel))
        return run_narrow(ctx, scratch, &p);
    if (trans_a && !b->transposed && !b->weight && b->matrix.dtype == KT_DTYPE_F32 && n < m) {
        right = swap_factors(&p);
        p.b = &right;
        p.way = kt_gemm_way(kernel, p.m, &right);
    }
    return run_converted(ctx, scratch, &p);
}
