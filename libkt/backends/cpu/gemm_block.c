/* SPDX-License-Identifier: Apache-2.0 */
/* A block of a product on the calling thread, and how its right factor is read. */
#include "backends/cpu/gemm.h"

#include "weights/dtype.h"
#include "core/memory.h"

enum {
    STAGED_BYTES = 96 << 10, /* of decoded elements at a time */
    STAGED_GAP = 64,         /* between their rows */
    PACKED_COLS = 64,        /* columns of a panel block that are decoded at a time */
    DOT_BYTES = 1536,        /* of a row that is decoded at a time for dot products */
    DOT_STEP = 64,           /* of which its depth is a multiple */
    DOT_COLS = 12,           /* rows of a transposed factor that are decoded at a time */
    OUTER_DEPTH = 8,         /* rows of another factor that are decoded at a time */
    OUTER_TILE_BYTES = 20 << 10,
    OUTER_STEP = 64,
    MAX_OUTER_COLS = 2048,
    STAGED_OUTER_COLS = 512
};

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

int64_t kt_gemm_block_depth(const struct kt_gemm_kernel *kernel)
{
    return KT_GEMM_BLOCK_BYTES / kernel->element_size;
}

int64_t kt_gemm_block_cols(const struct kt_gemm_kernel *kernel)
{
    return KT_GEMM_BLOCK_COLS / kernel->nr * kernel->nr;
}

static uint64_t packed_bytes(const struct kt_gemm_kernel *kernel)
{
    return (uint64_t)kt_gemm_block_cols(kernel) * KT_GEMM_BLOCK_BYTES;
}

uint64_t kt_gemm_panel_bytes(const struct kt_gemm_kernel *kernel)
{
    return packed_bytes(kernel) + STAGED_BYTES;
}

/* -- the right factor -------------------------------------------------------------------------- */

struct kt_gemm_right kt_gemm_right_weight(const struct kt_weight *w, bool transposed)
{
    struct kt_gemm_right b = {.transposed = transposed};
    if (kt_weight_is_plain(w))
        b.matrix = (struct kt_matrix){w->data, w->dtype, w->cols};
    else
        b.weight = w;
    return b;
}

struct kt_gemm_right kt_gemm_right_at(const struct kt_gemm_right *b, int64_t row, int64_t col)
{
    struct kt_gemm_right sub = *b;
    int64_t r = b->transposed ? col : row, c = b->transposed ? row : col;
    if (b->weight) {
        sub.row += r;
        sub.col += c;
    } else {
        sub.matrix.data = (const char *)b->matrix.data +
                          (r * b->matrix.ld + c) * (int64_t)kt_dtype_size(b->matrix.dtype);
    }
    return sub;
}

/* Decodes [rows, cols] of the factor as it lies in memory. Rows are spread over cache sets. */
static struct kt_matrix stage(const struct kt_gemm_kernel *kernel, enum kt_decoding decoding,
                              const struct kt_gemm_right *b, int64_t rows, int64_t cols,
                              int64_t ahead, void *staging)
{
    int64_t ld = cols + STAGED_GAP / (decoding == KT_DECODE_BF16 ? 2 : 4);
    kernel->decode[decoding](b->weight, b->row, b->col, rows, cols, ahead, staging, ld);
    return (struct kt_matrix){staging, decoding == KT_DECODE_BF16 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                              ld};
}

/* -- products that pack the factor ------------------------------------------------------------- */

static void pack_block(const struct kt_gemm_kernel *kernel, int64_t depth, int64_t cols,
                       const struct kt_gemm_right *b, char *panels, int64_t panel_bytes)
{
    void (*pack)(int64_t, int64_t, const struct kt_matrix *, void *) =
        b->transposed ? kernel->pack_nt : kernel->pack_nn;
    enum kt_decoding decoding = kernel->bf16 ? KT_DECODE_BF16 : KT_DECODE_F32;
    if (!b->weight) {
        pack(depth, cols, &b->matrix, panels);
        return;
    }
    for (int64_t j = 0; j < cols; j += PACKED_COLS) {
        int64_t n = kt_min_i64(PACKED_COLS, cols - j);
        struct kt_gemm_right part = kt_gemm_right_at(b, 0, j);
        struct kt_matrix staged =
            stage(kernel, decoding, &part, b->transposed ? n : depth, b->transposed ? depth : n, 0,
                  panels + packed_bytes(kernel));
        pack(depth, n, &staged, panels + j / kernel->nr * panel_bytes);
    }
}

