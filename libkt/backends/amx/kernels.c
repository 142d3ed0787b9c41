/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled once for each instruction set; KT_AMX_INIT names the result. */
#include "backends/amx/kernels.h"

#include "backends/amx/line.h"
#include "backends/cpu/amx_tile.h"
#include "core/memory.h"

#define INLINE static inline __attribute__((always_inline))

static int64_t steps_of(int64_t features)
{
    return (features + KT_AMX_STEP - 1) / KT_AMX_STEP;
}

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

static void transpose(const float *products, int64_t tiles, int64_t num_features, int64_t tokens,
                      int keep, float *rows, int64_t ld)
{
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t f = 0; f < num_features; f += 16) {
            const float *from = products + (f / 16 * tiles + tile) * 256;
            int64_t count = kt_min_i64(16, tokens - tile * 16);
            line r[16];
            for (int i = 0; i < 16; i++)
                r[i] = line_load(from + i * 16);
            line_transpose(r);
            for (int s = 0; s < count; s++) {
                float *to = rows + (tile * 16 + s) * ld + f;
                if (keep)
                    line_store(to, r[s]);
                else
                    line_stream(to, r[s]);
            }
        }
    }
}

/* -- reading ahead ----------------------------------------------------------------------------- */

/* Fetches what the next chunk reads, row after row, a run of bytes each: memory is read in longer
 * pieces than in the order in which the products use it. Calls are spread over the whole chunk,
 * since a core has few misses under way at a time and a burst of them holds up the tiles' loads. */
struct walk {
    const struct kt_amx_blocks *blocks;
    const char *block, *row;
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
            w->row = (const char *)(w->blocks->data[w->index] + w->from);
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
    w.row = (const char *)(b->data[0] + from);
    w.block_rows = b->rows[0];
    w.ld = b->ld * 2;
    w.run = kt_min_i64(chunk, depth - from) * 2;
    for (int32_t i = 0; i < b->num; i++)
        w.rows += b->rows[i];
    w.pace = pace(w.rows, calls);
    return w;
}

static struct walk walk_strip(const struct kt_amx_strip *s, int64_t from, int64_t chunk,
                              int64_t calls)
{
    struct walk w = {0};
    if (!s)
        return w;
    w.row = (const char *)(s->data + from * s->ld);
    w.ld = s->ld * 2;
    w.run = s->cols * 2;
    w.rows = kt_min_i64(chunk, s->rows - from);
    w.pace = pace(w.rows, calls);
    return w;
}

/* -- products ---------------------------------------------------------------------------------- */

/* Two by `n` tiles of results, c[i][j] at c + i * c_row + j * c_col, over `steps` steps. Factors:
 * a and a + a_next (row stride lda), b and b + b_next. All in bytes but c's offsets. */
struct factors {
    const char *a, *b;
    int64_t lda, a_next, a_step, b_next, b_step, steps;
};

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
    for (int64_t k = 0; k < f->steps; k++, a += f->a_step, b += f->b_step) {
        tile_load(4, a, f->lda);
        tile_load(6, b, TILE_LINE);
        tile_multiply(0, 4, 6);
        tile_load(7, b + f->b_next, TILE_LINE);
        tile_multiply(1, 4, 7);
        tile_load(5, a + f->a_next, f->lda);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
        walk_on(ahead);
    }
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
        tile_multiply(0, 4, 6);
        tile_load(5, a + f->a_next, f->lda);
        tile_multiply(2, 5, 6);
        walk_on(ahead);
    }
    tile_store(0, c, c_ld);
    tile_store(2, c + c_row, c_ld);
}

/* One tile of a, two of b. */
INLINE void multiply_1x2(const struct factors *f, int first, float *c, int64_t c_col, int64_t c_ld,
                         struct walk *ahead)
{
    const char *a = f->a, *b = f->b;
    tile_see(b);
    if (first) {
        tile_zero(0);
        tile_zero(1);
    } else {
        tile_load(0, c, c_ld);
        tile_load(1, c + c_col, c_ld);
    }
    for (int64_t k = 0; k < f->steps; k++, a += f->a_step, b += f->b_step) {
        tile_load(4, a, f->lda);
        tile_load(6, b, TILE_LINE);
        tile_multiply(0, 4, 6);
        tile_load(7, b + f->b_next, TILE_LINE);
        tile_multiply(1, 4, 7);
        walk_on(ahead);
    }
    tile_store(0, c, c_ld);
    tile_store(1, c + c_col, c_ld);
}

