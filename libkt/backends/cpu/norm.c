/* SPDX-License-Identifier: Apache-2.0 */
/* RMSNorm (arXiv 1910.07467). */
#include "backends/cpu/cpu.h"

#include <math.h>

enum { ROWS_A_TASK = 16 };

struct norm {
    const struct kt_row_kernels *row;
    int64_t dim;
    float eps;
    const float *weight, *x;
    int64_t ldx;
    const float *dy;
    int64_t lddy;
    bool accumulate;
    float *y; /* dx in backward */
    int64_t ldy;
};

static float inverse_rms(const struct norm *n, const float *x)
{
    return 1.0f / sqrtf(n->row->dot(n->dim, x, x) / (float)n->dim + n->eps);
}

static void forward(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct norm *n = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *x = n->x + t * n->ldx;
        n->row->scale_mul(n->dim, inverse_rms(n, x), x, n->weight, n->y + t * n->ldy);
    }
}

static void backward(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct norm *n = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *x = n->x + t * n->ldx, *dy = n->dy + t * n->lddy;
        float inverse = inverse_rms(n, x);
        float mean = n->row->dot3(n->dim, n->weight, dy, x) / (float)n->dim;
        n->row->norm_backward(n->dim, inverse, inverse * inverse * inverse * mean, n->weight, x, dy,
                              n->accumulate, n->y + t * n->ldy);
    }
}

static void run(struct kt_device *dev, const struct kt_norm_args *a, kt_range_fn fn)
{
    struct norm n = {.row = &kt_cpu(dev)->kernels.row,
                     .dim = a->dim,
                     .eps = a->eps,
                     .weight = a->weight,
                     .x = a->x.data,
                     .ldx = a->x.ld,
                     .dy = a->dy.data,
                     .lddy = a->dy.ld,
                     .accumulate = a->accumulate,
                     .y = a->y.data,
                     .ldy = a->y.ld};
    kt_parallel_for(kt_cpu(dev)->pool, a->tokens, ROWS_A_TASK, fn, &n);
}

void kt_cpu_norm_forward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, args, forward);
}

void kt_cpu_norm_backward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, args, backward);
}
