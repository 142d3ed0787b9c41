/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/tile_template.h
 * The register tile of a matrix product, written once and included by the file of each instruction
 * set. Panels and rows are counted in units of 4 bytes: a float32, or a pair of bfloat16. Before
 * including, define
 *   TILE_ROWS, TILE_VECTORS  size of the tile: rows x vectors of VECTOR_LANES results
 *   TILE_UNROLL              depths of a turn of the loop
 *   VECTOR, VECTOR_LANES     a vector of float32
 *   VECTOR_ZERO(), VECTOR_LOAD(p), VECTOR_BROADCAST(p), VECTOR_SET(x)
 *   VECTOR_MULTIPLY_ADD(x, y, sum)   of units: float32, or the dot products of bfloat16 pairs
 *   VECTOR_SCALE_ADD(x, y, z) = x * y + z, float32
 *   VECTOR_LOAD_PART(p, n), VECTOR_STORE_PART(p, n, x)   the first n lanes
 * Defines tile(), for kt_gemm_kernel.tile; UNITS(k) gives the units of depth k. */

/* Rows are addressed from every third one, x86 having addresses of base + 1 or 2 strides. GCC would
 * otherwise keep a stride for each row and spill vectors. */
#define TILE_KEEP_POINTER(p) __asm__("" : "+r"(p))

enum { LINE_FLOATS = 16 };

/* sum += depths [0, unroll) of the rows and the panel, which both go on behind them. */
static inline __attribute__((always_inline)) const float *
tile_depths(const int rows, const int vectors, const int unroll, const float *base[TILE_ROWS / 3],
            int64_t lda, const float *panel, VECTOR sum[TILE_ROWS][TILE_VECTORS])
{
    VECTOR b[TILE_VECTORS];
#pragma GCC unroll 4
    for (int u = 0; u < unroll; u++, panel += TILE_VECTORS * VECTOR_LANES) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            b[v] = VECTOR_LOAD(panel + v * VECTOR_LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            VECTOR x = VECTOR_BROADCAST(base[i / 3] + i % 3 * lda + u);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[i][v] = VECTOR_MULTIPLY_ADD(x, b[v], sum[i][v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i += 3)
        base[i / 3] += unroll;
    return panel;
}

static inline __attribute__((always_inline)) void
tile_body(const int rows, const int vectors, int64_t cols, int64_t units, const float *a,
          int64_t lda, const float *panel, float alpha, bool accumulate, float *c, int64_t ldc)
{
    VECTOR sum[TILE_ROWS][TILE_VECTORS];
    const float *base[TILE_ROWS / 3];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i += 3) {
        base[i / 3] = a + i * lda;
        TILE_KEEP_POINTER(base[i / 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            if (v * VECTOR_LANES % LINE_FLOATS == 0)
                __builtin_prefetch(c + i * ldc + v * VECTOR_LANES, 1);
            sum[i][v] = VECTOR_ZERO();
        }
    }
    int64_t p = 0;
    for (; p <= units - TILE_UNROLL; p += TILE_UNROLL)
        panel = tile_depths(rows, vectors, TILE_UNROLL, base, lda, panel, sum);
    for (; p < units; p++)
        panel = tile_depths(rows, vectors, 1, base, lda, panel, sum);
    VECTOR factor = VECTOR_SET(alpha);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *to = c + i * ldc + v * VECTOR_LANES;
            int64_t n = cols - v * VECTOR_LANES;
            VECTOR old = accumulate ? VECTOR_LOAD_PART(to, n) : VECTOR_ZERO();
            VECTOR_STORE_PART(to, n, VECTOR_SCALE_ADD(sum[i][v], factor, old));
        }
    }
}

#define TILE_PARAMETERS                                                                            \
    int64_t cols, int64_t units, const float *a, int64_t lda, const float *panel, float alpha,     \
        bool accumulate, float *c, int64_t ldc
#define TILE_VARIANT(rows, vectors)                                                                \
    static void tile_##rows##_##vectors(TILE_PARAMETERS)                                           \
    {                                                                                              \
        tile_body(rows, vectors, cols, units, a, lda, panel, alpha, accumulate, c, ldc);           \
    }
#define TILE_VARIANTS(rows) TILE_VARIANT(rows, 1) TILE_VARIANT(rows, 2)
#define TILE_ENTRY(rows)                                                                           \
    {                                                                                              \
        tile_##rows##_1, tile_##rows##_2                                                           \
    }

TILE_VARIANTS(1)
TILE_VARIANTS(2)
TILE_VARIANTS(3)
TILE_VARIANTS(4)
TILE_VARIANTS(5)
TILE_VARIANTS(6)
#if TILE_ROWS > 6
TILE_VARIANTS(7)
TILE_VARIANTS(8)
TILE_VARIANTS(9)
TILE_VARIANTS(10)
TILE_VARIANTS(11)
TILE_VARIANTS(12)
#endif

static void (*const tile_variants[TILE_ROWS][TILE_VECTORS])(TILE_PARAMETERS) = {
    TILE_ENTRY(1), TILE_ENTRY(2), TILE_ENTRY(3), TILE_ENTRY(4),  TILE_ENTRY(5),  TILE_ENTRY(6),
#if TILE_ROWS > 6
    TILE_ENTRY(7), TILE_ENTRY(8), TILE_ENTRY(9), TILE_ENTRY(10), TILE_ENTRY(11), TILE_ENTRY(12),
#endif
};

static void tile(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                 const void *panel, float alpha, bool accumulate, float *c, int64_t ldc)
{
    tile_variants[rows - 1][(cols - 1) / VECTOR_LANES](cols, UNITS(k), a, UNITS(lda), panel, alpha,
                                                       accumulate, c, ldc);
}
