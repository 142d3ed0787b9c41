/* SPDX-License-Identifier: Apache-2.0 */
/* dq in BF16: a block owns rows, a warp 16 of them, and walks over tiles of keys and values. */
#include "backends/cuda/attention_tiles.cuh"

namespace
{

using In = __nv_bfloat16;

enum { BATCH = 2 };

/* Shared memory: queries and gradients of outputs of the rows, then two stages of KEYS. */
template <int QK, int V, int WARPS, int KEYS> struct layout {
    static constexpr int ROWS = WARPS * KT_ATTEND_STRIP, THREADS = WARPS * 32;
    static constexpr uint32_t ROW_BYTES = ROWS * (QK + V) * 2, STAGE_BYTES = KEYS * (QK + V) * 2;
    static constexpr uint32_t BYTES = ROW_BYTES + 2 * STAGE_BYTES;
    uint32_t shared;

    __device__ __forceinline__ kt_attend_factor<QK> q() const
    {
        return {shared};
    }
    __device__ __forceinline__ kt_attend_factor<V> d_o() const
    {
        return {shared + ROWS * QK * 2};
    }
    __device__ __forceinline__ kt_attend_factor<QK> k(int32_t stage) const
    {
        return {shared + ROW_BYTES + stage * STAGE_BYTES};
    }
    __device__ __forceinline__ kt_attend_factor<V> v(int32_t stage) const
    {
        return {k(stage).address + KEYS * QK * 2};
    }
};

/* What a thread knows of its two rows, and of the first and the last row of its warp. */
struct rows {
    float lse[2], delta[2]; /* lse for powers of 2 */
    int32_t first[2], last[2];
    int32_t strip_first[2], strip_last[2];

    __device__ __forceinline__ rows(const struct kt_attend &p, const struct kt_attend_tile &t,
                                    int32_t kv_head)
    {
        int32_t strip = t.first + threadIdx.x / 32 * KT_ATTEND_STRIP, end = t.first + t.count - 1;
        for (int half = 0; half < 2; half++) {
            int32_t row = min(strip + kt_attend_row() + 8 * half, end);
            int64_t index = kt_attend_index(p, t, kv_head, row);
            lse[half] = p.a.lse[index] * KT_LOG2_E;
            delta[half] = p.delta[index];
            kt_attend_visible(p, t, row / p.group, &first[half], &last[half]);
            kt_attend_visible(p, t, min(strip + half * (KT_ATTEND_STRIP - 1), end) / p.group,
                              &strip_first[half], &strip_last[half]);
        }
    }
};

/* s becomes the gradient of the scaled scores. */
template <int KEYS>
__device__ __forceinline__ void differentiate(const struct rows &r, float scale, int32_t key,
                                              bool whole, const float (&dp)[KEYS / 8][4],
                                              float (&s)[KEYS / 8][4])
{
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t at = key + kt_attend_column(n) + i % 2;
            float x = kt_exp2(fmaf(s[n][i], scale, -r.lse[i / 2]));
            if (!whole && (at < r.first[i / 2] || at >= r.last[i / 2]))
                x = 0;
            s[n][i] = x * (dp[n][i] - r.delta[i / 2]);
        }
}

template <typename Out, int QK>
__device__ __forceinline__ void write(const struct kt_attend &p, const struct kt_attend_tile &t,
                                      int32_t kv_head, const float (&dq)[QK / 8][4])
{
    kt_attend_matrix<Out> to = kt_attend_query_rows<Out>(p, t, p.a.dq, p.a.q_head_stride, kv_head);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int32_t row = threadIdx.x / 32 * KT_ATTEND_STRIP + kt_attend_row() + 8 * half;
        if (row >= t.count)
            continue;
        Out *at = to.at(t.first + row);
#pragma unroll
        for (int n = 0; n < QK / 8; n++)
            kt_attend_write(at, kt_attend_column(n), p.a.qk_dim, dq[n][2 * half] * p.a.scale,
                            dq[n][2 * half + 1] * p.a.scale);
    }
}

