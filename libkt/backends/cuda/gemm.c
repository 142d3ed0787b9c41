/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/product.h"

struct gemm {
    struct kt_cuda_factor a, b;
    struct kt_view c; /* F32: the result's own memory, or scratch */
    uint64_t scratch;
};

static struct gemm plan(const struct kt_gemm_args *g, void *scratch)
{
    struct kt_cuda_pieces pieces = {.base = (char *)scratch};
    struct gemm p = {.c = g->c};
    if (g->m <= 0 || g->n <= 0)
        return p;
    p.a = kt_cuda_factor(&pieces, g->a, g->trans_a ? g->k : g->m, g->trans_a ? g->m : g->k,
                         KT_DTYPE_F32);
    p.b = kt_cuda_factor(&pieces, g->b, g->trans_b ? g->n : g->k, g->trans_b ? g->k : g->n,
                         KT_DTYPE_F32);
    if (g->c.dtype != KT_DTYPE_F32)
        p.c = kt_cuda_piece_view(&pieces, g->m, g->n, KT_DTYPE_F32);
    p.scratch = pieces.used;
    return p;
}

void kt_cuda_gemm(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_gemm_args g = *(const struct kt_gemm_args *)args;
    struct gemm p = plan(&g, scratch);
    struct kt_view c = g.c;
    bool rounds = c.dtype != KT_DTYPE_F32, accumulate = g.accumulate;
    if (g.m <= 0 || g.n <= 0)
        return;
    kt_cuda_factor_fill(cuda, &p.a);
    kt_cuda_factor_fill(cuda, &p.b);
    g.a = p.a.view, g.b = p.b.view, g.c = p.c;
    g.accumulate = accumulate && !rounds;
    kt_cuda_multiply(cuda, &g);
    if (rounds)
        kt_cuda_cast(cuda, g.m, g.n, p.c, c, accumulate);
}

uint64_t kt_cuda_gemm_scratch(const struct kt_cuda_device *cuda, const struct kt_gemm_args *a)
{
    (void)cuda;
    return plan(a, NULL).scratch;
}
