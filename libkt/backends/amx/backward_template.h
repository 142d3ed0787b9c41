/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/backward_template.h
 * Backward's products, in bfloat16: rows of weights are interleaved by pairs, or decoded so, a part
 * at a time. Include after forward_template.h. */

enum {
    DECODED_BYTES = KT_AMX_DECODED_ROWS * KT_AMX_STRIP_COLS * 2,
    CODED_ROWS = 128, /* of codes in a part, at most */
    CODED_BYTES = CODED_ROWS * KT_AMX_STRIP_COLS * 2
};

/* Rows [from, from + rows) and columns [col, col + cols) of a strip, which are multiplied with all
 * tiles before the next. */
struct part {
    const struct kt_amx_strip *strip;
    int64_t from, rows, col, cols;
};

/* How a strip is cut. */
struct cut {
    int64_t tiles;
    int64_t chunk; /* rows of a part, at most */
};

/* With few tiles fewer rows are multiplied at a time, since what is read ahead must find room in
 * level 2, where rows a page apart share few sets. */
static struct cut cut_for(int64_t tiles, int64_t chunk)
{
    return (struct cut){tiles, tiles <= FEW_TILES ? kt_min_i64(chunk, KT_AMX_DECODED_ROWS) : chunk};
}

/* Rows of codes share scales. */
static int64_t part_rows(const struct cut *cut, const struct kt_weight *w, int64_t from)
{
    int64_t rows = kt_min_i64(cut->chunk, w->rows - from);
    if (!has_codes(w, cut->tiles))
        return rows;
    int64_t alike = w->scale_rows - (w->first_row + from) % w->scale_rows;
    return kt_min_i64(kt_min_i64(rows, CODED_ROWS), alike);
}

static struct part part_at(const struct cut *cut, const struct kt_amx_strip *w, int64_t from,
                           int64_t col)
{
    struct part p = {.strip = w, .from = from, .col = col};
    if (w) {
        p.rows = part_rows(cut, w->weight, from);
        p.cols = kt_min_i64(KT_AMX_STRIP_COLS, w->cols - col);
    }
    return p;
}

/* What is read after a part: after the last, of `next` (or nothing). Returns whether it was that.
 */
static bool part_after(const struct cut *cut, const struct part *p, const struct kt_amx_strip *next,
                       struct part *after)
{
    bool last = false;
    if (p->col + p->cols < p->strip->cols)
        *after = part_at(cut, p->strip, p->from, p->col + p->cols);
    else if (p->from + p->rows < p->strip->weight->rows)
        *after = part_at(cut, p->strip, p->from + p->rows, 0);
    else {
        *after = part_at(cut, next, 0, 0);
        last = true;
    }
    return last;
}

static const char *part_begin(const struct part *p)
{
    return element_at(p->strip->weight, p->from, p->strip->col + p->col);
}

/* `calls` calls of walk_on cover a part. */
static struct walk walk_part(const struct part *p, int64_t calls)
{
    struct walk w = {0};
    if (!p->strip)
        return w;
    w.row = part_begin(p);
    w.ld = bytes_of(p->strip->weight, p->strip->weight->cols);
    w.run = bytes_of(p->strip->weight, p->cols);
    w.rows = p->rows;
    w.pace = pace(w.rows, calls);
    return w;
}

/* With more than a few tiles decoding fetches the next part instead, since it takes the smaller
 * part of the time. Weights of less than a byte are too few bytes for that to matter. */
static bool decoding_fetches(const struct kt_weight *w, int64_t tiles)
{
    enum { ELEMENTS = 256 /* whole blocks of every format */ };
    return !is_direct(w) && tiles > FEW_TILES && bytes_of(w, ELEMENTS) >= ELEMENTS;
}

static int64_t part_distance(const struct part *from, const struct part *to)
{
    if (!to->strip)
        return 0;
    return (int64_t)((uintptr_t)part_begin(to) - (uintptr_t)part_begin(from));
}