static void packed_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                         float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                         bool accumulate, float *c, int64_t ldc, char *panels)
{
    int64_t max_cols = kt_gemm_block_cols(kernel), max_depth = kt_gemm_block_depth(kernel);
    /* Rows are spread evenly over tiles, so that no tile is thin. */
    int64_t tiles = (m + kernel->mr - 1) / kernel->mr;
    int64_t rows = round_up((m + tiles - 1) / tiles, kt_max_i64(kernel->row_step, 1));
    if (kernel->enter)
        kernel->enter();
    for (int64_t col = 0; col < n; col += max_cols) {
        int64_t cols = kt_min_i64(max_cols, n - col);
        for (int64_t from = 0; from < k; from += max_depth) {
            int64_t depth = kt_min_i64(max_depth, k - from);
            int64_t padded = round_up(depth, kernel->k_step);
            int64_t panel_bytes = padded * kernel->nr * kernel->element_size;
            struct kt_gemm_right block = kt_gemm_right_at(b, from, col);
            pack_block(kernel, depth, cols, &block, panels, panel_bytes);
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
    if (kernel->leave)
        kernel->leave();
}

/* -- products of few rows, which read the factor as it lies -------------------------------------
 */

enum kt_gemm_way kt_gemm_way(const struct kt_gemm_kernel *kernel, int64_t m,
                             const struct kt_gemm_right *b)
{
    /* What would have to be rounded first is packed. */
    bool rounds =
        !b->weight && kernel->bf16 && kernel->element_size == 4 && b->matrix.dtype != KT_DTYPE_BF16;
    if (rounds)
        return KT_GEMM_PACKED;
    if (b->transposed)
        return m <= kernel->dot_rows ? KT_GEMM_DIRECT : KT_GEMM_PACKED;
    return m <= kernel->outer_rows ? KT_GEMM_DIRECT : KT_GEMM_PACKED;
}

static enum kt_decoding direct_decoding(const struct kt_gemm_kernel *kernel)
{
    if (!kernel->bf16)
        return KT_DECODE_F32;
    return kernel->element_size == 2 ? KT_DECODE_BF16 : KT_DECODE_ROUNDED;
}

/* One piece of the factor in place of `b`: as it lies, or decoded, while what lies `ahead` bytes on
 * is fetched. */
static struct kt_matrix direct_piece(const struct kt_gemm_kernel *kernel,
                                     const struct kt_gemm_right *b, int64_t depth, int64_t cols,
                                     int64_t ahead, void *staging)
{
    if (!b->weight)
        return b->matrix;
    return stage(kernel, direct_decoding(kernel), b, b->transposed ? cols : depth,
                 b->transposed ? depth : cols, ahead, staging);
}

/* Bytes of n elements of a row, and of n rows. */
static int64_t part_bytes(const struct kt_gemm_right *b, int64_t n)
{
    return b->weight ? (int64_t)kt_format_row_bytes(b->weight->dtype, n) : 0;
}

static int64_t rows_bytes(const struct kt_gemm_right *b, int64_t n)
{
    return b->weight ? n * part_bytes(b, b->weight->cols) : 0;
}

/* Depth of the pieces of a row: of whole blocks of the format, and the last about as deep as the
 * others, since each fetches what lies where it does in the next. */
static int64_t dot_depth(const struct kt_gemm_kernel *kernel, const struct kt_gemm_right *b,
                         int64_t k)
{
    int64_t step = kt_max_i64(DOT_STEP, kt_format_of(b->weight->dtype)->block);
    int64_t most = kt_max_i64(step, DOT_BYTES / kernel->element_size / step * step);
    for (int64_t depth = most; depth > most / 2; depth -= step)
        if (round_up(k, depth) - k <= depth / 8)
            return depth;
    return most;
}

static void dot_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                      float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                      bool accumulate, float *c, int64_t ldc, char *panels)
{
    int64_t max_cols = b->weight ? DOT_COLS : n;
    int64_t max_depth = b->weight ? dot_depth(kernel, b, k) : k;
    for (int64_t col = 0; col < n; col += max_cols) {
        int64_t cols = kt_min_i64(max_cols, n - col);
        for (int64_t from = 0; from < k; from += max_depth) {
            int64_t depth = kt_min_i64(max_depth, k - from);
            int64_t ahead =
                from + depth < k ? part_bytes(b, depth) : rows_bytes(b, cols) - part_bytes(b, from);
            struct kt_gemm_right part = kt_gemm_right_at(b, from, col);
            struct kt_matrix piece = direct_piece(kernel, &part, depth, cols, ahead, panels);
            kernel->dot(m, cols, depth, (const char *)a + from * kernel->element_size, lda, &piece,
                        alpha, accumulate || from > 0, c + col, ldc);
        }
    }
}

/* Results are summed in a tile of their own, which stays in level-1 cache whatever ldc is. */
static void outer_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                        float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                        bool accumulate, float *c, int64_t ldc, char *panels)
{
    float *tile = (float *)(void *)panels;
    int64_t max_cols = kt_gemm_outer_cols(m), max_depth = k;
    if (b->weight) {
        max_cols = kt_min_i64(max_cols, STAGED_OUTER_COLS);
        max_depth = OUTER_DEPTH;
    }
    for (int64_t col = 0; col < n; col += max_cols) {
        int64_t cols = kt_min_i64(max_cols, n - col);
        for (int64_t from = 0; from < k; from += max_depth) {
            int64_t depth = kt_min_i64(max_depth, k - from);
            struct kt_gemm_right part = kt_gemm_right_at(b, from, col);
            struct kt_matrix piece = direct_piece(kernel, &part, depth, cols, rows_bytes(b, depth),
                                                  panels + packed_bytes(kernel));
            kernel->outer(m, cols, depth, (const char *)a + from * kernel->element_size, lda,
                          &piece, from > 0, tile, max_cols);
        }
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < cols; j++)
                c[i * ldc + col + j] =
                    (accumulate ? c[i * ldc + col + j] : 0.0f) + alpha * tile[i * max_cols + j];
    }
}

