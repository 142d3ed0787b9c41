/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled once for each instruction set; KT_AMX_INIT names the result. */
#include "backends/amx/kernels_int8.h"

#include <float.h>

enum { STEP = KT_AMX_INT8_STEP };
#define TILE_PRODUCT tile_multiply_int8
#include "backends/amx/tiles_template.h"

#include "backends/amx/forward_template.h"

/* -- quantising -------------------------------------------------------------------------------- */

static uint32_t magnitude(const float *x)
{
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits & 0x7fffffff;
}

/* Returns the scale for numbers up to the one whose magnitude's bits are `most`: bits are ordered
 * as numbers are, infinity and NaN last. */
static float scale_of(uint32_t most, float *factor)
{
    float max;
    memcpy(&max, &most, sizeof max);
    int normal = max >= 127 * FLT_MIN && max <= FLT_MAX;
    *factor = normal ? 127 / max : 0;
    return normal ? max / 127 : max <= FLT_MAX ? 0 : NAN;
}

static float scale_of_row(const float *x, int64_t n, float *factor)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++)
        most = magnitude(x + i) > most ? magnitude(x + i) : most;
    return scale_of(most, factor);
}

static void pack_columns(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *columns,
                         float scales[KT_AMX_TOKENS])
{
    float factors[KT_AMX_TOKENS];
    char *out = columns;
    for (int s = 0; s < 16; s++)
        scales[s] = tokens[s] ? scale_of_row(tokens[s], n, &factors[s]) : 0;
    for (int64_t k = 0; k < n; k += STEP, out += TILE_BYTES) {
        line r[16];
        for (int s = 0; s < 16; s++)
            r[s] = tokens[s] ? line_quantise(tokens[s] + k, n - k, factors[s]) : line_zero();
        line_transpose(r);
        for (int s = 0; s < 16; s++)
            line_store(out + s * TILE_LINE, r[s]);
    }
}

static void repack_columns(const float *features, int64_t n, void *columns,
                           float scales[KT_AMX_TOKENS])
{
    uint32_t most[KT_AMX_TOKENS] = {0};
    float factors[KT_AMX_TOKENS];
    char *out = columns;
    for (int64_t k = 0; k < n; k++)
        for (int s = 0; s < 16; s++) {
            uint32_t bits = magnitude(features + k * 16 + s);
            most[s] = bits > most[s] ? bits : most[s];
        }
    for (int s = 0; s < 16; s++)
        scales[s] = scale_of(most[s], &factors[s]);
    for (int64_t k = 0; k < steps_of(n) * STEP; k += 4, out += TILE_LINE)
        line_store(out, line_quantise_fours(features + k * 16, n - k, factors));
}

/* -- products ---------------------------------------------------------------------------------- */

static bool is_direct(const struct kt_weight *w)
{
    (void)w;
    return true;
}

static void stage_block(const struct kt_amx_blocks *w, int32_t i, int64_t from, int64_t cols,
                        int64_t stage_ld, void *stage)
{
    char *to = stage;
    for (int64_t r = 0; r < KT_AMX_ROWS; r++, to += stage_ld) {
        int64_t n = r < w->rows[i] ? cols : 0;
        memset(to + n, 0, (size_t)(stage_ld - n));
        if (n)
            memcpy(to, element_at(w->weight[i], w->first[i] + r, from), (size_t)n);
    }
}

static float row_scale(const struct kt_weight *w, int64_t row)
{
    return w->scale[(w->first_row + row) * w->scale_ld];
}

/* Sums of sixteen tokens' products with a row become floats where they lie. */
INLINE void scale_sums(float *restrict sums, const float *restrict scales, float scale)
{
    for (int s = 0; s < 16; s++) {
        int32_t sum;
        memcpy(&sum, &sums[s], sizeof sum);
        sums[s] = (float)sum * scales[s] * scale;
    }
}

static void scale_block(const struct kt_amx_blocks *w, int32_t i, const float *scales, int64_t tile,
                        int64_t end, int64_t tiles, float *products)
{
    for (int64_t r = 0; r < KT_AMX_ROWS; r++) {
        float scale = r < w->rows[i] ? row_scale(w->weight[i], w->first[i] + r) : 0;
        for (int64_t t = tile; t < end; t++)
            scale_sums(products + (r / 16 * tiles + t) * 256 + r % 16 * 16, scales + t * 16, scale);
    }
}

static void forward(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next, int64_t depth,
                    const void *columns, const float *scales, int64_t tiles, int64_t chunk,
                    float *products, void *stage)
{
    multiply_chunks(w, next, depth, columns, scales, tiles, chunk, products, stage, scale_block);
}

void KT_AMX_INIT(struct kt_amx_int8_kernels *kernels)
{
    *kernels = (struct kt_amx_int8_kernels){.enter = tile_enter,
                                            .leave = tile_leave,
                                            .pack_columns = pack_columns,
                                            .repack_columns = repack_columns,
                                            .forward = forward};
}
