/* SPDX-License-Identifier: Apache-2.0 */
/* AMX-BF16: the tile of a product in tile registers; factors are packed as for AVX-512-BF16, whose
 * pairs of bfloat16 are what tile registers take. Compiled with tile instructions, and without them
 * for tests of everything around them. */
#include "backends/cpu/x86/amx_tile.h"
#include "backends/cpu/kernels.h"
#include "core/memory.h"

enum {
    ROWS = 32,
    COLS = 32,
    HALF = 16,
    STEP = 32,                    /* depth of one multiplication */
    PAIR_ROW = COLS * 2,          /* elements of a panel between pairs of its depth */
    STAGE_DEPTH = 512,            /* depth of rows that are copied at a time */
    STAGE_LD = STAGE_DEPTH + STEP /* a stride that spreads rows over cache sets */
};

/* What tiles read in place of rows and depth that do not exist. */
struct stage {
    uint16_t rows[ROWS * STAGE_LD];
    uint16_t pairs[STEP / 2 * PAIR_ROW];
};

/* Rows [0, rows) over depth [0, depth), filled up with zeros to `full` rows and whole steps. */
static const uint16_t *stage_rows(struct stage *s, int64_t rows, int64_t full, int64_t depth,
                                  const uint16_t *a, int64_t lda)
{
    size_t bytes = (size_t)((depth + STEP - 1) / STEP * STEP) * sizeof *a;
    for (int64_t i = 0; i < full; i++) {
        uint16_t *to = s->rows + i * STAGE_LD;
        memset(to, 0, bytes);
        if (i < rows)
            memcpy(to, a + i * lda, (size_t)depth * sizeof *a);
    }
    return s->rows;
}

static void multiply(int two, int64_t steps, const uint16_t *a, int64_t lda, const uint16_t *b)
{
    tile_see(a);
    for (int64_t k = 0; k < steps; k++, a += STEP, b += STEP / 2 * PAIR_ROW) {
        tile_load(4, a, lda * 2);
        tile_load(6, b, PAIR_ROW * 2);
        tile_multiply(0, 4, 6);
        tile_load(7, b + PAIR_ROW / 2, PAIR_ROW * 2);
        tile_multiply(1, 4, 7);
        if (two) {
            tile_load(5, a + HALF * lda, lda * 2);
            tile_multiply(2, 5, 6);
            tile_multiply(3, 5, 7);
        }
    }
}

/* Adds the products over one stretch of the depth to the registers. */
static void multiply_depth(struct stage *s, int64_t rows, int64_t depth, const uint16_t *a,
                           int64_t lda, const uint16_t *b)
{
    int64_t full = rows > HALF ? ROWS : HALF, steps = depth / STEP, rest = depth % STEP;
    if (rows < full || rest) {
        a = stage_rows(s, rows, full, depth, a, lda);
        lda = STAGE_LD;
    }
    multiply(full == ROWS, steps, a, lda, b);
    if (!rest)
        return;
    memset(s->pairs, 0, sizeof s->pairs);
    memcpy(s->pairs, b + steps * STEP / 2 * PAIR_ROW, (size_t)(rest / 2 * PAIR_ROW) * sizeof *b);
    multiply(full == ROWS, 1, a + steps * STEP, lda, s->pairs);
}

static void load_tiles(const float *c, int64_t ldc)
{
    tile_load(0, c, ldc * 4);
    tile_load(1, c + HALF, ldc * 4);
    tile_load(2, c + HALF * ldc, ldc * 4);
    tile_load(3, c + HALF * ldc + HALF, ldc * 4);
}

static void store_tiles(float *c, int64_t ldc, int two)
{
    tile_store(0, c, ldc * 4);
    tile_store(1, c + HALF, ldc * 4);
    if (two) {
        tile_store(2, c + HALF * ldc, ldc * 4);
        tile_store(3, c + HALF * ldc + HALF, ldc * 4);
    }
}

static void tile(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                 const void *panel, float alpha, bool accumulate, float *c, int64_t ldc)
{
    const uint16_t *left = a, *right = panel;
    struct stage stage;
    bool direct = rows == ROWS && cols == COLS && alpha == 1.0f;
    if (direct && accumulate) {
        tile_see(c);
        load_tiles(c, ldc);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (int64_t from = 0; from < k; from += STAGE_DEPTH)
        multiply_depth(&stage, rows, kt_min_i64(STAGE_DEPTH, k - from), left + from, lda,
                       right + from / 2 * PAIR_ROW);
    if (direct) {
        store_tiles(c, ldc, 1);
        return;
    }
    float sums[ROWS * COLS];
    store_tiles(sums, COLS, rows > HALF);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            c[i * ldc + j] = (accumulate ? c[i * ldc + j] : 0.0f) + alpha * sums[i * COLS + j];
}

void KT_AMX_INIT(struct kt_kernels *kernels)
{
    kernels->bf16.mr = ROWS;
    kernels->bf16.nr = COLS;
    kernels->bf16.row_step = HALF;
    kernels->bf16.dot_rows = kernels->bf16.outer_rows = 12;
    kernels->bf16.tile = tile;
    kernels->bf16.enter = tile_enter;
    kernels->bf16.leave = tile_leave;
}
