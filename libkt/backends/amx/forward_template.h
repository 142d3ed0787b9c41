/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/forward_template.h
 * Forward's products: blocking over features, rows and tokens. Include after tiles_template.h; the
 * including file defines the two functions declared here. */

/** Whether tiles can be loaded from where the weight lies. */
static bool is_direct(const struct kt_weight *w);

/** Features [from, from + cols) of block i as 32 rows of stage_ld elements that tiles can be loaded
 * from, zeros where the block has no row or feature. */
static void stage_block(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                        int64_t stage_ld, void *stage);

/** What becomes of the results of block i and tiles [tile, end) once they are summed over all
 * features; in `products` as forward has them. */
typedef void finish_fn(const struct kt_amx_blocks *w, int32_t i, const float *scales, int64_t tile,
                       int64_t end, int64_t tiles, float *products);

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
    SOME_TILES = 4,
    MANY_TILES = 8,
    PANEL_BYTES = 512 << 10, /* of tokens in level 2 */
    DECODED_COLS = 128       /* at a time, with few tiles */
};

static struct order order_of(const struct kt_amx_blocks *w, int64_t depth, int64_t tiles,
                             int64_t chunk)
{
    bool direct = is_direct(w->weight[0]);
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
static bool place_after(const struct order *o, const struct place *p,
                        const struct kt_amx_blocks *next, struct place *after)
{
    int64_t panel = p->from / o->panel * o->panel, end = kt_min_i64(panel + o->panel, o->depth);
    bool last = false;
    if (p->from + p->cols < end)
        *after = place_at(o, p->blocks, p->first, p->from + p->cols);
    else if (p->first + p->num < p->blocks->num)
        *after = place_at(o, p->blocks, p->first + p->num, panel);
    else if (end < o->depth)
        *after = place_at(o, p->blocks, 0, end);
    else {
        *after = place_at(o, next, 0, 0);
        last = true;
    }
    return last;
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

/* A chunk's features from `skip` on, `cols` of them. */
static struct chunk part_of_chunk(const struct chunk *whole, int64_t skip, int64_t cols)
{
    return (struct chunk){steps_of(cols), whole->a + skip / STEP * TILE_LINE, whole->lda};
}

struct tokens {
    const char *columns;
    int64_t tile_bytes, tiles;
};

/* Features of a chunk, which are the columns' from `from` on, into the registers of results. */
INLINE void sum_features(const struct chunk *c, const struct tokens *t, int64_t tile, int64_t from,
                         const int num, struct walk *ahead)
{
    struct factors f = {.a = c->a,
                        .b = t->columns + tile * t->tile_bytes + from / STEP * TILE_BYTES,
                        .lda = c->lda,
                        .a_next = 16 * c->lda,
                        .a_step = TILE_LINE,
                        .b_next = t->tile_bytes,
                        .b_step = TILE_BYTES,
                        .steps = c->steps};
    if (num == 2)
        sum_2x2(&f, ahead);
    else
        sum_2x1(&f, ahead);
}

static struct results results_of(float *products, int64_t tile, int64_t tiles)
{
    return (struct results){products + tile * 256, tiles * 256, 256, TILE_LINE};
}

/* The products of block i of a place with `num` tiles, 1 or 2, from `tile` on; chunk: the block's,
 * or NULL: it is decoded a few features at a time, for these tiles only. */
INLINE void multiply_block(const struct place *p, int32_t i, const struct chunk *chunk,
                           const struct tokens *t, int64_t tile, const int num, float *products,
                           void *stage, struct walk *ahead)
{
    struct results r = results_of(products, tile, t->tiles);
    load_results(&r, p->from == 0, 2, num);
    for (int64_t from = p->from, end = p->from + p->cols; from < end;) {
        int64_t cols = chunk ? p->cols : kt_min_i64(DECODED_COLS, end - from);
        struct chunk c = chunk ? *chunk : open_chunk(p->blocks, i, from, cols, stage);
        sum_features(&c, t, tile, from, num, ahead);
        from += cols;
    }
    store_results(&r, 2, num);
}

/* A block of codes. */
struct coded {
    const struct kt_weight *weight; /* with its scales */
    struct kt_amx_blocks block;     /* the block alone, without */
    float *sums;                    /* of four tiles, until they are scaled */
    void *decoded;
};

/* multiply_block of codes. */
INLINE void multiply_codes(const struct place *p, const struct coded *b, const struct chunk *chunk,
                           const struct tokens *t, int64_t tile, const int num, float *products,
                           struct walk *ahead)
{
    struct results to = results_of(products, tile, t->tiles), r = results_of(b->sums, 0, num);
    for (int64_t from = p->from, end = p->from + p->cols, cols; from < end; from += cols) {
        cols = columns_alike(b->weight, from, kt_min_i64(DECODED_COLS, end - from));
        struct chunk c = chunk ? part_of_chunk(chunk, from - p->from, cols)
                               : open_chunk(&b->block, 0, from, cols, b->decoded);
        load_results(&r, true, 2, num);
        sum_features(&c, t, tile, from, num, ahead);
        store_results(&r, 2, num);
        float scale = *kt_weight_scale(b->weight, b->block.first[0], from);
        for (int i = 0; i < 2; i++)
            add_scaled(num, 16, to.c + i * to.row, 256, r.c + i * r.row, 256, scale, from == 0);
    }
}

/* multiply_tiles of codes. */
INLINE void multiply_coded(const struct place *p, int32_t i, const struct tokens *t, int64_t first,
                           int64_t end, float *products, void *stage, struct walk *ahead)
{
    const struct kt_amx_blocks *w = p->blocks;
    struct kt_weight codes = without_scale(w->weight[i]);
    struct coded b = {.weight = w->weight[i],
                      .block = {w->decode, {&codes}, {w->first[i]}, {w->rows[i]}, 1},
                      .sums = stage,
                      .decoded = (char *)stage + 4 * TILE_BYTES};
    struct chunk opened, *c = NULL;
    if (t->tiles > FEW_TILES) {
        opened = open_chunk(&b.block, 0, p->from, p->cols, b.decoded);
        c = &opened;
    }
    for (int64_t tile = first; tile < end; tile += 2) {
        if (tile + 1 < t->tiles)
            multiply_codes(p, &b, c, t, tile, 2, products, ahead);
        else
            multiply_codes(p, &b, c, t, tile, 1, products, ahead);
    }
}

/* The products of block i of a place with tiles [first, end). */
INLINE void multiply_tiles(const struct place *p, int32_t i, const struct tokens *t, int64_t first,
                           int64_t end, float *products, void *stage, struct walk *ahead)
{
    const struct kt_amx_blocks *w = p->blocks;
    struct chunk opened, *c = NULL;
    if (t->tiles > FEW_TILES || is_direct(w->weight[i])) {
        opened = open_chunk(w, i, p->from, p->cols, stage);
        c = &opened;
    }
    for (int64_t tile = first; tile < end; tile += 2) {
        if (tile + 1 < t->tiles)
            multiply_block(p, i, c, t, tile, 2, products, stage, ahead);
        else
            multiply_block(p, i, c, t, tile, 1, products, stage, ahead);
    }
}

static bool is_staged(const struct place *p)
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
    for (bool last = false; !last;) {
        p = after;
        last = place_after(&o, &p, next, &after);
        int64_t group = is_staged(&p) ? tiles : GROUP;
        struct walk ahead = walk_place(&after, depth, p.num * steps_of(p.cols) * ((tiles + 1) / 2));
        for (int64_t first = 0; first < tiles; first += group) {
            int64_t end = kt_min_i64(first + group, tiles);
            for (int32_t i = p.first; i < p.first + p.num; i++) {
                float *to = products + i * 2 * tiles * 256;
                if (has_codes(w->weight[i], tiles))
                    multiply_coded(&p, i, &t, first, end, to, stage, &ahead);
                else
                    multiply_tiles(&p, i, &t, first, end, to, stage, &ahead);
                if (finish && p.from + p.cols == depth)
                    finish(w, i, scales, first, end, tiles, to);
            }
        }
    }
}
