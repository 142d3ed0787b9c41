/* SPDX-License-Identifier: Apache-2.0 */
/* Routing of tokens to experts: softmax or sigmoid scores, groups, top-k; a warp for each token.
 * The choice among equals, and what becomes of NaN, is that of backends/cpu/router.c. */
#include "backends/cuda/cuda.h"

namespace
{

enum { WARP = 32, MOST_TOKENS = 8 /* of a block */ };

constexpr float normalizer_floor = 1e-20f;

/* Floats that a token takes: scores [num_experts], choice or gradient [num_experts], groups. */
__host__ __device__ int64_t floats_of(const struct kt_router &r)
{
    return 2 * (int64_t)r.num_experts + r.n_group;
}

__device__ __forceinline__ float sum_of_warp(float x)
{
#pragma unroll
    for (int step = WARP / 2; step; step /= 2)
        x += __shfl_xor_sync(~0u, x, step);
    return x;
}

__device__ __forceinline__ float max_of_warp(float x)
{
#pragma unroll
    for (int step = WARP / 2; step; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

__device__ void score(const struct kt_router &r, int32_t lane, const float *logits, float *scores)
{
    if (r.scoring == KT_SCORING_SIGMOID) {
        for (int32_t e = lane; e < r.num_experts; e += WARP)
            scores[e] = 1.0f / (1.0f + expf(-logits[e]));
    } else {
        float max = -INFINITY, sum = 0;
        for (int32_t e = lane; e < r.num_experts; e += WARP)
            max = fmaxf(max, logits[e]);
        max = max_of_warp(max);
        for (int32_t e = lane; e < r.num_experts; e += WARP) {
            scores[e] = expf(logits[e] - max);
            sum += scores[e];
        }
        sum = sum_of_warp(sum);
        for (int32_t e = lane; e < r.num_experts; e += WARP)
            scores[e] *= 1.0f / sum;
    }
    __syncwarp();
}

/* Index of the greatest value, the lowest of equals, in all lanes; it becomes -infinity. */
__device__ int32_t take_best(float *values, int32_t n, int32_t lane)
{
    float best = values[0];
    int32_t at = 0;
    for (int32_t i = lane; i < n; i += WARP)
        if (values[i] > best) {
            best = values[i];
            at = i;
        }
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) {
        float other = __shfl_xor_sync(~0u, best, step);
        int32_t other_at = __shfl_xor_sync(~0u, at, step);
        if (other > best || (other == best && other_at < at)) {
            best = other;
            at = other_at;
        }
    }
    if (lane == 0)
        values[at] = -INFINITY;
    __syncwarp();
    return at;
}

__device__ float group_value(const struct kt_router &r, const float *choice, int32_t size)
{
    float first = -INFINITY, second = -INFINITY;
    for (int32_t i = 0; i < size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return r.group_score == KT_GROUP_MAX || size < 2 ? first : first + second;
}

/* Experts outside the best topk_group groups count as 0. */
__device__ void limit_groups(const struct kt_router &r, int32_t lane, float *choice, float *groups)
{
    const int32_t size = r.num_experts / r.n_group;
    for (int32_t i = lane; i < r.n_group; i += WARP)
        groups[i] = group_value(r, choice + i * size, size);
    __syncwarp();
    for (int32_t kept = 0; kept < r.topk_group; kept++)
        take_best(groups, r.n_group, lane);
    for (int32_t e = lane; e < r.n_group * size; e += WARP)
        if (groups[e / size] != -INFINITY)
            choice[e] = 0;
    __syncwarp();
}

/* The same in all lanes. */
__device__ float weight_factor(const struct kt_router &r, const float *scores, const int32_t *ids)
{
    float sum = 0;
    if (!r.norm_topk_prob)
        return r.routed_scaling_factor;
    for (int32_t j = 0; j < r.topk; j++)
        sum += scores[ids[j]];
    return r.routed_scaling_factor / (sum + normalizer_floor);
}

__global__ void forward(struct kt_router_args a)
{
    extern __shared__ float shared[];
    const struct kt_router &r = a.router;
    const int32_t lane = (int32_t)threadIdx.x;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    float *scores = shared + threadIdx.y * floats_of(r), *choice = scores + r.num_experts;
    int32_t *ids = a.ids + t * r.topk;
    if (t >= a.tokens)
        return;
    score(r, lane, a.logits + t * r.num_experts, scores);
    for (int32_t e = lane; e < r.num_experts; e += WARP)
        choice[e] = scores[e] + (r.correction_bias ? r.correction_bias[e] : 0);
    __syncwarp();
    if (r.group_score != KT_GROUP_NONE && r.topk_group < r.n_group)
        limit_groups(r, lane, choice, choice + r.num_experts);
    for (int32_t j = 0; j < r.topk; j++) {
        int32_t best = take_best(choice, r.num_experts, lane);
        if (lane == 0)
            ids[j] = best;
    }
    __syncwarp();
    float factor = weight_factor(r, scores, ids);
    for (int32_t j = lane; j < r.topk; j += WARP)
        a.weights[t * r.topk + j] = scores[ids[j]] * factor;
}

/* What the choices give the experts chosen, in `gradient`, one after another, as an expert may be
 * chosen twice. With w_j = f s_j / (S + floor), S = sum of the chosen s:
 * ds_j = (f dw_j - sum_i dw_i w_i) / S. Returns the sum of ds_j s_j. */
__device__ float chosen_gradient(const struct kt_router &r, const int32_t *ids, const float *dw,
                                 const float *scores, float *gradient)
{
    float factor = weight_factor(r, scores, ids), shared = 0, weighted = 0;
    if (r.norm_topk_prob) {
        for (int32_t j = 0; j < r.topk; j++)
            shared += dw[j] * scores[ids[j]] * factor;
        shared *= factor / r.routed_scaling_factor;
    }
    for (int32_t j = 0; j < r.topk; j++) {
        float s = scores[ids[j]], change = (dw[j] * factor - shared) * s;
        weighted += change;
        gradient[ids[j]] += r.scoring == KT_SCORING_SIGMOID ? change * (1.0f - s) : change;
    }
    return weighted;
}

__global__ void backward(struct kt_router_args a)
{
    extern __shared__ float shared[];
    const struct kt_router &r = a.router;
    const int32_t lane = (int32_t)threadIdx.x;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    float *scores = shared + threadIdx.y * floats_of(r), *gradient = scores + r.num_experts;
    float weighted = 0;
    if (t >= a.tokens)
        return;
    for (int32_t e = lane; e < r.num_experts; e += WARP)
        gradient[e] = 0;
    score(r, lane, a.logits + t * r.num_experts, scores);
    if (lane == 0)
        weighted =
            chosen_gradient(r, a.ids + t * r.topk, a.dweights + t * r.topk, scores, gradient);
    __syncwarp(); /* a shuffle alone does not order memory */
    weighted = __shfl_sync(~0u, weighted, 0);
    if (r.scoring == KT_SCORING_SIGMOID)
        weighted = 0;
    for (int32_t e = lane; e < r.num_experts; e += WARP)
        a.dlogits[t * r.num_experts + e] = gradient[e] - weighted * scores[e];
}

size_t bytes_of(const struct kt_router &r)
{
    return (size_t)floats_of(r) * sizeof(float);
}

void launch(struct kt_device *dev, const struct kt_router_args &a,
            void (*kernel)(struct kt_router_args), const char *what)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    size_t bytes = bytes_of(a.router);
    dim3 threads(WARP, MOST_TOKENS);
    if (a.tokens <= 0)
        return;
    while (threads.y > 1 && threads.y * bytes > cuda->shared_bytes / 4)
        threads.y /= 2;
    unsigned blocks = (unsigned)((a.tokens + threads.y - 1) / threads.y);
    kt_cuda_check(cuda,
                  cudaFuncSetAttribute((const void *)kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)(threads.y * bytes)),
                  what);
    kernel<<<blocks, threads, threads.y * bytes, cuda->compute>>>(a);
    kt_cuda_launched(cuda, what);
}

} // namespace

bool kt_cuda_router_supported(const struct kt_cuda_device *cuda, const struct kt_router_args *a)
{
    return bytes_of(a->router) <= cuda->shared_bytes;
}

void kt_cuda_router_forward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    launch(dev, *(const struct kt_router_args *)args, forward, "router_forward");
}

void kt_cuda_router_backward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    launch(dev, *(const struct kt_router_args *)args, backward, "router_backward");
}
