/* SPDX-License-Identifier: Apache-2.0 */
/* Gated units. Their operands are dense, so that all tokens are one row. */
#include "backends/cuda/quad.cuh"

namespace
{

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* h may be gate. */
template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) forward(struct kt_glu_args a, int64_t elements)
{
    int64_t at = kt_item() * 4, left = elements - at;
    if (left <= 0)
        return;
    struct kt_quad gate = kt_get<ALIGNED>(a.gate, at, left);
    struct kt_quad h = kt_get<ALIGNED>(a.up, at, left);
    for (int i = 0; i < 4; i++)
        h.v[i] = gate.v[i] * sigmoid(gate.v[i]) * h.v[i];
    kt_put<ALIGNED>(a.h, at, left, h);
}

/* dgate and dup may be gate and up. */
template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) backward(struct kt_glu_args a, int64_t elements)
{
    int64_t at = kt_item() * 4, left = elements - at;
    if (left <= 0)
        return;
    struct kt_quad gate = kt_get<ALIGNED>(a.gate, at, left);
    struct kt_quad up = kt_get<ALIGNED>(a.up, at, left);
    struct kt_quad dh = kt_get<ALIGNED>(a.dh, at, left);
    for (int i = 0; i < 4; i++) {
        float g = gate.v[i], u = up.v[i], d = dh.v[i], s = sigmoid(g);
        gate.v[i] = d * u * s * (1.0f + g * (1.0f - s));
        up.v[i] = d * g * s;
    }
    kt_put<ALIGNED>(a.dgate, at, left, gate);
    kt_put<ALIGNED>(a.dup, at, left, up);
}

bool has_quads(const struct kt_view &view)
{
    struct kt_view dense = view;
    dense.ld = 0;
    return kt_has_quads(&dense, 0);
}

} // namespace

void kt_cuda_glu_forward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_glu_args a = *(const struct kt_glu_args *)args;
    int64_t n = a.tokens * a.dim;
    bool aligned = n % 4 == 0 && has_quads(a.gate) && has_quads(a.up) && has_quads(a.h);
    (void)scratch;
    if (n > 0)
        KT_LAUNCH(kt_cuda(dev), "glu_forward", forward, aligned, 1, (n + 3) / 4, a, n);
}

void kt_cuda_glu_backward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_glu_args a = *(const struct kt_glu_args *)args;
    int64_t n = a.tokens * a.dim;
    bool aligned = n % 4 == 0 && has_quads(a.gate) && has_quads(a.up) && has_quads(a.dh) &&
                   has_quads(a.dgate) && has_quads(a.dup);
    (void)scratch;
    if (n > 0)
        KT_LAUNCH(kt_cuda(dev), "glu_backward", backward, aligned, 1, (n + 3) / 4, a, n);
}
