/* SPDX-License-Identifier: Apache-2.0 */
#include "weights/weight.h"

#include <string.h>

#include "core/memory.h"

enum { MAX_BLOCK = 256 };

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
