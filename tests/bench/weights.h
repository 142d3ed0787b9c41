/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of benchmarks by format. */
#ifndef KT_TESTS_BENCH_WEIGHTS_H
#define KT_TESTS_BENCH_WEIGHTS_H

#include "core/weight.h"

struct weight_type {
    const char *name;
    kt_dtype dtype;
    int64_t scale_rows, scale_cols; /* 0 = none */
};

static inline struct kt_weight weight_of(const struct weight_type *t, const void *data,
                                         const float *scales, int64_t rows, int64_t cols)
{
    struct kt_weight w = {.data = data, .dtype = t->dtype, .rows = rows, .cols = cols};
    if (t->scale_rows) {
        w.scale = scales;
        w.scale_rows = t->scale_rows;
        w.scale_cols = t->scale_cols;
        w.scale_ld = (cols + t->scale_cols - 1) / t->scale_cols;
    }
    return w;
}

#endif
