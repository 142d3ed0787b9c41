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

__device__ __forceinline__ float load(const struct kt_view &x, int64_t i)
{
    return x.dtype == KT_DTYPE_BF16 ? kt_load((const __nv_bfloat16 *)x.data + i)
                                    : kt_load((const float *)x.data + i);
}

__device__ __forceinline__ float load_b(const struct kt_gemm_args &g, int64_t depth, int64_t col)
{
    return load(g.b, g.trans_b ? col * g.b.ld + depth : depth * g.b.ld + col);
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

/* sums[i] += those of row i of A and column `col` of B, in depths from `begin` on, `step` apart. */
__device__ __forceinline__ void add_dots(const struct kt_gemm_args &g, int64_t col, int64_t begin,
                                         int64_t step, float (&sums)[KT_CUDA_FEW])
{
    for (int64_t depth = begin; depth < g.k; depth += step) {
        float b = load_b(g, depth, col);
#pragma unroll
        for (int i = 0; i < KT_CUDA_FEW; i++)
            if (i < g.m)
                sums[i] = fmaf(load(g.a, i * g.a.ld + depth), b, sums[i]);
    }
}

/* A thread for each column. */
__global__ void __launch_bounds__(THREADS)
    multiply_short(const __grid_constant__ struct several all)
{
    const struct kt_gemm_args &g = all.each[blockIdx.y];
    int64_t col = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sums[KT_CUDA_FEW] = {};
    if (col >= g.n)
        return;
    add_dots(g, col, 0, 1, sums);
    for (int i = 0; i < KT_CUDA_FEW && i < g.m; i++)
        put(g, i, col, sums[i]);
}

/* A block for each column. */
__global__ void __launch_bounds__(THREADS) multiply_deep(const __grid_constant__ struct several all)
{
    __shared__ float warps[THREADS / WARP][KT_CUDA_FEW];
    const struct kt_gemm_args &g = all.each[blockIdx.y];
    int64_t col = blockIdx.x;
    float sums[KT_CUDA_FEW] = {};
    if (col >= g.n)
        return;
    add_dots(g, col, threadIdx.x, THREADS, sums);
#pragma unroll
    for (int i = 0; i < KT_CUDA_FEW; i++) {
        for (int step = WARP / 2; step > 0; step /= 2)
            sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], step);
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

bool is_few(const struct kt_gemm_args *g)
{
    return g->m > 0 && g->m <= KT_CUDA_FEW && g->n > 0 && !g->trans_a;
}

} // namespace

int32_t kt_cuda_gemms_few(struct kt_cuda_device *cuda, int32_t count, const struct kt_gemm_args *g)
{
    struct several all;
    int32_t num = 0;
    int64_t cols = 0;
    bool is_short = count > 0 && g->k < SHORT;
    while (num < count && num < KT_CUDA_TOGETHER && is_few(&g[num]) &&
           (g[num].k < SHORT) == is_short) {
        cols = max(cols, g[num].n);
        all.each[num] = g[num];
        num++;
    }
    if (!num)
        return 0;
    if (is_short)
        multiply_short<<<dim3((unsigned)((cols + THREADS - 1) / THREADS), (unsigned)num), THREADS,
                         0, cuda->compute>>>(all);
    else
        multiply_deep<<<dim3((unsigned)cols, (unsigned)num), THREADS, 0, cuda->compute>>>(all);
    kt_cuda_launched(cuda, "a product of few rows");
    return num;
}
