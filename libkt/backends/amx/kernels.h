/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/kernels.h
 * The products of an expert's weights with tiles of 16 tokens, in bfloat16 with float32 sums.
 *
 * Forward, Y^T = W X^T: rows of W, as they lie in the checkpoint, are the left factor; tokens are
 * the right one ("columns"). Backward, dX = dY W: tokens are the left factor ("rows"); pairs of
 * rows of W are interleaved into a buffer, 128 columns at a time, because rows lie pages apart and
 * finding a page takes longer than reading a few lines of it. With one or two tiles of tokens it is
 * 64 columns of 64 rows, which stay in level-1 cache.
 *
 * FP8 of up to four tiles is multiplied without its scales, as bfloat16 holds it exactly, and sums
 * are scaled, if scales are those of whole blocks of rows and steps of columns. Else weights are
 * rounded to bfloat16 after their scale.
 *
 *   columns of K features:  [K / 32][16 pairs of features][16 tokens][2], 1 KiB a step
 *   rows of K features:     [K / 32][16 tokens][32 features], 1 KiB a step
 *
 * K is rounded up to 32 and both are zero there and for tokens that are absent. */
#ifndef KT_BACKENDS_AMX_KERNELS_H
#define KT_BACKENDS_AMX_KERNELS_H

#include "backends/cpu/kernels.h"

enum {
    KT_AMX_TOKENS = 16,    /**< of a tile */
    KT_AMX_STEP = 32,      /**< features that one multiplication sums over */
    KT_AMX_ROWS = 32,      /**< rows of W in a block */
    KT_AMX_MAX_BLOCKS = 8, /**< blocks of one product */
    KT_AMX_MAX_CHUNK = 1024,
    KT_AMX_STRIP_COLS = 128,  /**< columns that backward decodes or interleaves at a time */
    KT_AMX_DECODED_ROWS = 64, /**< rows that backward decodes at a time, at most */
    KT_AMX_STAGE_BYTES = (KT_AMX_MAX_CHUNK + KT_AMX_DECODED_ROWS) * KT_AMX_STRIP_COLS * 2
};

/** Rows of weights: blocks of up to KT_AMX_ROWS rows [first, first + rows) each. BF16 is multiplied
 * where it lies, other formats are decoded, 32 rows x a chunk of features at a time. */
struct kt_amx_blocks {
    kt_decode_fn decode;
    const struct kt_weight *weight[KT_AMX_MAX_BLOCKS];
    int64_t first[KT_AMX_MAX_BLOCKS];
    int32_t rows[KT_AMX_MAX_BLOCKS];
    int32_t num;
};

/** Columns [col, col + cols) of a weight. decode_pairs: NULL = none */
struct kt_amx_strip {
    kt_decode_fn decode;
    kt_decode_pairs_fn decode_pairs;
    const struct kt_weight *weight;
    int64_t col, cols;
};

struct kt_amx_kernels {
    /** Before and after a thread's calls of forward and backward. */
    void (*enter)(void);
    void (*leave)(void);
    /** Sixteen rows of n floats (NULL = absent) as columns, and as rows. */
    void (*pack_columns)(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *columns);
    void (*pack_rows)(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *rows);
    /** Products [feature][token] of 32 features and `tiles` tiles, as forward leaves them, become
     * the columns of those features; `stride` is bytes between tiles of the result. */
    void (*repack_columns)(const float *products, int64_t tiles, void *columns, int64_t stride);
    /** Products [feature][token] of num_features features and `tiles` tiles, as forward leaves
     * them, become rows [num_rows][num_features] of tokens. keep: they are read soon. */
    void (*transpose)(const float *products, int64_t tiles, int64_t num_features, int64_t num_rows,
                      int keep, float *const *rows);
    /** products [block][2][tiles][16 features][16 tokens] = W X^T. `chunk` features (a multiple of
     * 32, at most MAX_CHUNK), or half as many more with many tiles, are multiplied at a time;
     * `next` (or NULL) is what the thread reads after this. Reads nothing but the weight's rows.
     * stage: KT_AMX_STAGE_BYTES. */
    void (*forward)(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next, int64_t depth,
                    const void *columns, int64_t tiles, int64_t chunk, float *products,
                    void *stage);
    /** products [num_tokens][cols] (+)= dY W, row stride ld, written up to the next multiple of 32
     * columns, which are in an order of their own until order_columns, and with more than two tiles
     * to the next multiple of 16 tokens. `chunk` rows at a time, as above; `stage` likewise. */
    void (*backward)(const struct kt_amx_strip *w, const struct kt_amx_strip *next,
                     const void *rows, int64_t num_tokens, int64_t chunk, bool accumulate,
                     float *products, int64_t ld, void *stage);
    /** rows [num_rows][cols] = what backward left, in the order of columns. rows may be products.
     */
    void (*order_columns)(const float *products, int64_t ld, int64_t num_rows, int64_t cols,
                          float *rows, int64_t rows_ld);
};

/* kernels.c, compiled once for each. */
void kt_amx_kernels_init_amx(struct kt_amx_kernels *kernels);
/** Emulated tiles, with and without AVX-512-BF16 around them. */
void kt_amx_kernels_init_avx512bf16(struct kt_amx_kernels *kernels);
void kt_amx_kernels_init_c(struct kt_amx_kernels *kernels);

#endif
