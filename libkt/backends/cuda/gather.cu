/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of experts, from and to those of tokens. */
#include "backends/cuda/quad.cuh"

namespace
{

__device__ __forceinline__ int64_t token_of(const struct kt_gather_args &a, int64_t r)
{
    return a.index ? a.index[r] : r;
}

__device__ __forceinline__ float weight_of(const struct kt_gather_args &a, int64_t r)
{
    return a.weights ? a.weights[a.slots[r]] : 1.0f;
}

/* y may be x where there is no index. */
template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) gather_rows(struct kt_gather_args a)
{
    int64_t first = kt_item() * 4, left = a.dim - first;
    if (left <= 0)
        return;
    KT_EACH_ROW(r, a.rows)
    {
        float weight = weight_of(a, r);
        struct kt_quad x = kt_get<ALIGNED>(a.x, token_of(a, r) * a.x.ld + first, left);
        for (int i = 0; i < 4; i++)
            x.v[i] *= weight;
        kt_put<ALIGNED>(a.y, r * a.y.ld + first, left, x);
    }
}

enum { AT_ONCE = 8 };

template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) scatter_rows(struct kt_gather_args a)
{
    int64_t first = kt_item() * 4, left = a.dim - first;
    if (left <= 0)
        return;
    KT_EACH_ROW(token, a.tokens)
    {
        const int32_t *rows = a.token_rows + token * a.topk;
        struct kt_quad y;
        bool any = false;
        for (int32_t base = 0; base < a.topk; base += AT_ONCE) {
            int64_t r[AT_ONCE]; /* all are looked at before a branch waits for one */
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                r[k] = base + k < a.topk ? rows[min(base + k, a.topk - 1)] - a.first_row : -1;
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                if (r[k] < 0 || r[k] >= a.rows)
                    continue;
                if (!any)
                    y = kt_get<ALIGNED>(a.y, token * a.y.ld + first, left);
                any = true;
                float weight = weight_of(a, r[k]);
                struct kt_quad x = kt_get<ALIGNED>(a.x, r[k] * a.x.ld + first, left);
                for (int i = 0; i < 4; i++)
                    y.v[i] += weight * x.v[i];
            }
        }
        if (any)
            kt_put<ALIGNED>(a.y, token * a.y.ld + first, left, y);
    }
}

void launch(struct kt_cuda_device *cuda, const struct kt_gather_args &a, bool scatter)
{
    if (a.rows <= 0 || a.dim <= 0)
        return;
    bool aligned = kt_has_quads(&a.x, a.dim) && kt_has_quads(&a.y, a.dim);
    if (scatter)
        KT_LAUNCH(cuda, "scatter_add", scatter_rows, aligned, a.tokens, (a.dim + 3) / 4, a);
    else
        KT_LAUNCH(cuda, "gather", gather_rows, aligned, a.rows, (a.dim + 3) / 4, a);
}

/* A block has a row. */
template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) weigh_rows(struct kt_weigh_args a)
{
    __shared__ float warps[KT_BLOCK / 32];
    int64_t r = blockIdx.x;
    int32_t slot = a.slots[r];
    float weight = a.weights[slot], sum = 0;
    for (int64_t i = threadIdx.x * 4; i < a.dim; i += KT_BLOCK * 4) {
        struct kt_quad h = kt_get<ALIGNED>(a.h, r * a.h.ld + i, a.dim - i);
        struct kt_quad dh = kt_get<ALIGNED>(a.dh, r * a.dh.ld + i, a.dim - i);
        sum += (h.v[0] * dh.v[0] + h.v[1] * dh.v[1]) + (h.v[2] * dh.v[2] + h.v[3] * dh.v[3]);
        for (int k = 0; k < 4; k++)
            dh.v[k] *= weight;
        kt_put<ALIGNED>(a.dh, r * a.dh.ld + i, a.dim - i, dh);
    }
    sum = kt_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x)
        return;
    for (int w = 1; w < KT_BLOCK / 32; w++)
        sum += warps[w];
    a.dweights[slot] = sum;
}

} // namespace

void kt_cuda_gather(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    launch(kt_cuda(dev), *(const struct kt_gather_args *)args, false);
}

void kt_cuda_scatter_add(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    launch(kt_cuda(dev), *(const struct kt_gather_args *)args, true);
}

void kt_cuda_weigh(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_weigh_args a = *(const struct kt_weigh_args *)args;
    struct kt_cuda_device *cuda = kt_cuda(dev);
    (void)scratch;
    if (a.rows <= 0 || a.dim <= 0)
        return;
    if (kt_has_quads(&a.h, a.dim) && kt_has_quads(&a.dh, a.dim))
        weigh_rows<true><<<(unsigned)a.rows, KT_BLOCK, 0, cuda->compute>>>(a);
    else
        weigh_rows<false><<<(unsigned)a.rows, KT_BLOCK, 0, cuda->compute>>>(a);
    kt_cuda_launched(cuda, "weigh");
}