/* One tile of a, two of b. */
INLINE void sum_1x2(const struct factors *f, struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    for (int64_t k = 0; k < f->steps; k++, a += f->a_step, b += f->b_step) {
        tile_load(4, a, f->lda);
        tile_load(6, b, TILE_LINE);
        tile_multiply(0, 4, 6);
        tile_load(7, b + f->b_next, TILE_LINE);
        tile_multiply(1, 4, 7);
        walk_on(ahead);
    }
}

/* Rows of 32 columns as right factors: [rows / 32][2][16 pairs of rows][16 columns][2]. The first
 * of the two has columns 0 to 3 of every eight, which takes fewer instructions than 0 to 15;
 * products have their columns in that order until order_columns. */
enum { STEP_BYTES = 2 * TILE_BYTES };

/* A pair of rows of 32 columns, of which `rows` and `cols` exist. */
INLINE void interleave_pair(const uint16_t *w, int64_t ld, int64_t rows, int64_t cols, char *to)
{
    bool whole = rows >= 2 && cols >= KT_AMX_STEP;
    line low, high, a, b;
    a = whole ? line_load(w) : line_load_part(w, rows > 0 ? cols : 0);
    b = whole ? line_load(w + ld) : line_load_part(w + ld, rows > 1 ? cols : 0);
    line_interleave(a, b, &low, &high);
    line_store(to, low);
    line_store(to + TILE_BYTES, high);
}

/* A step of rows of 32 columns. */
INLINE void interleave_step(const uint16_t *w, int64_t ld, int64_t rows, int64_t cols, char *to)
{
    for (int64_t r = 0; r < KT_AMX_STEP; r += 2, w += 2 * ld, to += TILE_LINE)
        interleave_pair(w, ld, rows - r, cols, to);
}

static void order_columns(const float *products, int64_t ld, int64_t num_rows, int64_t cols,
                          float *rows, int64_t rows_ld)
{
    for (int64_t i = 0; i < num_rows; i++, products += ld, rows += rows_ld) {
        for (int64_t col = 0; col < cols; col += KT_AMX_STEP) {
            line block[2];
            line_join(line_load(products + col), line_load(products + col + 16), &block[0],
                      &block[1]);
            memcpy(rows + col, block, (size_t)kt_min_i64(KT_AMX_STEP, cols - col) * sizeof *rows);
        }
    }
}

/* Products of a part with all tiles of tokens. */
struct part_product {
    struct part part;
    const struct kt_weight *weight; /* the strip's, of codes without its scale */
    int64_t ahead;                  /* bytes to what decoding fetches */
    const char *tokens;
    int64_t num_tokens, tiles, tile_bytes;
    bool first;
    float *c;
    int64_t ld;
    uint16_t *decoded;
    char *stage; /* what is interleaved */
    float *sums; /* NULL; of codes: [2 tiles of tokens][32 columns], until they are scaled */
    float scale;
};

/* Where rows of a strip lie as bfloat16. */
struct columns {
    const uint16_t *data;
    int64_t ld;
};

/* Rows [row, row + rows) of a part. */
static struct columns open_columns(const struct part_product *p, int64_t row, int64_t rows)
{
    const struct kt_amx_strip *w = p->part.strip;
    int64_t from = p->part.from + row, col = w->col + p->part.col;
    if (is_direct(p->weight))
        return (struct columns){(const uint16_t *)(const void *)element_at(p->weight, from, col),
                                p->weight->cols};
    w->decode(p->weight, from, col, rows, p->part.cols, p->ahead, p->decoded, KT_AMX_STRIP_COLS);
    return (struct columns){p->decoded, KT_AMX_STRIP_COLS};
}

/* Of one or two tiles by 32 columns. */
INLINE struct results begin_columns(const struct part_product *p, float *c, const int tiles)
{
    struct results r = {c, 16 * p->ld, 16, p->ld * 4};
    if (p->sums)
        r = (struct results){p->sums, 16 * KT_AMX_STEP, 16, KT_AMX_STEP * 4};
    load_results(&r, p->sums || p->first, tiles, 2);
    return r;
}

