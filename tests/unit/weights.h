/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/weights.h
 * Random weight matrices in every format. */
#ifndef KT_TESTS_UNIT_WEIGHTS_H
#define KT_TESTS_UNIT_WEIGHTS_H

#include "compare.h"
#include "weights/dtype.h"
#include "weights/weight.h"

struct test_weight {
    struct kt_weight w;
    void *data;
    float *scale;
};

/** A binary16 of magnitude 2^exponent to 2^(exponent + 2), either sign. */
static inline uint16_t test_half(int exponent, uint32_t random)
{
    return (uint16_t)((random & 0x83ffu) | ((uint32_t)(exponent + 15) + (random >> 16) % 2) << 10);
}

/** Elements of about 0.3 at most: floats, or random codes under small scales, none of them a NaN.
 */
static inline void test_fill_weight(kt_dtype dtype, uint64_t seed, int64_t elements, uint8_t *to)
{
    const struct kt_format *f = kt_format_of(dtype);
    int64_t bytes = elements / f->block * f->block_bytes;
    uint32_t random[4] = {0};
    for (int64_t i = 0; i < bytes; i++) {
        if (i % 16 == 0)
            kt_philox(seed, 2, (uint64_t)i, random);
        to[i] = (uint8_t)(random[i % 16 / 4] >> 8 * (i % 4));
        if (dtype == KT_DTYPE_F8_E4M3 && (to[i] & 0x7f) == 0x7f)
            to[i] ^= 1;
    }
    for (int64_t i = 0; i < bytes / f->block_bytes; i++) {
        uint8_t *block = to + i * f->block_bytes;
        kt_philox(seed, 3, (uint64_t)i, random);
        float value = 0.6f * kt_uniform_f32(random[1]) - 0.3f;
        int exponent = dtype == KT_DTYPE_F16 ? -3 : dtype == KT_DTYPE_Q6_K ? -13 : -10;
        uint16_t half =
            dtype == KT_DTYPE_BF16 ? kt_f32_to_bf16(value) : test_half(exponent, random[0]);
        if (dtype == KT_DTYPE_F32)
            memcpy(block, &value, sizeof value);
        else if (dtype == KT_DTYPE_Q6_K)
            memcpy(block + 208, &half, sizeof half);
        else if (f->block_bytes > 1)
            memcpy(block, &half, sizeof half);
        if (dtype == KT_DTYPE_Q4_K)
            memcpy(block + 2, &half, sizeof half);
    }
}

/** [rows, cols], cut from row 5 on out of a matrix with scales as the format has them. */
static inline struct test_weight test_weight(kt_dtype dtype, uint64_t seed, int64_t rows,
                                             int64_t cols)
{
    enum { CUT = 5, BLOCK = 128 };
    int64_t all = rows + CUT;
    struct kt_weight whole = {.dtype = dtype, .rows = all, .cols = cols};
    struct test_weight t = {
        .data = malloc((size_t)all * (size_t)kt_format_row_bytes(dtype, cols)),
        .scale = test_random(seed + 1, (all / BLOCK + 1 + all) * (cols / BLOCK + 1))};
    test_fill_weight(dtype, seed, all * cols, t.data);
    whole.data = t.data;
    if (dtype == KT_DTYPE_F8_E4M3 || dtype == KT_DTYPE_I8 || dtype == KT_DTYPE_I4) {
        float size = dtype == KT_DTYPE_I8 ? 5e-3f : dtype == KT_DTYPE_I4 ? 8e-2f : 5e-3f;
        for (int64_t i = 0; i < (all / BLOCK + 1 + all) * (cols / BLOCK + 1); i++)
            t.scale[i] *= size;
        whole.scale = t.scale;
        whole.scale_rows = dtype == KT_DTYPE_F8_E4M3 ? BLOCK : 1;
        whole.scale_cols = dtype == KT_DTYPE_I8 ? cols : BLOCK;
        whole.scale_ld = dtype == KT_DTYPE_I8 ? 1 : (cols + BLOCK - 1) / BLOCK;
    }
    t.w = kt_weight_rows(&whole, CUT, rows);
    return t;
}

/** Where kt_decode_pairs_fn puts (row, col), in bytes; `stride` bytes lie between 32 columns. */
static inline int64_t test_pairs_offset(int64_t row, int64_t col, int64_t stride)
{
    int64_t half = col % 8 / 4, place = col % 32 / 8 * 4 + col % 4;
    return col / 32 * stride + row / 32 * 2048 + half * 1024 + row % 32 / 2 * 64 + place * 4 +
           row % 2 * 2;
}

static inline void test_weight_free(struct test_weight *t)
{
    free(t->data), free(t->scale);
}

#endif
