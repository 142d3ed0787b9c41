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
 * from, zeros where the block has no row or feature. */
static void stage_block(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                        int64_t stage_ld, void *stage);

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

/* -- the order of products ---------------------------------------------------------------------
 */

/* Some blocks and one chunk of features, which are multiplied with all tiles before the next. */
struct place {
    const struct kt_amx_blocks *blocks;
    int32_t first, num;
    int64_t from, cols;
};

/* Panel by panel of features, place by place in it: all chunks of a few blocks, then those of the
 * next. With many tiles of tokens blocks are more and chunks longer, so that tokens and results are
 * moved less often. */
struct order {
    int64_t depth, chunk, panel;
    int32_t num; /* blocks of a place */
};

enum {
    GROUP = 2, /* tiles of tokens in level-1 cache */
    FEW_TILES = 2,
    SOME_TILES = 4,
    MANY_TILES = 8,
    PANEL_BYTES = 512 << 10, /* of tokens in level 2 */
    DECODED_COLS = 128       /* at a time, with few tiles */
};

static struct order order_of(const struct kt_amx_blocks *w, int64_t depth, int64_t tiles,
                             int64_t chunk)
{
    int direct = is_direct(w->weight[0]);
    struct order o = {.depth = depth, .chunk = chunk, .num = direct && tiles > SOME_TILES ? 4 : 2};
    if (direct && tiles > MANY_TILES)
        o.chunk = kt_min_i64(3 * chunk / 2 / STEP * STEP, KT_AMX_MAX_CHUNK);
    o.panel = kt_max_i64(1, PANEL_BYTES / (tiles * TILE_BYTES) * STEP / o.chunk) * o.chunk;
    return o;
}

static struct place place_at(const struct order *o, const struct kt_amx_blocks *w, int32_t block,
                             int64_t from)
{
    struct place p = {.blocks = w, .first = block, .from = from};
    if (w) {
        p.num = (int32_t)kt_min_i64(o->num, w->num - block);
        p.cols = kt_min_i64(o->chunk, o->depth - from);
    }
    return p;
}

/* What is read after a place: after the last, of `next` (or nothing). Returns whether it was that.
 */
