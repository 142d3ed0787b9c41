/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/products_template.h
 * The products of tiles: blocking over features, rows and tokens, and reading ahead. Written once
 * for both arithmetics: the including file defines STEP, the features that one multiplication sums
 * over (64 bytes of a row), TILE_PRODUCT, the multiplication, and the two functions declared here.
 */
#include "backends/amx/kernels.h"
#include "backends/cpu/amx_tile.h"
#include "core/memory.h"

#define INLINE static inline __attribute__((always_inline))

/** Whether tiles can be loaded from where the weight lies. */
static int is_direct(const struct kt_weight *w);

/** Features [from, from + cols) of block i as 32 rows of stage_ld elements that tiles can be loaded
 * from, zeros where the block has no row or feature. Decoding fetches what lies `ahead` bytes after
 * what it reads. */
static void stage_block(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                        int64_t ahead, int64_t stage_ld, void *stage);

/** What becomes of the results of block i and tiles [tile, end) once they are summed over all
 * features; in `products` as forward has them. */
typedef void finish_fn(const struct kt_amx_blocks *w, int32_t i, const float *scales, int64_t tile,
                       int64_t end, int64_t tiles, float *products);

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

/* Fetches what the next chunk reads, row after row, a run of bytes each: memory is read in longer
 * pieces than in the order in which the products use it. Calls are spread over the whole chunk,
 * since a core has few misses under way at a time and a burst of them holds up the tiles' loads. */
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

/* `calls` calls of walk_on cover columns [from, from + chunk) of the blocks. */
static struct walk walk_blocks(const struct kt_amx_blocks *b, int64_t from, int64_t chunk,
                               int64_t depth, int64_t calls)
{
    struct walk w = {0};
    if (!b)
        return w;
    w.blocks = b;
    w.from = from;
    w.row = element_at(b->weight[0], b->first[0], from);
    w.block_rows = b->rows[0];
    w.ld = bytes_of(b->weight[0], depth);
    w.run = bytes_of(b->weight[0], kt_min_i64(chunk, depth - from));
    for (int32_t i = 0; i < b->num; i++)
        w.rows += b->rows[i];
    w.pace = pace(w.rows, calls);
    return w;
}

/* With few tokens most of the time is decoding: that fetches instead, what lies so many bytes after
 * what it reads, and forward's chunks are twice as long. Weights of less than a byte are too few
 * bytes for that to matter. */
static int decoding_fetches(const struct kt_weight *w, int64_t tiles)
{
    enum { FEW_TILES = 4, ELEMENTS = 256 /* whole blocks of every format */ };
    return !is_direct(w) && tiles <= FEW_TILES && bytes_of(w, ELEMENTS) >= ELEMENTS;
}

static int64_t distance(const char *from, const char *to)
{
    return (int64_t)((uintptr_t)to - (uintptr_t)from);
}

/* Bytes from block i's column `from` to `to_from` of what is read after it. */
static int64_t block_distance(const struct kt_amx_blocks *w, int32_t i, int64_t from,
                              const struct kt_amx_blocks *to, int64_t to_from)
{
    if (!to || i >= to->num)
        return 0;
    return distance(element_at(w->weight[i], w->first[i], from),
                    element_at(to->weight[i], to->first[i], to_from));
}

/* -- products ---------------------------------------------------------------------------------- */

/* Two by `n` tiles of results, c[i][j] at c + i * c_row + j * c_col, over `steps` steps. Factors:
 * a and a + a_next (row stride lda), b and b + b_next. All in bytes but c's offsets. */
struct factors {
    const char *a, *b;
    int64_t lda, a_next, a_step, b_next, b_step, steps;
};

/* A factor's register is loaded for the next step as soon as its last product has begun. */
INLINE void multiply_2x2(const struct factors *f, int first, float *c, int64_t c_row, int64_t c_col,
                         int64_t c_ld, struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    if (first) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    } else {
        tile_load(0, c, c_ld);
        tile_load(1, c + c_col, c_ld);
        tile_load(2, c + c_row, c_ld);
        tile_load(3, c + c_row + c_col, c_ld);
    }
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
    tile_store(0, c, c_ld);
    tile_store(1, c + c_col, c_ld);
    tile_store(2, c + c_row, c_ld);
    tile_store(3, c + c_row + c_col, c_ld);
}