/* A copy of a block whose rows or features are not whole tiles, with zeros around. */
static const char *stage_block(const uint16_t *w, int64_t ld, int64_t rows, int64_t cols,
                               int64_t stage_ld, uint16_t *stage)
{
    for (int64_t r = 0; r < KT_AMX_ROWS; r++)
        for (int64_t k = 0; k < stage_ld; k += KT_AMX_STEP)
            line_store(stage + r * stage_ld + k,
                       r < rows ? line_load_part(w + r * ld + k, cols - k) : line_zero());
    return (const char *)stage;
}

static void forward(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next, int64_t depth,
                    const void *columns, int64_t tiles, int64_t chunk, float *products, void *stage)
{
    int64_t tile_bytes = steps_of(depth) * TILE_BYTES;
    for (int64_t from = 0; from < depth; from += chunk) {
        int64_t cols = kt_min_i64(chunk, depth - from), steps = steps_of(cols);
        int more = from + chunk < depth;
        struct walk ahead = walk_blocks(more ? w : next, more ? from + chunk : 0, chunk, depth,
                                        w->num * steps * ((tiles + 1) / 2));
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            for (int32_t i = 0; i < w->num; i++) {
                struct factors f = {.a = (const char *)(w->data[i] + from),
                                    .b = (const char *)columns + tile * tile_bytes +
                                         from / KT_AMX_STEP * TILE_BYTES,
                                    .lda = w->ld * 2,
                                    .a_step = TILE_LINE,
                                    .b_next = tile_bytes,
                                    .b_step = TILE_BYTES,
                                    .steps = steps};
                if (w->rows[i] < KT_AMX_ROWS || cols % KT_AMX_STEP) {
                    f.lda = steps * TILE_LINE;
                    f.a = stage_block(w->data[i] + from, w->ld, w->rows[i], cols,
                                      steps * KT_AMX_STEP, stage);
                }
                f.a_next = 16 * f.lda;
                float *c = products + (i * 2 * tiles + tile) * 256;
                if (tile + 1 < tiles)
                    multiply_2x2(&f, from == 0, c, tiles * 256, 256, TILE_LINE, &ahead);
                else
                    multiply_2x1(&f, from == 0, c, tiles * 256, TILE_LINE, &ahead);
            }
        }
    }
}

/* Rows of 32 columns as right factors: [rows / 32][2][16 pairs of rows][16 columns][2]. */
static void interleave_rows(const uint16_t *w, int64_t ld, int64_t rows, int64_t cols, char *out)
{
    for (int64_t r = 0; r < steps_of(rows) * KT_AMX_STEP; r += 2) {
        line low, high, a = line_load_part(w + r * ld, r < rows ? cols : 0);
        line b = line_load_part(w + (r + 1) * ld, r + 1 < rows ? cols : 0);
        line_interleave(a, b, &low, &high);
        char *to = out + r / KT_AMX_STEP * 2 * TILE_BYTES + r % KT_AMX_STEP / 2 * TILE_LINE;
        line_store(to, low);
        line_store(to + TILE_BYTES, high);
    }
}

static void backward(const struct kt_amx_strip *w, const struct kt_amx_strip *next,
                     const void *rows, int64_t tiles, int64_t chunk, int accumulate,
                     float *products, int64_t ld, void *stage)
{
    int64_t tile_bytes = steps_of(w->rows) * TILE_BYTES;
    for (int64_t from = 0; from < w->rows; from += chunk) {
        int64_t count = kt_min_i64(chunk, w->rows - from), steps = steps_of(count);
        int more = from + chunk < w->rows, first = !accumulate && from == 0;
        struct walk ahead = walk_strip(more ? w : next, more ? from + chunk : 0, chunk,
                                       steps_of(w->cols) * steps * ((tiles + 1) / 2));
        for (int64_t col = 0; col < w->cols; col += KT_AMX_STEP) {
            interleave_rows(w->data + from * w->ld + col, w->ld, count, w->cols - col, stage);
            for (int64_t tile = 0; tile < tiles; tile += 2) {
                struct factors f = {.a = (const char *)rows + tile * tile_bytes +
                                         from / KT_AMX_STEP * TILE_BYTES,
                                    .b = stage,
                                    .lda = TILE_LINE,
                                    .a_next = tile_bytes,
                                    .a_step = TILE_BYTES,
                                    .b_next = TILE_BYTES,
                                    .b_step = 2 * TILE_BYTES,
                                    .steps = steps};
                float *c = products + tile * 16 * ld + col;
                if (tile + 1 < tiles)
                    multiply_2x2(&f, first, c, 16 * ld, 16, ld * 4, &ahead);
                else
                    multiply_1x2(&f, first, c, 16, ld * 4, &ahead);
            }
        }
    }
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
                                       .backward = backward};
}
