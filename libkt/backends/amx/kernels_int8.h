/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/kernels_int8.h
 * The products of INT8 weights with tiles of 16 tokens that are quantised to INT8, each token by
 * itself: scale = max |x| / 127, q = x * (127 / max |x|) rounded to the nearest integer, to even
 * from halfway; sums in int32, exactly; result = sum * scale of the token * scale of the row, in
 * float32. A token whose largest number is no normal number after division by 127 counts as zeros;
 * one with an infinity or a NaN gives NaN. As in kernels.h, rows of W as they lie are the left
 * factor, and tokens are the right one:
 *
 *   columns of K features:  [K / 64][16 fours of features][16 tokens][4], 1 KiB a step
 *
 * K is rounded up to 64 and the rest is zero, as are tokens that are absent, and their scale. */
#ifndef KT_BACKENDS_AMX_KERNELS_INT8_H
#define KT_BACKENDS_AMX_KERNELS_INT8_H

#include "backends/amx/kernels.h"

enum {
    KT_AMX_INT8_STEP = 64,           /**< features that one multiplication sums over */
    KT_AMX_INT8_MAX_DEPTH = 1 << 17, /**< features whose sum always fits: 127 * 128 each */
};

struct kt_amx_int8_kernels {
    /** Before and after a thread's calls of forward. */
    void (*enter)(void);
    void (*leave)(void);
    /** Sixteen rows of n floats (NULL = absent) as columns and scales. */
    void (*pack_columns)(const float *const tokens[KT_AMX_TOKENS], int64_t n, void *columns,
                         float scales[KT_AMX_TOKENS]);
    /** The same of features [n][16 tokens]. */
    void (*repack_columns)(const float *features, int64_t n, void *columns,
                           float scales[KT_AMX_TOKENS]);
    /** As kt_amx_kernels.forward, of weights that kt_amx_is_int8; scales [tiles][16]; chunk is a
     * multiple of 64. */
    void (*forward)(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next, int64_t depth,
                    const void *columns, const float *scales, int64_t tiles, int64_t chunk,
                    float *products, void *stage);
};

/** INT8 with a scale for each row. */
static inline int kt_amx_is_int8(const struct kt_weight *w)
{
    return w->dtype == KT_DTYPE_I8 && w->scale && w->scale_rows == 1 && w->scale_cols >= w->cols &&
           w->cols <= KT_AMX_INT8_MAX_DEPTH;
}

/* kernels_int8.c, compiled once for each, as in kernels.h. */
void kt_amx_int8_kernels_init_amx(struct kt_amx_int8_kernels *kernels);
void kt_amx_int8_kernels_init_avx512bf16(struct kt_amx_int8_kernels *kernels);
void kt_amx_int8_kernels_init_c(struct kt_amx_int8_kernels *kernels);

#endif
