/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/gemm.h"

static struct kt_gemm_product linear(const struct kt_cpu_device *cpu,
                                     const struct kt_linear_args *a, bool backward)
{
    const struct kt_weight *w = &a->weight;
    return (struct kt_gemm_product){.kernel = kt_gemm_kernel_for(&cpu->kernels, a->compute),
                                    .m = a->tokens,
                                    .n = backward ? w->cols : w->rows,
                                    .k = backward ? w->rows : w->cols,
                                    .alpha = 1.0f,
                                    .a = a->x.data,
                                    .lda = a->x.ld,
                                    .b = kt_gemm_right_weight(w, !backward),
                                    .accumulate = a->accumulate,
                                    .c = a->y.data,
                                    .ldc = a->y.ld};
}

static struct kt_gemm_product product(const struct kt_cpu_device *cpu, const struct kt_gemm_args *a)
{
    return (struct kt_gemm_product){
        .kernel = &cpu->kernels.f32,
        .m = a->m,
        .n = a->n,
        .k = a->k,
        .alpha = a->alpha,
        .a = a->a.data,
        .lda = a->a.ld,
        .trans_a = a->trans_a,
        .b = {.matrix = {a->b.data, KT_DTYPE_F32, a->b.ld}, .transposed = a->trans_b},
        .accumulate = a->accumulate,
        .c = a->c.data,
        .ldc = a->c.ld};
}

void kt_cpu_linear_forward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_gemm_product p = linear(kt_cpu(dev), args, false);
    kt_gemm_run(kt_cpu(dev)->pool, &p, scratch);
}

void kt_cpu_linear_backward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_gemm_product p = linear(kt_cpu(dev), args, true);
    kt_gemm_run(kt_cpu(dev)->pool, &p, scratch);
}

void kt_cpu_gemm(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_gemm_product p = product(kt_cpu(dev), args);
    kt_gemm_run(kt_cpu(dev)->pool, &p, scratch);
}

uint64_t kt_cpu_linear_forward_scratch(const struct kt_cpu_device *cpu,
                                       const struct kt_linear_args *a)
{
    struct kt_gemm_product p = linear(cpu, a, false);
    return kt_gemm_run_scratch(cpu->pool, &p);
}

uint64_t kt_cpu_linear_backward_scratch(const struct kt_cpu_device *cpu,
                                        const struct kt_linear_args *a)
{
    struct kt_gemm_product p = linear(cpu, a, true);
    return kt_gemm_run_scratch(cpu->pool, &p);
}

uint64_t kt_cpu_gemm_scratch(const struct kt_cpu_device *cpu, const struct kt_gemm_args *a)
{
    struct kt_gemm_product p = product(cpu, a);
    return kt_gemm_run_scratch(cpu->pool, &p);
}
