/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled once for each instruction set; KT_AMX_INIT names the result. */
#include "backends/amx/kernels.h"

enum { STEP = KT_AMX_STEP };
#define TILE_PRODUCT tile_multiply
#include "backends/amx/tiles_template.h"

#include "backends/amx/forward_template.h"

#include "backends/amx/backward_template.h"

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

static bool is_direct(const struct kt_weight *w)
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
    bool decoded = !is_direct(weight);
    if (decoded)
        w->decode(weight, w->first[i], from, w->rows[i], cols, 0, stage, stage_ld);
    if (decoded && whole == stage_ld && w->rows[i] == KT_AMX_ROWS)
        return;
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