INLINE void end_columns(const struct part_product *p, const struct results *r, float *c,
                        const int tiles)
{
    int64_t rows = kt_min_i64(p->num_tokens, tiles * KT_AMX_TOKENS);
    store_results(r, tiles, 2);
    if (p->sums)
        add_scaled(rows, 2, c, p->ld, p->sums, KT_AMX_STEP, p->scale, p->first);
}

/* Tiles of 32 columns that are interleaved at `b`. */
static void multiply_interleaved(const struct part_product *p, const char *b, float *c,
                                 struct walk *ahead)
{
    for (int64_t tile = 0; tile < p->tiles; tile += 2) {
        struct factors f = {.a = p->tokens + tile * p->tile_bytes,
                            .b = b,
                            .lda = TILE_LINE,
                            .a_next = p->tile_bytes,
                            .a_step = TILE_BYTES,
                            .b_next = TILE_BYTES,
                            .b_step = STEP_BYTES,
                            .steps = steps_of(p->part.rows)};
        float *to = c + tile * 16 * p->ld;
        if (tile + 1 < p->tiles) {
            struct results r = begin_columns(p, to, 2);
            sum_2x2(&f, ahead);
            end_columns(p, &r, to, 2);
        } else {
            struct results r = begin_columns(p, to, 1);
            sum_1x2(&f, ahead);
            end_columns(p, &r, to, 1);
        }
    }
}

/* 32 columns, one or two tiles: each step is interleaved while the one before is multiplied. */
INLINE void multiply_once(const struct part_product *p, const struct columns *w, int64_t cols,
                          float *c, const int tiles, struct walk *ahead)
{
    const char *a = p->tokens, *b = p->stage;
    int64_t rows = p->part.rows, steps = steps_of(rows);
    struct results r = begin_columns(p, c, tiles);
    interleave_step(w->data, w->ld, rows, cols, p->stage);
    for (int64_t k = 0; k < steps; k++, a += TILE_BYTES, b += STEP_BYTES) {
        int64_t row = (k + 1) * KT_AMX_STEP;
        if (row < rows)
            interleave_step(w->data + row * w->ld, w->ld, rows - row, cols,
                            p->stage + (k + 1) * STEP_BYTES);
        tile_see(b);
        tile_load(4, a, TILE_LINE);
        tile_load(6, b, TILE_LINE);
        tile_multiply(0, 4, 6);
        tile_load(7, b + TILE_BYTES, TILE_LINE);
        tile_multiply(1, 4, 7);
        if (tiles == 2) {
            tile_load(5, a + p->tile_bytes, TILE_LINE);
            tile_multiply(2, 5, 6);
            tile_multiply(3, 5, 7);
        }
        walk_on(ahead);
    }
    end_columns(p, &r, c, tiles);
}

static void multiply_few(const struct part_product *p, struct walk *ahead)
{
    struct columns w = open_columns(p, 0, p->part.rows);
    for (int64_t col = 0; col < p->part.cols; col += KT_AMX_STEP, w.data += KT_AMX_STEP) {
        int64_t cols = kt_min_i64(KT_AMX_STEP, p->part.cols - col);
        if (p->tiles == 1)
            multiply_once(p, &w, cols, p->c + col, 1, ahead);
        else
            multiply_once(p, &w, cols, p->c + col, 2, ahead);
    }
}

/* All columns interleaved: 32 of them after each other, `stride` bytes apart. */
static void interleave_part(const struct part_product *p, int64_t stride)
{
    const struct part *part = &p->part;
    char *to = p->stage;
    for (int64_t row = 0; row < part->rows; row += KT_AMX_STEP, to += STEP_BYTES) {
        int64_t rows = kt_min_i64(KT_AMX_STEP, part->rows - row);
        struct columns w = open_columns(p, row, rows);
        for (int64_t col = 0; col < part->cols; col += KT_AMX_STEP)
            interleave_step(w.data + col, w.ld, rows, part->cols - col,
                            to + col / KT_AMX_STEP * stride);
    }
}