template <int QK, int V, int WARPS, int KEYS>
__global__ void __launch_bounds__(WARPS * 32, 1)
    backward_rows(const __grid_constant__ struct kt_attend p)
{
    using place = layout<QK, V, WARPS, KEYS>;
    extern __shared__ uint4 memory[];
    place x = {kt_shared(memory)};
    int32_t heads = p.a.num_kv_heads, tiles = (int32_t)gridDim.x / heads, from, to;
    int32_t kv_head = (int32_t)blockIdx.x % heads;
    /* the last tiles see most keys and go first */
    struct kt_attend_tile t =
        kt_attend_find(p, p.group, place::ROWS, tiles - 1 - (int32_t)blockIdx.x / heads);
    kt_attend_source<In> k = kt_attend_whole_keys<In>(p, t, kv_head);
    kt_attend_source<In> v = kt_attend_values<In>(p, t, kv_head);
    struct rows r(p, t, kv_head);
    float dq[QK / 8][4] = {};
    auto load = [&](int32_t key, int32_t stage) {
        kt_attend_load<KEYS, place::THREADS, BATCH>(k, key, to - key, x.k(stage));
        kt_attend_load<KEYS, place::THREADS, BATCH>(v, key, to - key, x.v(stage));
    };
    kt_attend_load<place::ROWS, place::THREADS, BATCH>(kt_attend_queries<In>(p, t, kv_head),
                                                       t.first, t.count, x.q());
    kt_attend_load<place::ROWS, place::THREADS, BATCH>(
        kt_attend_output_gradients<In>(p, t, kv_head), t.first, t.count, x.d_o());
    kt_attend_keys(p, t, &from, &to);
    load(from, 0);
    int32_t stage = 0, strip = threadIdx.x / 32 * KT_ATTEND_STRIP;
    for (int32_t key = from; key < to; key += KEYS, stage ^= 1) {
        kt_copy_wait();
        __syncthreads();
        if (key + KEYS < to)
            load(key + KEYS, stage ^ 1);
        if (key >= r.strip_last[1] || key + KEYS <= r.strip_first[0])
            continue;
        float s[KEYS / 8][4] = {}, dp[KEYS / 8][4] = {};
        bool whole = key >= r.strip_first[1] && key + KEYS <= r.strip_last[0];
        kt_attend_add_dots<QK, KEYS>(x.q(), strip, x.k(stage), 0, s);
        kt_attend_add_dots<V, KEYS>(x.d_o(), strip, x.v(stage), 0, dp);
        differentiate<KEYS>(r, p.a.scale * KT_LOG2_E, key, whole, dp, s);
        kt_attend_add_product<QK, KEYS>(s, x.k(stage), dq);
    }
#define WRITE(Out) write<Out, QK>(p, t, kv_head, dq)
    KT_BY_DTYPE(p.a.dq.dtype, WRITE);
#undef WRITE
}

template <int QK, int V, int WARPS, int KEYS>
void launch(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    using place = layout<QK, V, WARPS, KEYS>;
    int64_t tiles = kt_attend_count(&p->a.queries, p->group, place::ROWS);
    kt_attend_launch(cuda, (const void *)backward_rows<QK, V, WARPS, KEYS>,
                     tiles * p->a.num_kv_heads, place::THREADS, place::BYTES, p);
}

template <int QK, int V> void launch_fitting(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    if (cuda->shared_bytes >= layout<QK, V, 8, 64>::BYTES)
        launch<QK, V, 8, 64>(cuda, p);
    else
        launch<QK, V, 4, 32>(cuda, p);
}

} // namespace

void kt_attend_tiles_rows(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
#define RUN(QK, V) launch_fitting<QK, V>(cuda, p)
    KT_ATTEND_BY_DIMS(&p->a, RUN);
#undef RUN
}
