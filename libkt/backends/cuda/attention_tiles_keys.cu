/* SPDX-License-Identifier: Apache-2.0 */
/* dk, dk_shared and dv in BF16: a block owns keys, a warp 16 of them, and walks over tiles of rows,
 * for one key/value head after the other of its unit. */
#include "backends/cuda/attention_tiles.cuh"

namespace
{

using In = __nv_bfloat16;

enum { ROWS = 32, BATCH = 2 };

/* Shared memory: the keys and their values, then two stages of rows. */
template <int QK, int V, int WARPS> struct layout {
    static constexpr int KEYS = WARPS * KT_ATTEND_STRIP, THREADS = WARPS * 32;
    static constexpr uint32_t KEY_BYTES = KEYS * (QK + V) * 2, ROW_BYTES = ROWS * (QK + V) * 2;
    static constexpr uint32_t STAGE_BYTES = ROW_BYTES + 2 * ROWS * 4;
    static constexpr uint32_t BYTES = KEY_BYTES + 2 * STAGE_BYTES;
    uint32_t shared;

    __device__ __forceinline__ kt_attend_factor<QK> k() const
    {
        return {shared};
    }
    __device__ __forceinline__ kt_attend_factor<V> v() const
    {
        return {shared + KEYS * QK * 2};
    }
    __device__ __forceinline__ kt_attend_factor<QK> q(int32_t stage) const
    {
        return {shared + KEY_BYTES + stage * ROW_BYTES};
    }
    __device__ __forceinline__ kt_attend_factor<V> d_o(int32_t stage) const
    {
        return {q(stage).address + ROWS * QK * 2};
    }
    /* [ROWS] lse, [ROWS] delta; in bytes from the beginning */
    __device__ __forceinline__ uint32_t numbers(int32_t stage) const
    {
        return KEY_BYTES + 2 * ROW_BYTES + stage * 2 * ROWS * 4;
    }
};

template <int QK, int V> struct sums {
    float dk[QK / 8][4], dv[V / 8][4];
};

/* Tile of rows that a stage holds, as a warp sees it. */
struct step {
    const float *numbers;
    int32_t row, end, key; /* first row, the end of all, and the first key of the warp */
    bool whole;            /* all rows see all keys of the warp */
};

/* s becomes the probabilities, dp the gradients of the scaled scores. */
__device__ __forceinline__ void differentiate(const struct kt_attend &p,
                                              const struct kt_attend_tile &t, const struct step &x,
                                              float (&s)[ROWS / 8][4], float (&dp)[ROWS / 8][4])
{
    float scale = p.a.scale * KT_LOG2_E;
    int32_t key = x.key + kt_attend_row();
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int32_t at = kt_attend_column(n) + i, first = 0, last = INT32_MAX;
            float lse = x.numbers[at] * KT_LOG2_E, delta = x.numbers[ROWS + at];
            if (!x.whole)
                kt_attend_visible(p, t, min(x.row + at, x.end - 1) / p.group, &first, &last);
#pragma unroll
            for (int k = i; k < 4; k += 2) {
                int32_t mine = key + 8 * (k / 2);
                float y = kt_exp2(fmaf(s[n][k], scale, -lse));
                s[n][k] = mine >= first && mine < last ? y : 0.0f;
                dp[n][k] = s[n][k] * (dp[n][k] - delta);
            }
        }
}

/* All rows of a key/value head. */
template <int QK, int V, int WARPS>
__device__ __forceinline__ void add_rows(const struct kt_attend &p, const struct kt_attend_tile &t,
                                         int32_t kv_head, const uint4 *memory, sums<QK, V> &sum)
{
    using place = layout<QK, V, WARPS>;
    place x = {kt_shared(memory)};
    kt_attend_source<In> q = kt_attend_queries<In>(p, t, kv_head);
    kt_attend_source<In> d_o = kt_attend_output_gradients<In>(p, t, kv_head);
    int32_t from, to, stage = 0, strip = threadIdx.x / 32 * KT_ATTEND_STRIP;
    kt_attend_rows(p, t, &from, &to);
    auto load = [&](int32_t row, int32_t stage) {
        kt_attend_load<ROWS, place::THREADS, BATCH>(q, row, to - row, x.q(stage));
        kt_attend_load<ROWS, place::THREADS, BATCH>(d_o, row, to - row, x.d_o(stage));
        if (threadIdx.x >= ROWS)
            return;
        bool valid = row + (int32_t)threadIdx.x < to;
        int64_t index = kt_attend_index(p, t, kv_head, valid ? row + (int32_t)threadIdx.x : row);
        uint32_t at = x.shared + x.numbers(stage) + threadIdx.x * 4;
        kt_copy_4(at, p.a.lse + index, valid);
        kt_copy_4(at + ROWS * 4, p.delta + index, valid);
    };
    kt_attend_load<place::KEYS, place::THREADS, BATCH>(kt_attend_whole_keys<In>(p, t, kv_head),
                                                       t.first, t.count, x.k());
    kt_attend_load<place::KEYS, place::THREADS, BATCH>(kt_attend_values<In>(p, t, kv_head), t.first,
                                                       t.count, x.v());
    load(from, 0);
    for (int32_t row = from; row < to; row += ROWS, stage ^= 1) {
        kt_copy_wait();
        __syncthreads();
        if (row + ROWS < to)
            load(row + ROWS, stage ^ 1);
        int32_t first[2], last[2];
        kt_attend_visible(p, t, row / p.group, &first[0], &last[0]);
        kt_attend_visible(p, t, (min(row + ROWS, to) - 1) / p.group, &first[1], &last[1]);
        struct step now = {(const float *)memory + x.numbers(stage) / 4, row, to, t.first + strip};
        now.whole = last[0] >= now.key + KT_ATTEND_STRIP && first[1] <= now.key;
        if (last[1] <= now.key || first[0] >= now.key + KT_ATTEND_STRIP)
            continue;
        float s[ROWS / 8][4] = {}, dp[ROWS / 8][4] = {};
        kt_attend_add_dots<QK, ROWS>(x.k(), strip, x.q(stage), 0, s);
        kt_attend_add_dots<V, ROWS>(x.v(), strip, x.d_o(stage), 0, dp);
        differentiate(p, t, now, s, dp);
        kt_attend_add_product<V, ROWS>(s, x.d_o(stage), sum.dv);
        kt_attend_add_product<QK, ROWS>(dp, x.q(stage), sum.dk);
    }
    __syncthreads();
}

