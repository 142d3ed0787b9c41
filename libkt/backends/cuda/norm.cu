/* SPDX-License-Identifier: Apache-2.0 */
/* RMSNorm (arXiv 1910.07467). WIDTH threads have a row, each every WIDTH-th quad; the first KEPT of
 * a thread stay in registers between the sums and what they are needed for. */
#include "backends/cuda/quad.cuh"

namespace
{

enum { KEPT = 8, NARROW = 32, WIDE = KT_BLOCK, WARP = 32 };

/* The sums of both over a row's threads, in an order that is always the same. */
template <int WIDTH> __device__ __forceinline__ float2 sum_of_row(float2 s)
{
    __shared__ float2 warps[WIDE / WARP];
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) {
        s.x += __shfl_xor_sync(~0u, s.x, step);
        s.y += __shfl_xor_sync(~0u, s.y, step);
    }
    if (WIDTH == WARP)
        return s;
    if (threadIdx.x % WARP == 0)
        warps[threadIdx.x / WARP] = s;
    __syncthreads();
    s = warps[0];
#pragma unroll
    for (int i = 1; i < WIDTH / WARP; i++) {
        s.x += warps[i].x;
        s.y += warps[i].y;
    }
    return s;
}

struct row {
    const struct kt_norm_args &a;
    int64_t t;

    template <bool ALIGNED>
    __device__ __forceinline__ struct kt_quad get(const struct kt_view &view, int64_t i) const
    {
        return kt_get<ALIGNED>(view, t * view.ld + i, a.dim - i);
    }

    template <bool ALIGNED> __device__ __forceinline__ struct kt_quad weight(int64_t i) const
    {
        return kt_get_quad<ALIGNED>(a.weight + i, a.dim - i);
    }
};

__device__ __forceinline__ float dot(const struct kt_quad &x, const struct kt_quad &y)
{
    return (x.v[0] * y.v[0] + x.v[1] * y.v[1]) + (x.v[2] * y.v[2] + x.v[3] * y.v[3]);
}

template <bool ALIGNED>
__device__ __forceinline__ void put_normal(const struct row &r, int64_t i, const struct kt_quad &x,
                                           float inverse)
{
    struct kt_quad y, w = r.weight<ALIGNED>(i);
    for (int k = 0; k < 4; k++)
        y.v[k] = x.v[k] * inverse * w.v[k];
    kt_put<ALIGNED>(r.a.y, r.t * r.a.y.ld + i, r.a.dim - i, y);
}

template <int WIDTH, bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) forward(struct kt_norm_args a)
{
    struct row r = {a, (int64_t)blockIdx.x * blockDim.y + threadIdx.y};
    struct kt_quad kept[KEPT];
    float2 sum = {0, 0};
    if (r.t >= a.tokens)
        return;
    const int64_t first = threadIdx.x * 4;
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim)
            kept[k] = r.get<ALIGNED>(a.x, first + k * WIDTH * 4);
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim)
            sum.x += dot(kept[k], kept[k]);
    for (int64_t i = first + KEPT * WIDTH * 4; i < a.dim; i += WIDTH * 4) {
        struct kt_quad x = r.get<ALIGNED>(a.x, i);
        sum.x += dot(x, x);
    }
    float inverse = 1.0f / sqrtf(sum_of_row<WIDTH>(sum).x / (float)a.dim + a.eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim)
            put_normal<ALIGNED>(r, first + k * WIDTH * 4, kept[k], inverse);
    for (int64_t i = first + KEPT * WIDTH * 4; i < a.dim; i += WIDTH * 4)
        put_normal<ALIGNED>(r, i, r.get<ALIGNED>(a.x, i), inverse);
}

/* The gradient of y, times the weight. */
template <bool ALIGNED>
__device__ __forceinline__ struct kt_quad weighted(const struct row &r, int64_t i)
{
    struct kt_quad w = r.weight<ALIGNED>(i), g = r.get<ALIGNED>(r.a.dy, i);
    for (int k = 0; k < 4; k++)
        g.v[k] *= w.v[k];
    return g;
}

