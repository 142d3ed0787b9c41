/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled once for each instruction set; KT_AMX_INIT names the result. */
#include "backends/amx/kernels.h"

#include "backends/amx/line.h"

enum { STEP = KT_AMX_STEP };
#define TILE_PRODUCT tile_multiply
#include "backends/amx/products_template.h"

/* -- packing ----------------------------------------------------------------------------------- */

static void pack_columns(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *columns)
{
    char *out = columns;
    for (int64_t k = 0; k < n; k += KT_AMX_STEP, out += TILE_BYTES) {
        line r[16];
        for (int s = 0; s < 16; s++)
            r[s] = tokens[s] ? line_round(tokens[s] + k, n - k) : line_zero();
        line_transpose(r);
        for (int s = 0; s < 16; s++)
            line_store(out + s * TILE_LINE, r[s]);
    }
}

static void pack_rows(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *rows)
{
    for (int s = 0; s < 16; s++) {
        char *out = (char *)rows + s * TILE_LINE;
        for (int64_t k = 0; k < n; k += KT_AMX_STEP, out += TILE_BYTES)
            line_store(out, tokens[s] ? line_round(tokens[s] + k, n - k) : line_zero());
    }
}

static void repack_columns(const float *products, int64_t tiles, void *columns, int64_t stride)
{
    for (int64_t tile = 0; tile < tiles; tile++) {
        char *out = (char *)columns + tile * stride;
        for (int pair = 0; pair < 16; pair++) {
            const float *even = products + ((pair / 8 * tiles + tile) * 16 + pair % 8 * 2) * 16;
            line_store(out + pair * TILE_LINE, line_round_pairs(even, even + 16));
        }
    }
}

/* Up to 16 floats. */
static void store_part(float *to, line x, int64_t n, int keep)
{
    if (n < 16)
        memcpy(to, &x, (size_t)n * sizeof *to);
    else if (keep || (uintptr_t)to % TILE_LINE != 0)
        line_store(to, x);
    else
        line_stream(to, x);
}

static void transpose(const float *products, int64_t tiles, int64_t num_features, int64_t num_rows,
                      int keep, float *const *rows)
{
    for (int64_t tile = 0; tile < tiles; tile++, rows += 16) {
        int64_t count = kt_min_i64(16, num_rows - tile * 16);
        for (int64_t f = 0; f < num_features; f += 16) {
            const float *from = products + (f / 16 * tiles + tile) * 256;
            line r[16];
            for (int i = 0; i < 16; i++)
                r[i] = line_load(from + i * 16);
            line_transpose(r);
            for (int s = 0; s < count; s++)
                store_part(rows[s] + f, r[s], num_features - f, keep);
        }
    }
}

/* -- forward ----------------------------------------------------------------------------------- */

static int is_direct(const struct kt_weight *w)
{
    return w->dtype == KT_DTYPE_BF16 && !w->scale;
}

/* A block whose rows or features are not whole tiles, or not bfloat16, copied with zeros around. */
static void stage_block(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                        int64_t stage_ld, void *memory)
{
    const struct kt_weight *weight = w->weight[i];
    uint16_t *stage = memory;
    int64_t whole = cols / KT_AMX_STEP * KT_AMX_STEP;
    int decoded = !is_direct(weight);
    if (decoded)
        w->decode(weight, w->first[i], from, w->rows[i], cols, 0, stage, stage_ld);
    for (int64_t r = 0; r < KT_AMX_ROWS; r++, stage += stage_ld) {
        const uint16_t *row = stage;
        int64_t n = r < w->rows[i] ? cols : 0;
        if (n && !decoded)
            row = (const uint16_t *)(const void *)element_at(weight, w->first[i] + r, from);
        for (int64_t k = n && decoded ? whole : 0; k < stage_ld; k += KT_AMX_STEP)
            line_store(stage + k, line_load_part(row + k, n - k));
    }
}

static void forward(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next, int64_t depth,
                    const void *columns, int64_t tiles, int64_t chunk, float *products, void *stage)
{
    multiply_chunks(w, next, depth, columns, NULL, tiles, chunk, products, stage, NULL);
}

/* -- backward ---------------------------------------------------------------------------------- */

/* Rows [from, from + rows) and columns [col, col + cols) of a strip, which are multiplied with all
 * tiles before the next. */
struct part {
    const struct kt_amx_strip *strip;
    int64_t from, rows, col, cols;
};

static struct part part_at(const struct kt_amx_strip *w, int64_t from, int64_t col, int64_t chunk)
{
    struct part p = {.strip = w, .from = from, .col = col};
    if (w) {
        p.rows = kt_min_i64(chunk, w->weight->rows - from);
        p.cols = kt_min_i64(KT_AMX_STRIP_COLS, w->cols - col);
    }
    return p;
}

/* What is read after a part: after the last, of `next` (or nothing). Returns whether it was that.
 */