/* Two tiles of a, one of b. */
INLINE void multiply_2x1(const struct factors *f, int first, float *c, int64_t c_row, int64_t c_ld,
                         struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    if (first) {
        tile_zero(0);
        tile_zero(2);
    } else {
        tile_load(0, c, c_ld);
        tile_load(2, c + c_row, c_ld);
    }
    for (int64_t k = 0; k < f->steps; k++, a += f->a_step, b += f->b_step) {
        tile_load(6, b, TILE_LINE);
        tile_load(4, a, f->lda);
        TILE_PRODUCT(0, 4, 6);
        tile_load(5, a + f->a_next, f->lda);
        TILE_PRODUCT(2, 5, 6);
        walk_on(ahead);
    }
    tile_store(0, c, c_ld);
    tile_store(2, c + c_row, c_ld);
}

/* One chunk of features of one block. */
struct chunk {
    int64_t from, cols, steps;
    const char *a;
    int64_t lda;
};

static struct chunk open_chunk(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                               int64_t ahead, void *stage)
{
    struct chunk c = {.from = from, .cols = cols, .steps = steps_of(cols)};
    if (is_direct(w->weight[i]) && w->rows[i] == KT_AMX_ROWS && cols % STEP == 0) {
        c.a = element_at(w->weight[i], w->first[i], from);
        c.lda = bytes_of(w->weight[i], w->weight[i]->cols);
        return c;
    }
    stage_block(w, i, from, cols, ahead, c.steps * STEP, stage);
    c.a = stage;
    c.lda = c.steps * TILE_LINE;
    return c;
}

/* The products of a block's chunk with tiles `tile` and, if there is one, `tile` + 1. */
INLINE void multiply_block(const struct chunk *c, const char *columns, int64_t tile_bytes,
                           int64_t tile, int64_t tiles, float *products, struct walk *ahead)
{
    struct factors f = {.a = c->a,
                        .b = columns + tile * tile_bytes + c->from / STEP * TILE_BYTES,
                        .lda = c->lda,
                        .a_next = 16 * c->lda,
                        .a_step = TILE_LINE,
                        .b_next = tile_bytes,
                        .b_step = TILE_BYTES,
                        .steps = c->steps};
    products += tile * 256;
    if (tile + 1 < tiles)
        multiply_2x2(&f, c->from == 0, products, tiles * 256, 256, TILE_LINE, ahead);
    else
        multiply_2x1(&f, c->from == 0, products, tiles * 256, TILE_LINE, ahead);
}

static int is_staged(const struct kt_amx_blocks *w, int64_t cols)
{
    int staged = cols % STEP != 0;
    for (int32_t i = 0; i < w->num; i++)
        staged |= !is_direct(w->weight[i]) || w->rows[i] < KT_AMX_ROWS;
    return staged;
}

#ifndef KT_AMX_GROUP
#define KT_AMX_GROUP 2
#endif

/* A group of tiles stays in level-1 cache for all blocks, which lie in level 2; a block that is
 * decoded stays there for all tiles instead, so that this happens once. finish: NULL = nothing. */
INLINE void multiply_chunks(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next,
                            int64_t depth, const void *columns, const float *scales, int64_t tiles,
                            int64_t chunk, float *products, void *stage, finish_fn *finish)
{
    int64_t tile_bytes = steps_of(depth) * TILE_BYTES, block_floats = 2 * tiles * 256;
    int fetching = decoding_fetches(w->weight[0], tiles);
    if (fetching)
        chunk = kt_min_i64(2 * chunk, KT_AMX_MAX_CHUNK);
    for (int64_t from = 0; from < depth; from += chunk) {
        int64_t cols = kt_min_i64(chunk, depth - from);
        int64_t group = is_staged(w, cols) ? tiles : KT_AMX_GROUP;
        int last = from + chunk >= depth;
        const struct kt_amx_blocks *after = last ? next : w;
        int64_t after_from = last ? 0 : from + chunk;
        struct walk ahead = walk_blocks(fetching ? NULL : after, after_from, chunk, depth,
                                        w->num * steps_of(cols) * ((tiles + 1) / 2));
        for (int64_t first = 0; first < tiles; first += group) {
            int64_t end = kt_min_i64(first + group, tiles);
            for (int32_t i = 0; i < w->num; i++) {
                int64_t far = fetching ? block_distance(w, i, from, after, after_from) : 0;
                struct chunk c = open_chunk(w, i, from, cols, far, stage);
                for (int64_t tile = first; tile < end; tile += 2)
                    multiply_block(&c, columns, tile_bytes, tile, tiles,
                                   products + i * block_floats, &ahead);
                if (finish && last)
                    finish(w, i, scales, first, end, tiles, products + i * block_floats);
            }
        }
    }
}