static int place_after(const struct order *o, const struct place *p,
                       const struct kt_amx_blocks *next, struct place *after)
{
    int64_t panel = p->from / o->panel * o->panel, end = kt_min_i64(panel + o->panel, o->depth);
    int last = 0;
    if (p->from + p->cols < end)
        *after = place_at(o, p->blocks, p->first, p->from + p->cols);
    else if (p->first + p->num < p->blocks->num)
        *after = place_at(o, p->blocks, p->first + p->num, panel);
    else if (end < o->depth)
        *after = place_at(o, p->blocks, 0, end);
    else {
        *after = place_at(o, next, 0, 0);
        last = 1;
    }
    return last;
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

/* `calls` calls of walk_on cover a place. */
static struct walk walk_place(const struct place *p, int64_t depth, int64_t calls)
{
    const struct kt_amx_blocks *b = p->blocks;
    struct walk w = {0};
    if (!b)
        return w;
    w.blocks = b;
    w.from = p->from;
    w.index = p->first;
    w.row = element_at(b->weight[p->first], b->first[p->first], p->from);
    w.block_rows = b->rows[p->first];
    w.ld = bytes_of(b->weight[p->first], depth);
    w.run = bytes_of(b->weight[p->first], p->cols);
    for (int32_t i = 0; i < p->num; i++)
        w.rows += b->rows[p->first + i];
    w.pace = pace(w.rows, calls);
    return w;
}

/* -- products ---------------------------------------------------------------------------------- */

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

/* Results of `rows` tiles of a and `cols` of b, one or two: the registers 0 and 1 are the first row,
 * 2 and 3 the second. */
struct results {
    float *c;
    int64_t row, col; /* floats to the second */
    int64_t ld;       /* bytes */
};

INLINE void load_results(const struct results *r, int first, const int rows, const int cols)
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

/* Features of one block as tiles are loaded from them. */
struct chunk {
    int64_t steps;
    const char *a;
    int64_t lda;
};

static struct chunk open_chunk(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                               void *stage)
{
    struct chunk c = {.steps = steps_of(cols)};
    if (is_direct(w->weight[i]) && w->rows[i] == KT_AMX_ROWS && cols % STEP == 0) {
        c.a = element_at(w->weight[i], w->first[i], from);
        c.lda = bytes_of(w->weight[i], w->weight[i]->cols);
        return c;
    }
    stage_block(w, i, from, cols, c.steps * STEP, stage);
    c.a = stage;
    c.lda = c.steps * TILE_LINE;
    return c;
}

struct tokens {
    const char *columns;
    int64_t tile_bytes, tiles;
};

/* The products of block i of a place with `num` tiles, 1 or 2, from `tile` on; chunk: the block's,
 * or NULL: it is decoded a few features at a time, for these tiles only. */
INLINE void multiply_block(const struct place *p, int32_t i, const struct chunk *chunk,
                           const struct tokens *t, int64_t tile, const int num, float *products,
                           void *stage, struct walk *ahead)
{
    struct results r = {products + tile * 256, t->tiles * 256, 256, TILE_LINE};
    load_results(&r, p->from == 0, 2, num);
    for (int64_t from = p->from, end = p->from + p->cols; from < end;) {
        int64_t cols = chunk ? p->cols : kt_min_i64(DECODED_COLS, end - from);
        struct chunk c = chunk ? *chunk : open_chunk(p->blocks, i, from, cols, stage);
        struct factors f = {.a = c.a,
                            .b = t->columns + tile * t->tile_bytes + from / STEP * TILE_BYTES,
                            .lda = c.lda,
                            .a_next = 16 * c.lda,
                            .a_step = TILE_LINE,
                            .b_next = t->tile_bytes,
                            .b_step = TILE_BYTES,
                            .steps = c.steps};
        if (num == 2)
            sum_2x2(&f, ahead);
        else
            sum_2x1(&f, ahead);
        from += cols;
    }
    store_results(&r, 2, num);
}

static int is_staged(const struct place *p)
{
    const struct kt_amx_blocks *w = p->blocks;
    int staged = p->cols % STEP != 0;
    for (int32_t i = p->first; i < p->first + p->num; i++)
        staged |= !is_direct(w->weight[i]) || w->rows[i] < KT_AMX_ROWS;
    return staged;
}

/* A group of tiles stays in level-1 cache for all blocks of a place, which lie in level 2; a block
 * that is decoded stays there for all tiles instead, so that this happens once. The tiles of a
 * panel of features stay in level 2 for all blocks. finish: NULL = nothing. */
INLINE void multiply_chunks(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next,
                            int64_t depth, const void *columns, const float *scales, int64_t tiles,
                            int64_t chunk, float *products, void *stage, finish_fn *finish)
{
    struct tokens t = {columns, steps_of(depth) * TILE_BYTES, tiles};
    struct order o = order_of(w, depth, tiles, chunk);
    struct place p, after = place_at(&o, w, 0, 0);
    for (int last = 0; !last;) {
        p = after;
        last = place_after(&o, &p, next, &after);
        int64_t group = is_staged(&p) ? tiles : GROUP;
        struct walk ahead = walk_place(&after, depth, p.num * steps_of(p.cols) * ((tiles + 1) / 2));
        for (int64_t first = 0; first < tiles; first += group) {
            int64_t end = kt_min_i64(first + group, tiles);
            for (int32_t i = p.first; i < p.first + p.num; i++) {
                float *to = products + i * 2 * tiles * 256;
                struct chunk opened, *c = NULL;
                if (tiles > FEW_TILES || is_direct(w->weight[i])) {
                    opened = open_chunk(w, i, p.from, p.cols, stage);
                    c = &opened;
                }
                for (int64_t tile = first; tile < end; tile += 2) {
                    if (tile + 1 < tiles)
                        multiply_block(&p, i, c, &t, tile, 2, to, stage, &ahead);
                    else
                        multiply_block(&p, i, c, &t, tile, 1, to, stage, &ahead);
                }
                if (finish && p.from + p.cols == depth)
                    finish(w, i, scales, first, end, tiles, to);
            }
        }
    }
}