static int part_after(const struct part *p, const struct kt_amx_strip *next, int64_t chunk,
                      struct part *after)
{
    int last = 0;
    if (p->col + p->cols < p->strip->cols)
        *after = part_at(p->strip, p->from, p->col + p->cols, chunk);
    else if (p->from + p->rows < p->strip->weight->rows)
        *after = part_at(p->strip, p->from + p->rows, 0, chunk);
    else {
        *after = part_at(next, 0, 0, chunk);
        last = 1;
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
static int decoding_fetches(const struct kt_weight *w, int64_t tiles)
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
    int whole = rows >= 2 && cols >= KT_AMX_STEP;
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

/* Where rows of a strip lie as bfloat16. */
struct columns {
    const uint16_t *data;
    int64_t ld;
};

/* Rows [row, row + rows) of a part. */
static struct columns open_columns(const struct part *p, int64_t row, int64_t rows, int64_t ahead,
                                   uint16_t *decoded)
{
    const struct kt_amx_strip *w = p->strip;
    int64_t from = p->from + row, col = w->col + p->col;
    if (is_direct(w->weight))
        return (struct columns){(const uint16_t *)(const void *)element_at(w->weight, from, col),
                                w->weight->cols};
    w->decode(w->weight, from, col, rows, p->cols, ahead, decoded, KT_AMX_STRIP_COLS);
    return (struct columns){decoded, KT_AMX_STRIP_COLS};
}

/* Products of a part with all tiles of tokens. */
struct part_product {
    struct part part;
    int64_t ahead; /* bytes to what decoding fetches */
    const char *tokens;
    int64_t tiles, tile_bytes;
    int first;
    float *c;
    int64_t ld;
    uint16_t *decoded;
    char *stage; /* what is interleaved */
};

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
        struct results r = {to, 16 * p->ld, 16, p->ld * 4};
        if (tile + 1 < p->tiles) {
            load_results(&r, p->first, 2, 2);
            sum_2x2(&f, ahead);
            store_results(&r, 2, 2);
        } else {
            load_results(&r, p->first, 1, 2);
            sum_1x2(&f, ahead);
            store_results(&r, 1, 2);
        }
    }
}

/* 32 columns, one or two tiles: each step is interleaved while the one before is multiplied. */
INLINE void multiply_once(const struct part_product *p, const struct columns *w, int64_t cols,
                          float *c, const int tiles, struct walk *ahead)
{
    const char *a = p->tokens, *b = p->stage;
    int64_t rows = p->part.rows, steps = steps_of(rows);
    struct results r = {c, 16 * p->ld, 16, p->ld * 4};
    load_results(&r, p->first, tiles, 2);
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
    store_results(&r, tiles, 2);
}

static void multiply_few(const struct part_product *p, struct walk *ahead)
{
    struct columns w = open_columns(&p->part, 0, p->part.rows, p->ahead, p->decoded);
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
        struct columns w = open_columns(part, row, rows, p->ahead, p->decoded);
        for (int64_t col = 0; col < part->cols; col += KT_AMX_STEP)
            interleave_step(w.data + col, w.ld, rows, part->cols - col,
                            to + col / KT_AMX_STEP * stride);
    }
}

/* The same where decoding does it at once; else 0. */
static int decode_pairs(const struct part_product *p, int64_t stride)
{
    const struct part *part = &p->part;
    const struct kt_amx_strip *w = part->strip;
    return w->decode_pairs && w->decode_pairs(w->weight, part->from, part->rows, w->col + part->col,
                                              part->cols, p->ahead, p->stage, stride);
}

/* With few tiles 64 columns at a time, so that the core decodes the next while it multiplies. */
static void multiply_part(const struct part_product *whole, struct walk *ahead)
{
    enum { FEW_COLS = 64 };
    struct part_product p = *whole;
    int few = p.tiles <= FEW_TILES;
    int64_t cols = whole->part.cols, width = few ? FEW_COLS : cols;
    int64_t stride = steps_of(p.part.rows) * STEP_BYTES;
    for (int64_t from = 0; from < cols; from += width) {
        p.part.col = whole->part.col + from;
        p.part.cols = kt_min_i64(width, cols - from);
        p.c = whole->c + from;
        int decoded = decode_pairs(&p, stride);
        if (!decoded && few) {
            multiply_few(&p, ahead);
            continue;
        }
        if (!decoded)
            interleave_part(&p, stride);
        for (int64_t col = 0; col < p.part.cols; col += KT_AMX_STEP)
            multiply_interleaved(&p, p.stage + col / KT_AMX_STEP * stride, p.c + col, ahead);
    }
}

/* One or two tiles have as many rows as there are tokens. */
static void shape_few(int64_t num_tokens)
{
    int first = (int)kt_min_i64(num_tokens, KT_AMX_TOKENS), second = (int)num_tokens - first;
    tile_shape(first, second ? second : KT_AMX_TOKENS);
}

/* With few tiles fewer rows are multiplied at a time, since what is read ahead must find room in
 * level 2, where rows a page apart share few sets. */
static void backward(const struct kt_amx_strip *w, const struct kt_amx_strip *next,
                     const void *rows, int64_t num_tokens, int64_t chunk, int accumulate,
                     float *products, int64_t ld, void *stage)
{
    int64_t tiles = (num_tokens + KT_AMX_TOKENS - 1) / KT_AMX_TOKENS;
    int few = tiles <= FEW_TILES, fetching = decoding_fetches(w->weight, tiles);
    struct part_product p = {.tiles = tiles,
                             .tile_bytes = steps_of(w->weight->rows) * TILE_BYTES,
                             .ld = ld,
                             .decoded = stage,
                             .stage = (char *)stage + KT_AMX_DECODED_ROWS * KT_AMX_STRIP_COLS * 2};
    if (few) {
        chunk = kt_min_i64(chunk, KT_AMX_DECODED_ROWS);
        shape_few(num_tokens);
    }
    struct part after = part_at(w, 0, 0, chunk);
    for (int last = 0; !last;) {
        struct walk ahead = {0};
        p.part = after;
        last = part_after(&p.part, next, chunk, &after);
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
    if (few)
        tile_shape(KT_AMX_TOKENS, KT_AMX_TOKENS);
}

void KT_AMX_INIT(struct kt_amx_kernels *kernels)
{
    *kernels = (struct kt_amx_kernels){.enter = tile_enter,
                                       .leave = tile_leave,
                                       .pack_columns = pack_columns,
                                       .pack_rows = pack_rows,
                                       .repack_columns = repack_columns,
                                       .transpose = transpose,
                                       .forward = forward,
                                       .backward = backward,
                                       .order_columns = order_columns};
}