/* Begins anew what is a key/value head's own. */
template <int QK, int V>
__device__ __forceinline__ void reset(const struct kt_attend &p, sums<QK, V> &sum)
{
#pragma unroll
    for (int i = 0; i < QK / 2; i++)
        if (kt_attend_column(i / 4) + i % 2 < p.own)
            sum.dk[i / 4][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < V / 2; i++)
        sum.dv[i / 4][i % 4] = 0;
}

/* Writes what is a key/value head's own. */
template <typename Out, int QK, int V>
__device__ __forceinline__ void write_own(const struct kt_attend &p, const struct kt_attend_tile &t,
                                          int32_t kv_head, const sums<QK, V> &sum)
{
    kt_attend_matrix<Out> dk = kt_attend_key_rows<Out>(t, p.a.dk, p.a.k_head_stride, kv_head);
    kt_attend_matrix<Out> dv = kt_attend_key_rows<Out>(t, p.a.dv, p.a.v_head_stride, kv_head);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int32_t row = threadIdx.x / 32 * KT_ATTEND_STRIP + kt_attend_row() + 8 * half;
        Out *dk_at = dk.at(t.first + row), *dv_at = dv.at(t.first + row);
        int32_t own = row < t.count ? p.own : 0, values = row < t.count ? p.a.v_dim : 0;
#pragma unroll
        for (int n = 0; n < QK / 8; n++)
            kt_attend_write(dk_at, kt_attend_column(n), own, sum.dk[n][2 * half] * p.a.scale,
                            sum.dk[n][2 * half + 1] * p.a.scale);
#pragma unroll
        for (int n = 0; n < V / 8; n++)
            kt_attend_write(dv_at, kt_attend_column(n), values, sum.dv[n][2 * half],
                            sum.dv[n][2 * half + 1]);
    }
}

template <typename Out, int QK, int V>
__device__ __forceinline__ void
write_shared(const struct kt_attend &p, const struct kt_attend_tile &t,
             const kt_attend_matrix<Out> &to, const sums<QK, V> &sum)
{
#pragma unroll
    for (int i = 0; i < QK / 2; i++) {
        int32_t row = threadIdx.x / 32 * KT_ATTEND_STRIP + kt_attend_row() + i % 4 / 2 * 8;
        int32_t col = kt_attend_column(i / 4) + i % 2;
        if (row < t.count && col >= p.own && col < p.a.qk_dim)
            kt_store(to.at(t.first + row) + col - p.own, sum.dk[i / 4][i % 4] * p.a.scale);
    }
}

template <int QK, int V, int WARPS>
__global__ void __launch_bounds__(WARPS * 32, 1)
    backward_keys(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ uint4 memory[];
    /* the first tiles are seen by most rows and go first */
    struct kt_attend_tile t =
        kt_attend_find(p, 0, layout<QK, V, WARPS>::KEYS, (int32_t)blockIdx.x / p.units);
    int32_t unit = (int32_t)blockIdx.x % p.units, head = unit * p.unit_heads;
    int32_t end = min(head + p.unit_heads, p.a.num_kv_heads), from, to;
    sums<QK, V> sum = {};
    kt_attend_rows(p, t, &from, &to);
    for (; head < end; head++) {
        if (from < to)
            add_rows<QK, V, WARPS>(p, t, head, memory, sum);
#define WRITE(Out) write_own<Out, QK, V>(p, t, head, sum)
        KT_BY_DTYPE(p.a.dk.dtype, WRITE);
#undef WRITE
        reset(p, sum);
    }
    if (!p.a.shared_dim)
        return;
#define WRITE(Out) write_shared<Out>(p, t, kt_attend_key_rows<Out>(t, p.a.dk_shared, 0, 0), sum)
    int64_t ld = p.a.shared_dim;
    if (p.shared_parts)
        write_shared<float>(p, t, {p.shared_parts + (unit * p.keys + t.key) * ld, ld, 0, 1}, sum);
    else
        KT_BY_DTYPE(p.a.dk_shared.dtype, WRITE);
#undef WRITE
}

template <int QK, int V, int WARPS>
void launch(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    using place = layout<QK, V, WARPS>;
    kt_attend_launch(cuda, (const void *)backward_keys<QK, V, WARPS>,
                     kt_attend_count(&p->a.keys, 1, place::KEYS) * p->units, place::THREADS,
                     place::BYTES, p);
}

template <int QK, int V> void launch_fitting(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    if (cuda->shared_bytes >= layout<QK, V, 8>::BYTES)
        launch<QK, V, 8>(cuda, p);
    else
        launch<QK, V, 4>(cuda, p);
}

} // namespace

void kt_attend_tiles_keys(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
#define RUN(QK, V) launch_fitting<QK, V>(cuda, p)
    KT_ATTEND_BY_DIMS(&p->a, RUN);
#undef RUN
}