template <bool ALIGNED>
__device__ __forceinline__ void put_gradient(const struct row &r, int64_t i,
                                             const struct kt_quad &x, const struct kt_quad &g,
                                             float inverse, float shared)
{
    struct kt_quad y = {0, 0, 0, 0};
    if (r.a.accumulate)
        y = r.get<ALIGNED>(r.a.y, i);
    for (int k = 0; k < 4; k++)
        y.v[k] += inverse * g.v[k] - shared * x.v[k];
    kt_put<ALIGNED>(r.a.y, r.t * r.a.y.ld + i, r.a.dim - i, y);
}

/* y may be x or dy: a thread reads what it writes, before. */
template <int WIDTH, bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) backward(struct kt_norm_args a)
{
    struct row r = {a, (int64_t)blockIdx.x * blockDim.y + threadIdx.y};
    struct kt_quad x[KEPT], g[KEPT];
    float2 sum = {0, 0};
    if (r.t >= a.tokens)
        return;
    const int64_t first = threadIdx.x * 4;
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim) {
            x[k] = r.get<ALIGNED>(a.x, first + k * WIDTH * 4);
            g[k] = weighted<ALIGNED>(r, first + k * WIDTH * 4);
        }
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim) {
            sum.x += dot(x[k], x[k]);
            sum.y += dot(x[k], g[k]);
        }
    for (int64_t i = first + KEPT * WIDTH * 4; i < a.dim; i += WIDTH * 4) {
        struct kt_quad more = r.get<ALIGNED>(a.x, i);
        sum.x += dot(more, more);
        sum.y += dot(more, weighted<ALIGNED>(r, i));
    }
    sum = sum_of_row<WIDTH>(sum);
    float inverse = 1.0f / sqrtf(sum.x / (float)a.dim + a.eps);
    float shared = inverse * inverse * inverse * (sum.y / (float)a.dim);
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * WIDTH * 4 < a.dim)
            put_gradient<ALIGNED>(r, first + k * WIDTH * 4, x[k], g[k], inverse, shared);
    for (int64_t i = first + KEPT * WIDTH * 4; i < a.dim; i += WIDTH * 4)
        put_gradient<ALIGNED>(r, i, r.get<ALIGNED>(a.x, i), weighted<ALIGNED>(r, i), inverse,
                              shared);
}

template <int WIDTH>
void launch(struct kt_cuda_device *cuda, const struct kt_norm_args &a, bool is_backward,
            bool aligned)
{
    dim3 threads(WIDTH, KT_BLOCK / WIDTH);
    unsigned blocks = (unsigned)((a.tokens + threads.y - 1) / threads.y);
    void (*kernel)(struct kt_norm_args) =
        is_backward ? (aligned ? backward<WIDTH, true> : backward<WIDTH, false>)
                    : (aligned ? forward<WIDTH, true> : forward<WIDTH, false>);
    kernel<<<blocks, threads, 0, cuda->compute>>>(a);
    kt_cuda_launched(cuda, is_backward ? "norm_backward" : "norm_forward");
}

void run(struct kt_device *dev, const struct kt_norm_args &a, bool is_backward)
{
    struct kt_view weight = kt_view_f32(a.weight, 0);
    bool aligned = kt_has_quads(&a.x, a.dim) && kt_has_quads(&a.y, a.dim) &&
                   kt_has_quads(&weight, a.dim) && (!is_backward || kt_has_quads(&a.dy, a.dim));
    if (a.tokens <= 0 || a.dim <= 0)
        return;
    if (a.dim <= NARROW * KEPT * 4)
        launch<NARROW>(kt_cuda(dev), a, is_backward, aligned);
    else
        launch<WIDE>(kt_cuda(dev), a, is_backward, aligned);
}

} // namespace

void kt_cuda_norm_forward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, *(const struct kt_norm_args *)args, false);
}

void kt_cuda_norm_backward(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, *(const struct kt_norm_args *)args, true);
}
