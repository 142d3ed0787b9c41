/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/skinny.cuh"

namespace
{

enum { THREADS = 256, BLOCKS_OF_AN_SM = 2 };

/* The depth is cut into as many parts as give every multiprocessor blocks. */
void cut(const struct kt_cuda_device *cuda, struct kt_skinny *s, int64_t block, int64_t step)
{
    int64_t blocks = (s->size + block - 1) / block, steps = (s->depth + step - 1) / step;
    int64_t parts = (int64_t)BLOCKS_OF_AN_SM * cuda->num_sms / blocks;
    parts = parts < 1 ? 1 : parts < steps ? parts : steps;
    s->part = (steps + parts - 1) / parts * step;
    s->parts = (int32_t)((s->depth + s->part - 1) / s->part);
}

/* Whether the large factor is [size, depth]. */
bool is_rows(const struct kt_gemm_args *g)
{
    return kt_cuda_form(g) == KT_CUDA_LARGE_A ? !g->trans_a : g->trans_b;
}

struct kt_skinny plan(const struct kt_cuda_device *cuda, const struct kt_gemm_args *g)
{
    struct kt_skinny s = {};
    bool large_a = kt_cuda_form(g) == KT_CUDA_LARGE_A;
    s.size = large_a ? g->m : g->n;
    s.width = (int32_t)(large_a ? g->n : g->m);
    s.depth = g->k;
    s.large = large_a ? g->a : g->b;
    s.small = large_a ? kt_strided_view(&g->b, g->trans_b) : kt_strided_view(&g->a, !g->trans_a);
    if (is_rows(g))
        cut(cuda, &s, KT_SKINNY_ROWS_BLOCK, KT_SKINNY_ROWS_STEP);
    else
        cut(cuda, &s, KT_SKINNY_COLUMNS_BLOCK, KT_SKINNY_COLUMNS_STEP);
    return s;
}

/* The sum of all parts, by elements as they lie in `partial`: [outer, inner]. */
struct total {
    const float *partial;
    int32_t parts;
    int64_t count, inner;
    int64_t outer_stride, inner_stride; /* in C */
    float alpha;
    bool accumulate;
};

template <typename T>
__global__ void __launch_bounds__(THREADS) add_parts(const struct total t, T *c)
{
    int64_t id = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0;
    if (id >= t.count)
        return;
    for (int32_t part = 0; part < t.parts; part++)
        sum += t.partial[part * t.count + id];
    c += id / t.inner * t.outer_stride + id % t.inner * t.inner_stride;
    kt_store(c, (t.accumulate ? kt_load(c) : 0.0f) + t.alpha * sum);
}

/* `partial` is [size, width] of rows and [width, size] of columns; C has the size along its rows if
 * A is the large factor. */
void add(cudaStream_t stream, const struct kt_gemm_args *g, const struct kt_skinny *s)
{
    bool rows = is_rows(g), along = rows == (kt_cuda_form(g) == KT_CUDA_LARGE_A);
    struct total t = {s->partial,
                      s->parts,
                      s->size * s->width,
                      rows ? s->width : s->size,
                      along ? g->c.ld : 1,
                      along ? 1 : g->c.ld,
                      g->alpha,
                      g->accumulate};
    unsigned blocks = (unsigned)((t.count + THREADS - 1) / THREADS);
#define ADD(T) add_parts<<<blocks, THREADS, 0, stream>>>(t, (T *)g->c.data)
    KT_BY_DTYPE(g->c.dtype, ADD);
#undef ADD
}

} // namespace

uint64_t kt_cuda_skinny_scratch(const struct kt_cuda_device *cuda, const struct kt_gemm_args *g)
{
    if (kt_cuda_form(g) == KT_CUDA_LARGE_C)
        return 0;
    struct kt_skinny s = plan(cuda, g);
    return (uint64_t)s.parts * (uint64_t)(s.size * s.width) * sizeof(float);
}

/* parts <= max(1, min(steps, BLOCKS_OF_AN_SM * num_sms / blocks)), and size / blocks <= a block. */
uint64_t kt_cuda_skinny_bound(const struct kt_cuda_device *cuda, int64_t m, int64_t n, int64_t k)
{
    int64_t block = KT_SKINNY_ROWS_BLOCK > KT_SKINNY_COLUMNS_BLOCK ? KT_SKINNY_ROWS_BLOCK
                                                                   : KT_SKINNY_COLUMNS_BLOCK;
    int64_t step =
        KT_SKINNY_ROWS_STEP < KT_SKINNY_COLUMNS_STEP ? KT_SKINNY_ROWS_STEP : KT_SKINNY_COLUMNS_STEP;
    int64_t width = m > n ? m : n, whole = m * n, steps = (k + step - 1) / step;
    width = width < KT_CUDA_NARROW ? width : KT_CUDA_NARROW;
    int64_t cut = (int64_t)BLOCKS_OF_AN_SM * cuda->num_sms * block * width;
    cut = cut < whole * steps ? cut : whole * steps;
    return (uint64_t)(cut > whole ? cut : whole) * sizeof(float);
}

void kt_cuda_skinny(struct kt_cuda_device *cuda, const struct kt_gemm_args *g, float *partial)
{
    if (kt_cuda_form(g) == KT_CUDA_LARGE_C) {
        kt_skinny_depth(cuda->compute, g);
    } else {
        struct kt_skinny s = plan(cuda, g);
        s.partial = partial;
        if (is_rows(g))
            kt_skinny_rows(cuda->compute, &s);
        else
            kt_skinny_columns(cuda->compute, &s);
        add(cuda->compute, g, &s);
    }
    kt_cuda_launched(cuda, "a narrow product");
}
