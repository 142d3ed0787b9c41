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

/* How a product is made. */
enum form {
    NOTHING,
    ROW_DOTS,  /* few columns: dot products with rows of A as they are */
    NARROW,    /* few columns: tasks convert their rows */
    CONVERTED, /* all rows are converted first, a part at a time */
};

/* What is converted at a time: a part of the depth rather than of the rows, since all rows of a
 * part share a packed block. */
struct part {
    int64_t rows, depth, stride;
};

struct product {
    const struct kt_gemm_kernel *kernel;
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t lda;
    bool trans_a;
    struct kt_gemm_right b;
    bool accumulate;
    float *c;
    int64_t ldc;
    bool transposed_c; /* element (i, j) of the result is at c[j * ldc + i] */
    enum form form;
    enum kt_gemm_way way; /* decided by all rows: blocks of them depend on the number of threads */
    struct part part;     /* CONVERTED */
    char *threads, *rows;
    uint64_t thread_bytes;
    int64_t block_rows, row_blocks, block_cols;
};

static char *row_at(const struct product *p, int64_t row, int64_t col)
{
    return p->rows + (row * p->part.stride + col) * p->kernel->element_size;
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
                           int64_t lda, const struct kt_gemm_right *b, bool accumulate, float *c,
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
        struct kt_gemm_right b = kt_gemm_right_at(&p->b, 0, col);
        if (p->transposed_c) {
            multiply_block(p, rows, cols, p->k, row_at(p, row, 0), p->part.stride, &b, 0, tile,
                           KT_GEMM_BLOCK_COLS, panels);
            add_transposed(p, row, rows, col, cols, tile);
        } else {
            multiply_block(p, rows, cols, p->k, row_at(p, row, 0), p->part.stride, &b,
                           p->accumulate, p->c + row * p->ldc + col, p->ldc, panels);
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
        struct kt_gemm_right b = kt_gemm_right_at(&p->b, from, 0);
        for (int64_t i = begin; i < end; i++)
            p->kernel->convert(depth, p->a + i * p->lda + from,
                               slab + (i - begin) * stride * p->kernel->element_size);
        multiply_block(p, end - begin, p->n, depth, slab, stride, &b, p->accumulate || from > 0,
                       p->c + begin * p->ldc, p->ldc, panels);
    }
}

static void clear(const struct product *p)
{
    for (int64_t i = 0; i < p->m && p->n > 0 && !p->accumulate; i++)
        memset(p->c + i * p->ldc, 0, (size_t)p->n * sizeof *p->c);
}

/* Panels, and a tile of transposed results or a slab of converted rows. */
static uint64_t thread_bytes(const struct product *p)
{
    uint64_t bytes = kt_gemm_panel_bytes(p->kernel);
    if (p->form == NARROW)
        bytes += (uint64_t)NARROW_ROWS * (uint64_t)p->kernel->element_size *
                 (uint64_t)kt_gemm_row_stride(p->kernel, kt_gemm_block_depth(p->kernel));
    else if (p->transposed_c)
        bytes += MIN_BLOCK_ROWS * KT_GEMM_BLOCK_COLS * sizeof(float);
    return bytes;
}

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

/* Very few columns in float32 (LoRA): dot products take the rows as they are. */
static bool uses_row_dots(const struct product *p)
{
    return !p->trans_a && !p->b.weight && (p->b.transposed || p->b.matrix.dtype == KT_DTYPE_F32) &&
           !p->kernel->bf16 && p->kernel->dot_rows >= MIN_DOT_ROWS && p->n <= DOT_NARROW_COLS &&
           p->k <= DOT_NARROW_DEPTH;
}

static void dot_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    (void)thread;
    p->kernel->dot(end - begin, p->n, p->k, p->a + begin * p->lda, p->lda, &p->b.matrix, p->alpha,
                   p->accumulate, p->c + begin * p->ldc, p->ldc);
}

/* The right factor [k, n] as [n, k] in `to`. */
static struct kt_gemm_right transpose_right(const struct product *p, float *to)
{
    const float *from = p->b.matrix.data;
    for (int64_t q = 0; q < p->k; q++)
        for (int64_t j = 0; j < p->n; j++)
            to[j * p->k + q] = from[q * p->b.matrix.ld + j];
    return (struct kt_gemm_right){.matrix = {to, KT_DTYPE_F32, p->k}, .transposed = true};
}

static void run_row_dots(struct kt_pool *pool, struct product *p)
{
    bool small = kt_gemm_is_small(p->m, p->n, p->k);
    if (!p->b.transposed)
        p->b = transpose_right(p, (float *)(void *)p->rows);
    kt_parallel_for(pool, p->m, small ? p->m : MIN_BLOCK_ROWS, dot_rows, p);
}

