/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/weight.h
 * Weight matrices in the formats of checkpoints, and their decoding in plain C, which every faster
 * decoder is tested against.
 *
 * A format stores a row as blocks of `block` elements in `block_bytes` bytes:
 *   F32, F16, BF16   one element a block
 *   F8_E4M3          OCP 8-bit floats, one a block; times `scale` (DeepSeek-V3, arXiv 2412.19437:
 *                    one scale for 128 x 128 elements)
 *   I8               two's complement, one a block; times `scale` (ours: one for a row)
 *   I4               two elements a block, the earlier in the low bits, stored as value + 8; times
 *                    `scale` (ours: one for 128 elements of a row)
 *   Q8_0             GGUF: 32 elements: f16 d, 32 int8 q; d q
 *   Q4_0             GGUF: 32 elements: f16 d, 16 bytes with the first half's q in their low bits,
 *                    the second's in their high bits; d (q - 8)
 *   Q4_K             GGUF: 256 elements: f16 d and dmin, 8 pairs of 6-bit s and m in 12 bytes,
 *                    4-bit q; 32 elements share a pair: d s q - dmin m
 *   Q6_K             GGUF: 256 elements: 4 low and 2 high bits of q apart, 16 int8 s, f16 d; 16
 *                    elements share an s: d s (q - 32)
 * Blocks of a row follow each other, and rows follow each other without a gap. */
#ifndef KT_WEIGHTS_WEIGHT_H
#define KT_WEIGHTS_WEIGHT_H

#include <kt/types.h>

/** A weight matrix [rows = out_features, cols = in_features], row-major. Element (r, c) is the
 * stored element times scale[(first_row + r) / scale_rows * scale_ld + c / scale_cols]. Data and
 * scales are borrowed: they are the mapped checkpoint. */
struct kt_weight {
    const void *data;
    kt_dtype dtype;
    int64_t rows, cols;
    const float *scale; /**< NULL = 1 */
    int64_t scale_rows, scale_cols, scale_ld;
    int64_t first_row; /**< of this matrix in the one that `scale` belongs to */
};

struct kt_format {
    int32_t block, block_bytes;
    /** to[i] = element i of n blocks, scale left out. */
    void (*decode)(int64_t n, const void *blocks, float *to);
    /** kt_encode of this format; NULL for those that kt_convert does not write. */
    void (*encode)(int64_t n, const float *x, float scale, void *to);
    float range; /**< the largest number that kt_encode_scale uses; 0 for formats without a scale */
    float limit; /**< kt_encode_limit */
};

/** NULL for a dtype that is no weight's. */
const struct kt_format *kt_format_of(kt_dtype dtype);

/** Bytes of a row of `cols` elements; 0 where cols is not a multiple of the block. */
uint64_t kt_format_row_bytes(kt_dtype dtype, int64_t cols);

/** Bytes of its data and scales. */
double kt_weight_bytes(const struct kt_weight *w);

/** Whether elements are plain floats (F32, F16, BF16) without a scale. */
static inline bool kt_weight_is_plain(const struct kt_weight *w)
{
    return !w->scale &&
           (w->dtype == KT_DTYPE_F32 || w->dtype == KT_DTYPE_F16 || w->dtype == KT_DTYPE_BF16);
}

/** Where the scale of element (row, col) is; of a weight that has scales. */
static inline const float *kt_weight_scale(const struct kt_weight *w, int64_t row, int64_t col)
{
    return w->scale + (w->first_row + row) / w->scale_rows * w->scale_ld + col / w->scale_cols;
}

/** Rows [begin, begin + count) of a weight, as a weight. */
struct kt_weight kt_weight_rows(const struct kt_weight *w, int64_t begin, int64_t count);

/** to[i] = element (row, col + i), i < n, in float32: the stored element, exactly, times its scale.
 * Any row, col and n within the matrix. */
void kt_weight_decode(const struct kt_weight *w, int64_t row, int64_t col, int64_t n, float *to);

float kt_f8_e4m3_to_f32(uint8_t x);

#endif
