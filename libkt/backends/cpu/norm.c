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
    int accumulate;
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

kt_status kt_cpu_rmsnorm_forward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                 const float *weight, const float *x, int64_t ldx, float *y,
                                 int64_t ldy)
{
    struct norm n = {.row = &kt_cpu(dev)->kernels.row,
                     .dim = dim,
                     .eps = eps,
                     .weight = weight,
                     .x = x,
                     .ldx = ldx,
                     .y = y,
                     .ldy = ldy};
    kt_parallel_for(dev->ctx->pool, tokens, ROWS_A_TASK, forward, &n);
    return KT_OK;
}

kt_status kt_cpu_rmsnorm_backward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                  const float *weight, const float *x, int64_t ldx, const float *dy,
                                  int64_t lddy, int accumulate, float *dx, int64_t lddx)
{
    struct norm n = {.row = &kt_cpu(dev)->kernels.row,
                     .dim = dim,
                     .eps = eps,
                     .weight = weight,
                     .x = x,
                     .ldx = ldx,
                     .dy = dy,
                     .lddy = lddy,
                     .accumulate = accumulate,
                     .y = dx,
                     .ldy = lddx};
    kt_parallel_for(dev->ctx->pool, tokens, ROWS_A_TASK, backward, &n);
    return KT_OK;
}