static void run_narrow(struct kt_pool *pool, struct product *p)
{
    int64_t share = p->m / (2 * kt_pool_num_threads(pool)) / p->kernel->mr * p->kernel->mr;
    int64_t rows = kt_min_i64(NARROW_ROWS, kt_max_i64(share, p->kernel->mr));
    if (kt_gemm_is_small(p->m, p->n, p->k))
        rows = NARROW_ROWS;
    kt_parallel_for(pool, p->m, rows, multiply_narrow, p);
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
        p->block_cols = p->b.transposed ? DOT_BLOCK_COLS : outer_cols(p, threads);
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
    bool small = kt_gemm_is_small(p->m, p->n, p->k);
    kt_parallel_for(pool, p->m, small ? p->m : 16, p->trans_a ? convert_columns : convert_rows, p);
    kt_parallel_for(pool, tasks, small ? tasks : 1, multiply_blocks, p);
}

static void multiply_part(struct kt_pool *pool, const struct product *whole, int64_t row,
                          int64_t from)
{
    struct product p = *whole;
    p.b = kt_gemm_right_at(&whole->b, from, 0);
    p.m = kt_min_i64(p.part.rows, whole->m - row);
    p.k = kt_min_i64(p.part.depth, whole->k - from);
    p.a += p.trans_a ? from * p.lda + row : row * p.lda + from;
    p.c += row * (p.transposed_c ? 1 : p.ldc);
    p.accumulate |= from > 0;
    multiply_converted(pool, &p);
}

static void run_converted(struct kt_pool *pool, const struct product *p)
{
    for (int64_t row = 0; row < p->m; row += p->part.rows)
        for (int64_t from = 0; from < p->k; from += p->part.depth)
            multiply_part(pool, p, row, from);
}

/* C^T = B^T A, so that the factor with fewer columns is the one that is transposed. */
static void swap_factors(struct product *p)
{
    struct kt_gemm_right right = {.matrix = {p->a, KT_DTYPE_F32, p->lda}};
    int64_t m = p->m;
    p->a = p->b.matrix.data;
    p->lda = p->b.matrix.ld;
    p->b = right;
    p->m = p->n;
    p->n = m;
    p->transposed_c = true;
    p->way = kt_gemm_way(p->kernel, p->m, &p->b);
}

static struct product plan(const struct kt_gemm_product *g)
{
    struct product p = {.kernel = g->kernel,
                        .m = g->m,
                        .n = g->n,
                        .k = g->k,
                        .alpha = g->alpha,
                        .a = g->a,
                        .lda = g->lda,
                        .trans_a = g->trans_a,
                        .b = g->b,
                        .accumulate = g->accumulate,
                        .c = g->c,
                        .ldc = g->ldc};
    if (g->m <= 0 || g->n <= 0 || g->k <= 0)
        return p;
    p.way = kt_gemm_way(p.kernel, p.m, &p.b);
    if (p.m == 1 && p.way == KT_GEMM_DIRECT)
        p.way = KT_GEMM_ROW;
    if (uses_row_dots(&p)) {
        p.form = ROW_DOTS;
        return p;
    }
    p.form = !p.trans_a && p.n <= kt_gemm_block_cols(p.kernel) ? NARROW : CONVERTED;
    if (p.trans_a && !p.b.transposed && !p.b.weight && p.b.matrix.dtype == KT_DTYPE_F32 &&
        p.n < p.m)
        swap_factors(&p);
    p.part = converted_part(p.kernel, p.m, p.k);
    p.thread_bytes = thread_bytes(&p);
    return p;
}

/* At least those of a part, which may be larger where there are fewer rows. */
static uint64_t converted_bytes(const struct product *p)
{
    int64_t element = p->kernel->element_size, row = p->part.stride * element;
    int64_t all = p->m * kt_gemm_row_stride(p->kernel, p->k) * element;
    return (uint64_t)kt_max_i64(kt_min_i64(all, CONVERTED_BYTES), row);
}

/* Of what all threads share: behind their own. */
static uint64_t shared_bytes(const struct product *p)
{
    if (p->form == ROW_DOTS)
        return p->b.transposed ? 0 : (uint64_t)(p->n * p->k) * sizeof(float);
    if (p->form == CONVERTED)
        return converted_bytes(p);
    return 0;
}

static uint64_t all_thread_bytes(const struct kt_pool *pool, const struct product *p)
{
    return (uint64_t)kt_pool_num_threads(pool) * p->thread_bytes;
}

uint64_t kt_gemm_run_scratch(const struct kt_pool *pool, const struct kt_gemm_product *product)
{
    struct product p = plan(product);
    return all_thread_bytes(pool, &p) + shared_bytes(&p);
}

void kt_gemm_run(struct kt_pool *pool, const struct kt_gemm_product *product, void *scratch)
{
    struct product p = plan(product);
    p.threads = scratch;
    p.rows = p.threads + all_thread_bytes(pool, &p);
    switch (p.form) {
    case NOTHING:
        clear(&p);
        break;
    case ROW_DOTS:
        run_row_dots(pool, &p);
        break;
    case NARROW:
        run_narrow(pool, &p);
        break;
    case CONVERTED:
        run_converted(pool, &p);
        break;
    }
}
