/* SPDX-License-Identifier: Apache-2.0 */
/** \file tiny_quantised.h
 * Matrices of the tiny checkpoint in quantised formats. */
#ifndef KT_TESTS_TINY_QUANTISED_H
#define KT_TESTS_TINY_QUANTISED_H

#include "weights/weight.h"
#include "tiny_model.h"

/** Turns a matrix of `t` into codes (no NaN among them) with scales for `rows` x `cols` elements,
 * under the name of the format. Returns the scales. */
static struct kt_tensor *tiny_quantise(struct tiny *t, const char *name, kt_dtype dtype,
                                       int64_t rows, int64_t cols)
{
    struct kt_tensor *weight = tiny_find(t, name);
    int64_t *shape = weight->shape;
    uint8_t *codes = (uint8_t *)weight->data;
    size_t per_byte = dtype == KT_DTYPE_I4 ? 2 : 1;
    char scales[160];
    int64_t scale_rows = (shape[0] + rows - 1) / rows, scale_cols = (shape[1] + cols - 1) / cols;
    weight->bytes = (uint64_t)(shape[0] * shape[1]) / per_byte;
    for (size_t i = 0; i < weight->bytes; i++)
        codes[i] = (uint8_t)((i * 37 + strlen(name)) % (dtype == KT_DTYPE_F8_E4M3 ? 127 : 256));
    weight->dtype = dtype == KT_DTYPE_I4 ? KT_DTYPE_U8 : dtype;
    shape[1] /= (int64_t)per_byte;
    snprintf(scales, sizeof scales, "%s%s", name,
             dtype == KT_DTYPE_F8_E4M3 ? "_scale_inv" : "_scale");
    return tiny_add(t, scales, scale_rows, scale_cols);
}

static float tiny_code(const struct kt_tensor *t, int64_t row, int64_t col)
{
    const uint8_t *codes = (const uint8_t *)t->data + row * t->shape[1];
    if (t->dtype == KT_DTYPE_U8)
        return (float)((col % 2 ? codes[col / 2] >> 4 : codes[col / 2] & 15) - 8);
    return t->dtype == KT_DTYPE_I8 ? (float)(int8_t)codes[col] : kt_f8_e4m3_to_f32(codes[col]);
}

/** Every element that `w` decodes to is code times scale, by the layout of docs/checkpoints.md. */
__attribute__((unused)) static void tiny_check(struct tiny *t, const struct kt_weight *w,
                                               const char *name, int64_t rows, int64_t cols)
{
    const struct kt_tensor *codes = tiny_find(t, name);
    char scales_name[160];
    float row[64], scale;
    snprintf(scales_name, sizeof scales_name, "%s%s", name,
             codes->dtype == KT_DTYPE_F8_E4M3 ? "_scale_inv" : "_scale");
    const struct kt_tensor *scales = tiny_find(t, scales_name);
    ck_assert_int_eq(w->rows, codes->shape[0]);
    ck_assert_int_eq(w->cols, codes->shape[1] * (codes->dtype == KT_DTYPE_U8 ? 2 : 1));
    for (int64_t r = 0; r < w->rows; r++) {
        kt_weight_decode(w, r, 0, w->cols, row);
        for (int64_t c = 0; c < w->cols; c++) {
            size_t at = (size_t)(r / rows * scales->shape[1] + c / cols);
            kt_dtype_to_f32(scales->dtype,
                            (const char *)scales->data + at * kt_dtype_size(scales->dtype), &scale,
                            1);
            ck_assert_float_eq(row[c], tiny_code(codes, r, c) * scale);
        }
    }
}

#endif
