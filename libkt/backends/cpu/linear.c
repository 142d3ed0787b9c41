/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/gemm.h"

kt_status kt_cpu_linear_forward(struct kt_device *dev, const struct kt_weight *w,
                                kt_compute compute, int64_t tokens, const float *x, int64_t ldx,
                                int accumulate, float *y, int64_t ldy)
{
    struct kt_cpu_device *cpu = kt_cpu(dev);
    struct kt_gemm_right b = kt_gemm_right_weight(w, 1);
    return kt_gemm_run(dev->ctx, &cpu->scratch, kt_gemm_kernel_for(&cpu->kernels, compute), tokens,
                       w->rows, w->cols, 1.0f, x, ldx, 0, &b, accumulate, y, ldy);
}

kt_status kt_cpu_linear_backward(struct kt_device *dev, const struct kt_weight *w,
                                 kt_compute compute, int64_t tokens, const float *dy, int64_t lddy,
                                 int accumulate, float *dx, int64_t lddx)
{
    struct kt_cpu_device *cpu = kt_cpu(dev);
    struct kt_gemm_right b = kt_gemm_right_weight(w, 0);
    return kt_gemm_run(dev->ctx, &cpu->scratch, kt_gemm_kernel_for(&cpu->kernels, compute), tokens,
                       w->cols, w->rows, 1.0f, dy, lddy, 0, &b, accumulate, dx, lddx);
}

kt_status kt_cpu_gemm(struct kt_device *dev, const struct kt_gemm *g)
{
    struct kt_cpu_device *cpu = kt_cpu(dev);
    struct kt_gemm_right b = {.matrix = {g->b, KT_DTYPE_F32, g->ldb}, .transposed = g->trans_b};
    return kt_gemm_run(dev->ctx, &cpu->scratch, &cpu->kernels.f32, g->m, g->n, g->k, g->alpha, g->a,
                       g->lda, g->trans_a, &b, g->accumulate, g->c, g->ldc);
}
