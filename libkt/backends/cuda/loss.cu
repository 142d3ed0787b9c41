/* SPDX-License-Identifier: Apache-2.0 */
/* Cross entropy, a block for each row of logits: one pass for the maximum and the sum of
 * exponentials, and one for the gradient. */
#include <float.h>

#include "backends/cuda/quad.cuh"

namespace
{

enum { THREADS = 512, WARP = 32 };

/* The sum of exp(x - max) over some numbers, which is exp(max) times smaller than theirs. */
struct total {
    float max, sum;
};

__device__ __forceinline__ struct total merge(struct total a, struct total b)
{
    float max = fmaxf(a.max, b.max);
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

/* Of all threads, in an order that is always the same. */
__device__ struct total merge_block(struct total a)
{
    __shared__ struct total warps[THREADS / WARP];
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) {
        struct total other = {__shfl_xor_sync(~0u, a.max, step), __shfl_xor_sync(~0u, a.sum, step)};
        a = merge(a, other);
    }
    if (threadIdx.x % WARP == 0)
        warps[threadIdx.x / WARP] = a;
    __syncthreads();
    a = warps[0];
    for (int i = 1; i < THREADS / WARP; i++)
        a = merge(a, warps[i]);
    return a;
}

/* Not below -FLT_MAX, so that no difference of two maxima is a NaN. */
template <bool ALIGNED>
__device__ __forceinline__ struct total total_of(const struct kt_view &row, int64_t vocab)
{
    struct total a = {-FLT_MAX, 0};
#pragma unroll 4
    for (int64_t i = threadIdx.x * 4; i < vocab; i += THREADS * 4) {
        int64_t left = vocab - i;
        struct kt_quad x = kt_get<ALIGNED>(row, i, left);
        float max = a.max, sum = 0;
        for (int k = 0; k < 4; k++)
            if (ALIGNED || k < left)
                max = fmaxf(max, x.v[k]);
        for (int k = 0; k < 4; k++)
            if (ALIGNED || k < left)
                sum += expf(x.v[k] - max);
        a = {max, a.sum * expf(a.max - max) + sum};
    }
    return a;
}

/* d logprob / d logits = one-hot(target) - softmax(logits) */
template <bool ALIGNED>
__device__ __forceinline__ void put_gradient(const struct kt_view &row, int64_t vocab,
                                             struct total all, int32_t target, float dlogprob)
{
    const float factor = -dlogprob / all.sum;
#pragma unroll 4
    for (int64_t i = threadIdx.x * 4; i < vocab; i += THREADS * 4) {
        int64_t left = vocab - i;
        struct kt_quad x = kt_get<ALIGNED>(row, i, left);
        for (int k = 0; k < 4; k++) {
            x.v[k] = factor * expf(x.v[k] - all.max);
            if (i + k == target)
                x.v[k] += dlogprob;
        }
        kt_put<ALIGNED>(row, i, left, x);
    }
}

__device__ float element(const struct kt_view &row, int64_t i)
{
    return row.dtype == KT_DTYPE_BF16 ? kt_load((const __nv_bfloat16 *)row.data + i)
                                      : kt_load((const float *)row.data + i);
}

template <bool ALIGNED> __device__ void ignore(const struct kt_view &row, int64_t vocab)
{
    const struct kt_quad zero = {0, 0, 0, 0};
    for (int64_t i = threadIdx.x * 4; i < vocab; i += THREADS * 4)
        kt_put<ALIGNED>(row, i, vocab - i, zero);
}

template <bool ALIGNED>
__global__ void __launch_bounds__(THREADS) cross_entropy(struct kt_cross_entropy_args a)
{
    const int64_t t = blockIdx.x;
    const int32_t target = a.targets[t];
    struct kt_view row = a.logits;
    row.data = (char *)row.data + t * row.ld * (row.dtype == KT_DTYPE_BF16 ? 2 : 4);
    if (target < 0) {
        if (threadIdx.x == 0)
            a.logprobs[t] = 0;
        if (a.dlogprobs)
            ignore<ALIGNED>(row, a.vocab);
        return;
    }
    float chosen = element(row, target); /* before the gradient takes its place */
    struct total all = merge_block(total_of<ALIGNED>(row, a.vocab));
    if (threadIdx.x == 0)
        a.logprobs[t] = chosen - all.max - logf(all.sum);
    if (a.dlogprobs)
        put_gradient<ALIGNED>(row, a.vocab, all, target, a.dlogprobs[t]);
}

} // namespace

void kt_cuda_cross_entropy(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_cross_entropy_args a = *(const struct kt_cross_entropy_args *)args;
    struct kt_cuda_device *cuda = kt_cuda(dev);
    void (*kernel)(struct kt_cross_entropy_args) =
        kt_has_quads(&a.logits, a.vocab) ? cross_entropy<true> : cross_entropy<false>;
    (void)scratch;
    if (a.tokens <= 0)
        return;
    kernel<<<(unsigned)a.tokens, THREADS, 0, cuda->compute>>>(a);
    kt_cuda_launched(cuda, "cross_entropy");
}
