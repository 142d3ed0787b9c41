/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/gemm.h"

#include "core/dtype.h"
#include "core/memory.h"

enum { TRANSPOSE_BLOCK = 64, CONVERTED_BYTES = 16 << 20, MIN_ROWS = 48, BLOCK_ROWS = 256 };

int64_t kt_gemm_row_stride(const struct kt_gemm_kernel *kernel, int64_t k)
{
    int64_t line = 64 / kernel->element_size;
    return ((k + line - 1) / line | 1) * line;
}

static int64_t block_depth(const struct kt_gemm_kernel *kernel)
{
    return KT_GEMM_BLOCK_BYTES / kernel->element_size;
}

static int64_t block_cols(const struct kt_gemm_kernel *kernel)
{
    return KT_GEMM_BLOCK_COLS / kernel->nr * kernel->nr;
}

uint64_t kt_gemm_panel_bytes(const struct kt_gemm_kernel *kernel)
{
    return (uint64_t)block_cols(kernel) * KT_GEMM_BLOCK_BYTES;
}

static struct kt_matrix submatrix(const struct kt_matrix *m, int64_t row, int64_t col)
{
    struct kt_matrix sub = *m;
    sub.data = (const char *)m->data + (row * m->ld + col) * (int64_t)kt_dtype_size(m->dtype);
    return sub;
}

struct kt_gemm_right kt_gemm_right_cols(const struct kt_gemm_right *b, int64_t col)
{
    struct kt_gemm_right sub = *b;
    sub.matrix = b->transposed ? submatrix(&b->matrix, col, 0) : submatrix(&b->matrix, 0, col);
    return sub;
}

static void pack_panels(const struct kt_gemm_kernel *kernel, int64_t depth, int64_t from,
                        int64_t col, int64_t cols, const struct kt_gemm_right *b, char *panels,
                        int64_t panel_bytes)
{
    for (int64_t j = 0; j < cols; j += kernel->nr, panels += panel_bytes) {
        int64_t width = kt_min_i64(kernel->nr, cols - j);
        struct kt_matrix sub;
        if (b->transposed) {
            sub = submatrix(&b->matrix, col + j, from);
            kernel->pack_nt(depth, width, &sub, panels);
        } else {
            sub = submatrix(&b->matrix, from, col + j);
            kernel->pack_nn(depth, width, &sub, panels);
        }
    }
}

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

void kt_gemm_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                   float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                   int accumulate, float *c, int64_t ldc, void *panels)
{
    int64_t max_cols = block_cols(kernel), max_depth = block_depth(kernel);
    /* Rows are spread evenly over tiles, so that no tile is thin. */
    int64_t tiles = (m + kernel->mr - 1) / kernel->mr, rows = (m + tiles - 1) / tiles;
    for (int64_t col = 0; col < n; col += max_cols) {
        int64_t cols = kt_min_i64(max_cols, n - col);
        for (int64_t from = 0; from < k; from += max_depth) {
            int64_t depth = kt_min_i64(max_depth, k - from);
            int64_t padded = round_up(depth, kernel->k_step);
            int64_t panel_bytes = padded * kernel->nr * kernel->element_size;
            pack_panels(kernel, depth, from, col, cols, b, panels, panel_bytes);
            for (int64_t i = 0; i < m; i += rows) {
                const char *left = (const char *)a + (i * lda + from) * kernel->element_size;
                const char *panel = panels;
                for (int64_t j = 0; j < cols; j += kernel->nr, panel += panel_bytes)
                    kernel->tile(kt_min_i64(rows, m - i), kt_min_i64(kernel->nr, cols - j), padded,
                                 left, lda, panel, alpha, accumulate || from > 0,
                                 c + i * ldc + col + j, ldc);
            }
        }
    }
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
    int accumulate;
    float *c;
    int64_t ldc;
    char *panels;
    int64_t block_rows, row_blocks, block_cols;
};

static void convert_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        p->kernel->convert(p->k, p->a + i * p->lda,
                           p->rows + i * p->row_stride * p->kernel->element_size);
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
            p->kernel->convert(depth, block,
                               p->rows + (i * p->row_stride + from) * p->kernel->element_size);
        }
    }
}

static void multiply_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    char *panels = p->panels + (uint64_t)thread * kt_gemm_panel_bytes(p->kernel);
    for (int64_t task = begin; task < end; task++) {
        int64_t row = task % p->row_blocks * p->block_rows;
        int64_t col = task / p->row_blocks * p->block_cols;
        struct kt_gemm_right b = kt_gemm_right_cols(p->b, col);
        kt_gemm_block(p->kernel, kt_min_i64(p->block_rows, p->m - row),
                      kt_min_i64(p->block_cols, p->n - col), p->k, p->alpha,
                      p->rows + row * p->row_stride * p->kernel->element_size, p->row_stride, &b,
                      p->accumulate, p->c + row * p->ldc + col, p->ldc, panels);
    }
}

static void clear(const struct product *p)
{
    for (int64_t i = 0; i < p->m && !p->accumulate; i++)
        memset(p->c + i * p->ldc, 0, (size_t)p->n * sizeof *p->c);
}

/* Rows of depth k that are converted at a time. */
static int64_t converted_rows(const struct kt_gemm_kernel *kernel, int64_t m, int64_t k)
{
    int64_t row_bytes = kt_gemm_row_stride(kernel, k) * kernel->element_size;
    return kt_min_i64(m, kt_max_i64(CONVERTED_BYTES / row_bytes, MIN_ROWS));
}

uint64_t kt_gemm_scratch_bytes(const struct kt_context *ctx, const struct kt_gemm_kernel *kernel,
                               int64_t m, int64_t k)
{
    uint64_t row_bytes = (uint64_t)kt_gemm_row_stride(kernel, k) * (uint64_t)kernel->element_size;
    return kt_gemm_panel_bytes(kernel) * (uint64_t)kt_pool_num_threads(ctx->pool) +
           (uint64_t)converted_rows(kernel, m, k) * row_bytes;
}

static void multiply_converted(struct kt_pool *pool, struct product *p)
{
    p->block_cols = block_cols(p->kernel);
    p->block_rows = kt_min_i64(p->m, BLOCK_ROWS);
    p->row_blocks = (p->m + p->block_rows - 1) / p->block_rows;
    kt_parallel_for(pool, p->m, 16, p->trans_a ? convert_columns : convert_rows, p);
    kt_parallel_for(pool, (p->n + p->block_cols - 1) / p->block_cols * p->row_blocks, 1,
                    multiply_blocks, p);
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
                        .ldc = ldc,
                        .row_stride = kt_gemm_row_stride(kernel, k)};
    if (m <= 0 || n <= 0)
        return KT_OK;
    if (k <= 0) {
        clear(&p);
        return KT_OK;
    }
    void *memory;
    KT_TRY(kt_scratch_get(scratch, kt_gemm_scratch_bytes(ctx, kernel, m, k), "a matrix product",
                          &memory));
    p.panels = memory;
    p.rows = p.panels + kt_gemm_panel_bytes(kernel) * (uint64_t)kt_pool_num_threads(ctx->pool);
    int64_t rows = converted_rows(kernel, m, k);
    for (int64_t row = 0; row < m; row += rows) {
        p.m = kt_min_i64(rows, m - row);
        p.a = a + row * (trans_a ? 1 : lda);
        p.c = c + row * ldc;
        multiply_converted(ctx->pool, &p);
    }
    return KT_OK;
}
