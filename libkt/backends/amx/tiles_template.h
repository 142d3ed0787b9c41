/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/tiles_template.h
 * What products of tiles are made of: sums over steps, results, reading ahead, scales. Written once
 * for both arithmetics and directions: the including file defines STEP, the features that one
 * multiplication sums over (64 bytes of a row), and TILE_PRODUCT, the multiplication. */
#include "backends/amx/kernels.h"
#include "backends/amx/line.h"
#include "backends/cpu/x86/amx_tile.h"
#include "core/memory.h"

#define INLINE static inline __attribute__((always_inline))

enum { FEW_TILES = 2, CODED_TILES = 4 };

static int64_t steps_of(int64_t features)
{
    return (features + STEP - 1) / STEP;
}

/* Where the block that holds an element begins. */
static const char *element_at(const struct kt_weight *w, int64_t row, int64_t col)
{
    const struct kt_format *f = kt_format_of(w->dtype);
    return (const char *)w->data + row * (w->cols / f->block * f->block_bytes) +
           col / f->block * f->block_bytes;
}

/* Bytes of n elements of a row. */
static int64_t bytes_of(const struct kt_weight *w, int64_t n)
{
    const struct kt_format *f = kt_format_of(w->dtype);
    return (n + f->block - 1) / f->block * f->block_bytes;
}

/* -- reading ahead ----------------------------------------------------------------------------- */

/* Fetches what is read next, row after row, a run of bytes each. Calls are spread over the products
 * in between: a line on its way occupies one of the core's 16 fill buffers, as do the lines that
 * tiles load from level 2. The processor's own prefetching into level 2 needs none, but follows
 * only some 64 rows at a time, each within its page: so few rows take turns, a run each. */
struct walk {
    const struct kt_amx_blocks *blocks;
    const char *row;
    int64_t ld, run;           /* bytes */
    int64_t rows, block_rows;  /* left, and in this block */
    int64_t from, index, pace; /* pace: rows at a time */
};

INLINE void walk_on(struct walk *w)
{
    for (int64_t i = 0; i < w->pace && w->rows > 0; i++, w->rows--) {
        for (int64_t at = 0; at < w->run; at += TILE_LINE)
            __builtin_prefetch(w->row + at, 0, 2);
        w->row += w->ld;
        if (w->blocks && --w->block_rows == 0 && w->rows > 1) {
            w->index++;
            w->row = element_at(w->blocks->weight[w->index], w->blocks->first[w->index], w->from);
            w->block_rows = w->blocks->rows[w->index];
        }
    }
}

static int64_t pace(int64_t rows, int64_t calls)
{
    return (rows + calls - 1) / calls;
}

/* -- sums -------------------------------------------------------------------------------------- */

/* Tiles a and a + a_next (row stride lda), b and b + b_next, of `steps` steps. All in bytes. */
struct factors {
    const char *a, *b;
    int64_t lda, a_next, a_step, b_next, b_step, steps;
};

/* A factor's register is loaded for the next step as soon as its last product has begun. */
INLINE void sum_2x2(const struct factors *f, struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    tile_load(4, a, f->lda);
    tile_load(6, b, TILE_LINE);
    tile_load(7, b + f->b_next, TILE_LINE);
    tile_load(5, a + f->a_next, f->lda);
    for (int64_t k = 1; k < f->steps; k++) {
        a += f->a_step, b += f->b_step;
        TILE_PRODUCT(0, 4, 6);
        TILE_PRODUCT(1, 4, 7);
        tile_load(4, a, f->lda);
        TILE_PRODUCT(2, 5, 6);
        tile_load(6, b, TILE_LINE);
        TILE_PRODUCT(3, 5, 7);
        tile_load(7, b + f->b_next, TILE_LINE);
        tile_load(5, a + f->a_next, f->lda);
        walk_on(ahead);
    }
    TILE_PRODUCT(0, 4, 6);
    TILE_PRODUCT(1, 4, 7);
    TILE_PRODUCT(2, 5, 6);
    TILE_PRODUCT(3, 5, 7);
    walk_on(ahead);
}

/* Two tiles of a, one of b. */
INLINE void sum_2x1(const struct factors *f, struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    for (int64_t k = 0; k < f->steps; k++, a += f->a_step, b += f->b_step) {
        tile_load(6, b, TILE_LINE);
        tile_load(4, a, f->lda);
        TILE_PRODUCT(0, 4, 6);
        tile_load(5, a + f->a_next, f->lda);
        TILE_PRODUCT(2, 5, 6);
        walk_on(ahead);
    }
}

/* Results of `rows` tiles of a and `cols` of b, one or two: the registers 0 and 1 are the first
 * row, 2 and 3 the second. */
struct results {
    float *c;
    int64_t row, col; /* floats to the second */
    int64_t ld;       /* bytes */
};

INLINE void load_results(const struct results *r, bool first, const int rows, const int cols)
{
    tile_see(r->c);
    if (first) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        return;
    }
    tile_load(0, r->c, r->ld);
    if (cols == 2)
        tile_load(1, r->c + r->col, r->ld);
    if (rows == 2)
        tile_load(2, r->c + r->row, r->ld);
    if (rows == 2 && cols == 2)
        tile_load(3, r->c + r->row + r->col, r->ld);
}

INLINE void store_results(const struct results *r, const int rows, const int cols)
{
    tile_store(0, r->c, r->ld);
    if (cols == 2)
        tile_store(1, r->c + r->col, r->ld);
    if (rows == 2)
        tile_store(2, r->c + r->row, r->ld);
    if (rows == 2 && cols == 2)
        tile_store(3, r->c + r->row + r->col, r->ld);
}

/* -- codes ------------------------------------------------------------------------------------- */

/* With a few tiles it is less work to multiply FP8 without its scales and to scale the results,
 * than to decode it under them; it is exact, too. Scales must be those of whole steps of columns
 * and of whole blocks of rows. */
static bool has_codes(const struct kt_weight *w, int64_t tiles)
{
    return w->dtype == KT_DTYPE_F8_E4M3 && w->scale && tiles <= CODED_TILES &&
           w->scale_cols % KT_AMX_STEP == 0 && w->scale_rows % KT_AMX_ROWS == 0 &&
           w->first_row % KT_AMX_ROWS == 0;
}

static struct kt_weight without_scale(const struct kt_weight *w)
{
    struct kt_weight codes = *w;
    codes.scale = NULL;
    return codes;
}

/* Columns from `col` on that share a scale, at most `most`. */
static int64_t columns_alike(const struct kt_weight *w, int64_t col, int64_t most)
{
    return kt_min_i64(w->scale_cols - col % w->scale_cols, most);
}

INLINE void scale_rows(int64_t rows, const int lines, float *to, int64_t ld, const float *sums,
                       int64_t sums_ld, float scale, const bool first)
{
    for (int64_t row = 0; row < rows; row++, to += ld, sums += sums_ld)
        for (int i = 0; i < 16 * lines; i += 16)
            line_store(to + i, line_multiply_add(line_load(sums + i), scale,
                                                 first ? line_zero() : line_load(to + i)));
}

/* to [rows][16 * lines], row stride ld, (+)= scale * sums, row stride sums_ld. first: what is there
 * does not count. */
INLINE void add_scaled(int64_t rows, const int lines, float *to, int64_t ld, const float *sums,
                       int64_t sums_ld, float scale, bool first)
{
    if (first)
        scale_rows(rows, lines, to, ld, sums, sums_ld, scale, true);
    else
        scale_rows(rows, lines, to, ld, sums, sums_ld, scale, false);
}
