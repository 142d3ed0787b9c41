/* SPDX-License-Identifier: Apache-2.0 */
/* Linears of few tokens: a warp multiplies rows of the weight as they lie in memory, which is read
 * once. */
#include "backends/cuda/decode.cuh"
#include "backends/cuda/product.h"
#include "backends/cuda/vector.cuh"

namespace
{

enum { WARP = 32, WARPS = 8, ROWS = 2 /* of a warp */ };

__device__ __forceinline__ float as_factor(float x, bool rounds)
{
    return rounds ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

__device__ __forceinline__ float warp_sum(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <typename T> __device__ __forceinline__ void put(T *to, float x, bool accumulate)
{
    kt_store(to, accumulate ? kt_load(to) + x : x);
}

template <kt_dtype DTYPE, typename X, int TOKENS>
__global__ void __launch_bounds__(WARP *WARPS)
    multiply_rows(const struct kt_weight w, bool rounds, int tokens, const X *__restrict__ x,
                  int64_t ldx, const struct kt_view y, bool accumulate)
{
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
    float sums[ROWS][TOKENS] = {};
    if (row >= w.rows)
        return;
#pragma unroll(TOKENS == 1 ? 2 : 1)
    for (int64_t col = lane * KT_CUDA_RUN; col < w.cols; col += WARP * KT_CUDA_RUN) {
        float values[ROWS][KT_CUDA_RUN];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            kt_cuda_load_run<DTYPE>(w, row + r < w.rows ? row + r : row, col, values[r]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float factors[KT_CUDA_RUN];
            kt_load_8(x + (t < tokens ? t : 0) * ldx + col, factors);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < KT_CUDA_RUN; i++)
                    sums[r][t] += as_factor(values[r][i], rounds) * as_factor(factors[i], rounds);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float sum = warp_sum(sums[r][t]);
            int64_t at = t * y.ld + row + r;
            if (lane > 0 || t >= tokens || row + r >= w.rows)
                continue;
            if (y.dtype == KT_DTYPE_BF16)
                put((__nv_bfloat16 *)y.data + at, sum, accumulate);
            else
                put((float *)y.data + at, sum, accumulate);
        }
    }
}

template <typename X> void launch(cudaStream_t stream, const struct kt_linear_args *a, const X *x)
{
    const struct kt_weight *w = &a->weight;
    unsigned blocks = (unsigned)((w->rows + WARPS * ROWS - 1) / (WARPS * ROWS));
    int tokens = (int)a->tokens;
    int64_t ldx = a->x.ld;
    bool rounds = a->compute == KT_COMPUTE_BF16;
#define MULTIPLY(DTYPE)                                                                            \
    if (tokens == 1)                                                                               \
        multiply_rows<DTYPE, X, 1><<<blocks, WARP * WARPS, 0, stream>>>(*w, rounds, tokens, x,     \
                                                                        ldx, a->y, a->accumulate); \
    else                                                                                           \
        multiply_rows<DTYPE, X, KT_CUDA_FEW>                                                       \
            <<<blocks, WARP * WARPS, 0, stream>>>(*w, rounds, tokens, x, ldx, a->y, a->accumulate)
    KT_CUDA_BY_FORMAT(w->dtype, MULTIPLY);
#undef MULTIPLY
}

} // namespace

bool kt_cuda_linear_few(struct kt_cuda_device *cuda, const struct kt_linear_args *a)
{
    const struct kt_view *x = &a->x;
    if (a->tokens > KT_CUDA_FEW || !kt_cuda_has_runs(&a->weight) || (uintptr_t)x->data % 16 ||
        (a->tokens > 1 && x->ld % KT_CUDA_RUN))
        return false;
#define LAUNCH(T) launch(cuda->compute, a, (const T *)x->data)
    KT_BY_DTYPE(x->dtype, LAUNCH);
#undef LAUNCH
    kt_cuda_launched(cuda, "a linear of few tokens");
    return true;
}