int64_t kt_gemm_outer_cols(int64_t m)
{
    int64_t cols = OUTER_TILE_BYTES / (int64_t)sizeof(float) / m / OUTER_STEP * OUTER_STEP;
    return kt_max_i64(OUTER_STEP, kt_min_i64(cols, MAX_OUTER_COLS));
}

void kt_gemm_block_by(enum kt_gemm_way way, const struct kt_gemm_kernel *kernel, int64_t m,
                      int64_t n, int64_t k, float alpha, const void *a, int64_t lda,
                      const struct kt_gemm_right *b, bool accumulate, float *c, int64_t ldc,
                      void *panels)
{
    if (way == KT_GEMM_ROW && b->transposed && b->weight && kernel->dot_weight &&
        kernel->dot_weight(n, k, a, b->weight, b->row, b->col, alpha, accumulate, c))
        return;
    if (way == KT_GEMM_PACKED)
        packed_block(kernel, m, n, k, alpha, a, lda, b, accumulate, c, ldc, panels);
    else if (b->transposed)
        dot_block(kernel, m, n, k, alpha, a, lda, b, accumulate, c, ldc, panels);
    else
        outer_block(kernel, m, n, k, alpha, a, lda, b, accumulate, c, ldc, panels);
}

void kt_gemm_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                   float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                   bool accumulate, float *c, int64_t ldc, void *panels)
{
    kt_gemm_block_by(kt_gemm_way(kernel, m, b), kernel, m, n, k, alpha, a, lda, b, accumulate, c,
                     ldc, panels);
}
