/* SPDX-License-Identifier: Apache-2.0 */
/* Products with few rows, as LoRA makes them of few tokens, in float32 and in one launch for
 * several. */
#include "backends/cuda/product.h"
#include "backends/cuda/view.cuh"

namespace
{

enum { THREADS = 128, WARP = 32, SHORT = 64 /* depths that a thread sums alone */ };

struct several {
    struct kt_gemm_args each[KT_CUDA_TOGETHER];
};

template <typename A, typename B> struct factors {
    const A *a;
    const B *b;
    int64_t lda, step, col; /* of B between depths, and where its column begins */

    __device__ factors(const struct kt_gemm_args &g, int64_t column)
        : a((const A *)g.a.data), b((const B *)g.b.data), lda(g.a.ld), step(g.trans_b ? 1 : g.b.ld),
          col(g.trans_b ? column * g.b.ld : column)
    {
    }

    /* sums[i] += row i of A times the column, in depths from `begin` on, `stride` apart. */
    template <int ROWS>
    __device__ __forceinline__ void add_dots(int64_t depths, int64_t begin, int64_t stride,
                                             int rows, float (&sums)[ROWS]) const
    {
#pragma unroll 4
        for (int64_t depth = begin; depth < depths; depth += stride) {
            float right = kt_load(b + col + depth * step);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                sums[i] = fmaf(kt_load(a + min(i, rows - 1) * lda + depth), right, sums[i]);
        }
    }
};

__device__ __forceinline__ float load(const struct kt_view &x, int64_t i)
{
    return x.dtype == KT_DTYPE_BF16 ? kt_load((const __nv_bfloat16 *)x.data + i)
                                    : kt_load((const float *)x.data + i);
}

__device__ __forceinline__ void put(const struct kt_gemm_args &g, int64_t row, int64_t col, float x)
{
    int64_t at = row * g.c.ld + col;
    float sum = g.alpha * x + (g.accumulate ? load(g.c, at) : 0.0f);
    if (g.c.dtype == KT_DTYPE_BF16)
        kt_store((__nv_bfloat16 *)g.c.data + at, sum);
    else
        kt_store((float *)g.c.data + at, sum);
}

/* A thread for each column. */
template <typename A, typename B, int ROWS>
__global__ void __launch_bounds__(THREADS)
    multiply_short(const __grid_constant__ struct several all)
{
    const struct kt_gemm_args &g = all.each[blockIdx.y];
    int64_t col = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sums[ROWS] = {};
    if (col >= g.n)
        return;
    factors<A, B>(g, col).add_dots(g.k, 0, 1, (int)g.m, sums);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (i < g.m)
            put(g, i, col, sums[i]);
}

/* A block for each column. */
template <typename A, typename B, int ROWS>
__global__ void __launch_bounds__(THREADS) multiply_deep(const __grid_constant__ struct several all)
{
    __shared__ float warps[THREADS / WARP][ROWS];
    const struct kt_gemm_args &g = all.each[blockIdx.y];
    int64_t col = blockIdx.x;
    float sums[ROWS] = {};
    if (col >= g.n)
        return;
    factors<A, B>(g, col).add_dots(g.k, threadIdx.x, THREADS, (int)g.m, sums);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        sums[i] = kt_warp_sum(sums[i]);
        if (threadIdx.x % WARP == 0)
            warps[threadIdx.x / WARP][i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x < g.m) {
        float sum = 0;
        for (int w = 0; w < THREADS / WARP; w++)
            sum += warps[w][threadIdx.x];
        put(g, threadIdx.x, col, sum);
    }
}

struct launch {
    struct several all;
    int32_t count;
    int64_t cols, rows; /* of that with most */
};

template <typename A, typename B, int ROWS>
void run(struct kt_cuda_device *cuda, const struct launch *l, bool is_short)
{
    unsigned blocks = (unsigned)(is_short ? (l->cols + THREADS - 1) / THREADS : l->cols);
    dim3 grid(blocks, (unsigned)l->count);
    if (is_short)
        multiply_short<A, B, ROWS><<<grid, THREADS, 0, cuda->compute>>>(l->all);
    else
        multiply_deep<A, B, ROWS><<<grid, THREADS, 0, cuda->compute>>>(l->all);
}

template <typename A, typename B>
void run_rows(struct kt_cuda_device *cuda, const struct launch *l, bool is_short)
{
    if (l->rows == 1)
        run<A, B, 1>(cuda, l, is_short);
    else
        run<A, B, KT_CUDA_FEW>(cuda, l, is_short);
}

template <typename A>
void run_types(struct kt_cuda_device *cuda, const struct launch *l, bool is_short)
{
#define RUN(B) run_rows<A, B>(cuda, l, is_short)
    KT_BY_DTYPE(l->all.each[0].b.dtype, RUN);
#undef RUN
}

bool is_few(const struct kt_gemm_args *g)
{
    return g->m > 0 && g->m <= KT_CUDA_FEW && g->n > 0 && !g->trans_a;
}

/* Whether one launch can serve both. */
bool are_alike(const struct kt_gemm_args *g, const struct kt_gemm_args *h)
{
    return (g->k < SHORT) == (h->k < SHORT) && g->a.dtype == h->a.dtype && g->b.dtype == h->b.dtype;
}

} // namespace

int32_t kt_cuda_gemms_few(struct kt_cuda_device *cuda, int32_t count, const struct kt_gemm_args *g)
{
    struct launch l = {};
    for (; l.count < count && l.count < KT_CUDA_TOGETHER; l.count++) {
        const struct kt_gemm_args *next = &g[l.count];
        if (!is_few(next) || !are_alike(next, g))
            break;
        l.cols = max(l.cols, next->n);
        l.rows = max(l.rows, next->m);
        l.all.each[l.count] = *next;
    }
    if (!l.count)
        return 0;
#define RUN(A) run_types<A>(cuda, &l, g->k < SHORT)
    KT_BY_DTYPE(g->a.dtype, RUN);
#undef RUN
    kt_cuda_launched(cuda, "a product of few rows");
    return l.count;
}
