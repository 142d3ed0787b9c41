/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/skinny.h"

struct gemm {
    enum kt_cuda_form form;
    struct kt_cuda_factor a, b;
    struct kt_view c; /* the result's own memory, or scratch where that can't be summed in */
    bool rounds;
    float *partial;
    uint64_t factors; /**< bytes of scratch before `partial` */
};

/* `large`: it is read in its own type. */
static struct kt_cuda_factor factor(struct kt_cuda_pieces *pieces, struct kt_view view, bool large,
                                    int64_t rows, int64_t cols)
{
    if (large)
        return (struct kt_cuda_factor){.view = view};
    return kt_cuda_factor(pieces, view, rows, cols, KT_DTYPE_F32);
}

static struct gemm plan(const struct kt_cuda_device *cuda, const struct kt_gemm_args *g,
                        void *scratch)
{
    struct kt_cuda_pieces pieces = {.base = (char *)scratch};
    struct gemm p = {.form = kt_cuda_form(g), .c = g->c};
    if (g->m <= 0 || g->n <= 0)
        return p;
    p.a = factor(&pieces, g->a, p.form == KT_CUDA_LARGE_A, g->trans_a ? g->k : g->m,
                 g->trans_a ? g->m : g->k);
    p.b = factor(&pieces, g->b, p.form == KT_CUDA_LARGE_B, g->trans_b ? g->n : g->k,
                 g->trans_b ? g->k : g->n);
    p.rounds = p.form == KT_CUDA_GENERAL && g->c.dtype != KT_DTYPE_F32;
    if (p.rounds)
        p.c = kt_cuda_piece_view(&pieces, g->m, g->n, KT_DTYPE_F32);
    p.factors = pieces.used;
    if (p.form != KT_CUDA_GENERAL)
        p.partial = (float *)kt_cuda_piece(&pieces, kt_cuda_skinny_scratch(cuda, g));
    return p;
}

void kt_cuda_gemm(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    const struct kt_gemm_args *a = (const struct kt_gemm_args *)args;
    struct gemm p = plan(cuda, a, scratch);
    struct kt_gemm_args g = *a;
    if (g.m <= 0 || g.n <= 0 || kt_cuda_gemms_few(cuda, 1, a))
        return;
    kt_cuda_factor_fill(cuda, &p.a);
    kt_cuda_factor_fill(cuda, &p.b);
    g.a = p.a.view, g.b = p.b.view, g.c = p.c;
    g.accumulate = a->accumulate && !p.rounds;
    if (p.form == KT_CUDA_GENERAL)
        kt_cuda_multiply(cuda, &g);
    else
        kt_cuda_skinny(cuda, &g, p.partial);
    if (p.rounds)
        kt_cuda_cast(cuda, g.m, g.n, p.c, a->c, a->accumulate);
}

/** The most of narrow products of these sizes or smaller ones. */
static uint64_t narrow_bound(const struct kt_cuda_device *cuda, int64_t m, int64_t n, int64_t k)
{
    uint64_t narrow_m = kt_cuda_skinny_bound(cuda, m < KT_CUDA_NARROW ? m : KT_CUDA_NARROW, n, k);
    uint64_t narrow_n = kt_cuda_skinny_bound(cuda, m, n < KT_CUDA_NARROW ? n : KT_CUDA_NARROW, k);
    return narrow_m > narrow_n ? narrow_m : narrow_n;
}

/* Told as what serves fewer tokens, too: those can make another product narrow. */
uint64_t kt_cuda_gemm_scratch(const struct kt_cuda_device *cuda, const struct kt_gemm_args *a)
{
    struct gemm p = plan(cuda, a, NULL);
    if (a->m <= 0 || a->n <= 0)
        return 0;
    return p.factors + narrow_bound(cuda, a->m, a->n, a->k);
}
