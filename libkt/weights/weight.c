/* SPDX-License-Identifier: Apache-2.0 */
#include "weights/weight.h"

#include <math.h>
#include <string.h>

#include "weights/dtype.h"
#include "core/memory.h"
#include "weights/weight_gguf.h"

enum { MAX_BLOCK = 256 };

/* Sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, NaN is all ones (OCP 8-bit
 * floating point specification). */
float kt_f8_e4m3_to_f32(uint8_t x)
{
    uint32_t bits = (uint32_t)(x & 0x7f) << 20;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p120f; /* the exponent's bias: 127 there, 7 here */
    value = (x & 0x7f) == 0x7f ? NAN : value;
    return x & 0x80 ? -value : value;
}

static void decode_f32(int64_t n, const void *blocks, float *to)
{
    kt_dtype_to_f32(KT_DTYPE_F32, blocks, to, (size_t)n);
}

static void decode_f16(int64_t n, const void *blocks, float *to)
{
    kt_dtype_to_f32(KT_DTYPE_F16, blocks, to, (size_t)n);
}

static void decode_bf16(int64_t n, const void *blocks, float *to)
{
    kt_dtype_to_f32(KT_DTYPE_BF16, blocks, to, (size_t)n);
}

static void decode_f8_e4m3(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = kt_f8_e4m3_to_f32(((const uint8_t *)blocks)[i]);
}

static void decode_i8(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)((const int8_t *)blocks)[i];
}

static void decode_i4(int64_t n, const void *blocks, float *to)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t pair = ((const uint8_t *)blocks)[i];
        to[2 * i] = (float)((pair & 15) - 8);
        to[2 * i + 1] = (float)((pair >> 4) - 8);
    }
}

static const struct kt_format formats[] = {
    [KT_DTYPE_F32] = {1, 4, decode_f32},
    [KT_DTYPE_F16] = {1, 2, decode_f16},
    [KT_DTYPE_BF16] = {1, 2, decode_bf16},
    [KT_DTYPE_F8_E4M3] = {1, 1, decode_f8_e4m3},
    [KT_DTYPE_I8] = {1, 1, decode_i8},
    [KT_DTYPE_I4] = {2, 1, decode_i4},
    [KT_DTYPE_Q8_0] = {32, 34, kt_decode_q8_0},
    [KT_DTYPE_Q4_0] = {32, 18, kt_decode_q4_0},
    [KT_DTYPE_Q4_K] = {256, 144, kt_decode_q4_k},
    [KT_DTYPE_Q6_K] = {256, 210, kt_decode_q6_k},
};

const struct kt_format *kt_format_of(kt_dtype dtype)
{
    if ((unsigned)dtype >= sizeof formats / sizeof *formats || !formats[dtype].block)
        return NULL;
    return &formats[dtype];
}

uint64_t kt_format_row_bytes(kt_dtype dtype, int64_t cols)
{
    const struct kt_format *f = kt_format_of(dtype);
    uint64_t bytes;
    if (!f || cols < 0 || cols % f->block ||
        !kt_mul_u64((uint64_t)(cols / f->block), (uint64_t)f->block_bytes, &bytes))
        return 0;
    return bytes;
}

double kt_weight_bytes(const struct kt_weight *w)
{
    double bytes = (double)w->rows * (double)kt_format_row_bytes(w->dtype, w->cols);
    if (w->scale && w->scale_rows && w->scale_cols)
        bytes += 4.0 * (double)w->rows * (double)w->cols / (double)(w->scale_rows * w->scale_cols);
    return bytes;
}

struct kt_weight kt_weight_rows(const struct kt_weight *w, int64_t begin, int64_t count)
{
    struct kt_weight rows = *w;
    rows.data = (const char *)w->data + begin * (int64_t)kt_format_row_bytes(w->dtype, w->cols);
    rows.rows = count;
    rows.first_row += begin;
    return rows;
}

static void scale_elements(const struct kt_weight *w, int64_t row, int64_t col, int64_t n,
                           float *to)
{
    const float *scale = kt_weight_scale(w, row, col);
    for (int64_t i = 0; i < n; scale++) {
        int64_t block = (col + i) / w->scale_cols;
        int64_t end = kt_min_i64(n, (block + 1) * w->scale_cols - col);
        for (; i < end; i++)
            to[i] *= *scale;
    }
}

void kt_weight_decode(const struct kt_weight *w, int64_t row, int64_t col, int64_t n, float *to)
{
    const struct kt_format *f = kt_format_of(w->dtype);
    const char *blocks =
        (const char *)w->data + row * (int64_t)kt_format_row_bytes(w->dtype, w->cols);
    float part[MAX_BLOCK];
    for (int64_t done = 0; done < n;) {
        int64_t at = col + done, inside = at % f->block, whole = (n - done) / f->block;
        const char *block = blocks + at / f->block * f->block_bytes;
        if (inside == 0 && whole > 0) {
            f->decode(whole, block, to + done);
            done += whole * f->block;
            continue;
        }
        int64_t count = kt_min_i64(f->block - inside, n - done);
        f->decode(1, block, part);
        memcpy(to + done, part + inside, (size_t)count * sizeof *to);
        done += count;
    }
    if (w->scale)
        scale_elements(w, row, col, n, to);
}
