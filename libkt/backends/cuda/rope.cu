/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary position embedding (arXiv 2104.09864). A thread rotates four pairs of a head. */
#include "backends/cuda/quad.cuh"

namespace
{

__device__ __forceinline__ void rotate(const struct kt_rope_args &r, float c, float s, float &a,
                                       float &b)
{
    float sine = r.inverse ? -s : s, first = a;
    a = first * c - b * sine;
    b = first * sine + b * c;
}

template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) rotate_rows(struct kt_rope_args r)
{
    const int32_t half = r.rope_dim / 2, quads = (half + 3) / 4;
    const int64_t item = kt_item();
    if (item >= (int64_t)r.num_heads * quads)
        return;
    const int32_t head = (int32_t)item / quads, pair = (int32_t)item % quads * 4;
    const int32_t left = half - pair, step = r.interleaved ? 2 : 1;
    /* the elements of these pairs are [first, first + 4) and [other, other + 4) */
    const int64_t first = head * r.head_stride + step * pair;
    const int64_t other = r.interleaved ? first + 4 : first + half;
    const int32_t left_first = r.interleaved ? 2 * left : left;
    const int32_t left_other = r.interleaved ? 2 * left - 4 : left;
    KT_EACH_ROW(t, r.tokens)
    {
        int64_t at = (int64_t)r.rows[t] * half + pair, row = t * r.x.ld;
        struct kt_quad c = kt_get_quad<ALIGNED>(r.cos + at, left);
        struct kt_quad s = kt_get_quad<ALIGNED>(r.sin + at, left);
        struct kt_quad a = kt_get<ALIGNED>(r.x, row + first, left_first);
        struct kt_quad b = kt_get<ALIGNED>(r.x, row + other, left_other);
        if (r.interleaved) {
            for (int i = 0; i < 2; i++) {
                rotate(r, c.v[i], s.v[i], a.v[2 * i], a.v[2 * i + 1]);
                rotate(r, c.v[2 + i], s.v[2 + i], b.v[2 * i], b.v[2 * i + 1]);
            }
        } else {
            for (int i = 0; i < 4; i++)
                rotate(r, c.v[i], s.v[i], a.v[i], b.v[i]);
        }
        kt_put<ALIGNED>(r.x, row + first, left_first, a);
        kt_put<ALIGNED>(r.x, row + other, left_other, b);
    }
}

} // namespace

void kt_cuda_rope(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_rope_args r = *(const struct kt_rope_args *)args;
    int64_t half = r.rope_dim / 2, quads = (half + 3) / 4;
    struct kt_view cosine = kt_view_f32(r.cos, half), sine = kt_view_f32(r.sin, half);
    bool aligned = kt_has_quads(&r.x, half) && r.head_stride % 4 == 0 &&
                   kt_has_quads(&cosine, half) && kt_has_quads(&sine, half);
    (void)scratch;
    if (r.tokens > 0 && r.num_heads > 0 && half > 0)
        KT_LAUNCH(kt_cuda(dev), "rope", rotate_rows, aligned, r.tokens, r.num_heads * quads, r);
}