/* The same where decoding does it at once; else false. */
static bool decode_pairs(const struct part_product *p, int64_t stride)
{
    const struct part *part = &p->part;
    const struct kt_amx_strip *w = part->strip;
    return w->decode_pairs && w->decode_pairs(p->weight, part->from, part->rows, w->col + part->col,
                                              part->cols, p->ahead, p->stage, stride);
}

static void multiply_columns(const struct part_product *p, struct walk *ahead)
{
    int64_t stride = steps_of(p->part.rows) * STEP_BYTES;
    bool decoded = decode_pairs(p, stride);
    if (!decoded && p->tiles <= FEW_TILES) {
        multiply_few(p, ahead);
        return;
    }
    if (!decoded)
        interleave_part(p, stride);
    for (int64_t col = 0; col < p->part.cols; col += KT_AMX_STEP)
        multiply_interleaved(p, p->stage + col / KT_AMX_STEP * stride, p->c + col, ahead);
}

/* With few tiles 64 columns at a time, so that the core decodes the next while it multiplies. */
static void multiply_part(const struct part_product *whole, struct walk *ahead)
{
    enum { FEW_COLS = 64 };
    const struct part *part = &whole->part;
    const struct kt_weight *weight = part->strip->weight;
    int64_t width = whole->tiles <= FEW_TILES ? FEW_COLS : part->cols;
    struct part_product p = *whole;
    for (int64_t from = 0, run; from < part->cols; from += run) {
        int64_t col = part->strip->col + part->col + from;
        run = part->cols - from;
        if (p.sums) {
            run = columns_alike(weight, col, run);
            p.scale = *kt_weight_scale(weight, part->from, col);
        }
        for (int64_t at = from; at < from + run; at += width) {
            p.part.col = part->col + at;
            p.part.cols = kt_min_i64(width, from + run - at);
            p.c = whole->c + at;
            multiply_columns(&p, ahead);
        }
    }
}

/* One or two tiles have as many rows as there are tokens. */
static void shape_few(int64_t num_tokens)
{
    int first = (int)kt_min_i64(num_tokens, KT_AMX_TOKENS), second = (int)num_tokens - first;
    tile_shape(first, second ? second : KT_AMX_TOKENS);
}

static void backward(const struct kt_amx_strip *w, const struct kt_amx_strip *next,
                     const void *rows, int64_t num_tokens, int64_t chunk, bool accumulate,
                     float *products, int64_t ld, void *stage)
{
    int64_t tiles = (num_tokens + KT_AMX_TOKENS - 1) / KT_AMX_TOKENS;
    struct cut cut = cut_for(tiles, chunk);
    bool fetching = decoding_fetches(w->weight, tiles), coded = has_codes(w->weight, tiles);
    struct kt_weight codes = without_scale(w->weight);
    struct part_product p = {.weight = coded ? &codes : w->weight,
                             .num_tokens = num_tokens,
                             .tiles = tiles,
                             .tile_bytes = steps_of(w->weight->rows) * TILE_BYTES,
                             .ld = ld,
                             .decoded = stage,
                             .stage = (char *)stage + DECODED_BYTES};
    p.sums = coded ? (float *)(void *)(p.stage + CODED_BYTES) : NULL;
    if (tiles <= FEW_TILES)
        shape_few(num_tokens);
    struct part after = part_at(&cut, w, 0, 0);
    for (bool last = false; !last;) {
        struct walk ahead = {0};
        p.part = after;
        last = part_after(&cut, &p.part, next, &after);
        if (fetching)
            p.ahead = part_distance(&p.part, &after);
        else
            ahead = walk_part(&after,
                              steps_of(p.part.cols) * steps_of(p.part.rows) * ((tiles + 1) / 2));
        p.tokens = (const char *)rows + p.part.from / KT_AMX_STEP * TILE_BYTES;
        p.first = !accumulate && p.part.from == 0;
        p.c = products + p.part.col;
        multiply_part(&p, &ahead);
    }
    if (tiles <= FEW_TILES)
        tile_shape(KT_AMX_TOKENS, KT_AMX_TOKENS);
}
