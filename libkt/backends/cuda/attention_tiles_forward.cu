/* SPDX-License-Identifier: Apache-2.0 */
/* Forward in BF16: a warp owns 16 rows, with its queries and outputs in registers; the block walks
 * over tiles of keys and values, the next of which is loaded while one is used. */
#include "backends/cuda/attention_tiles.cuh"

namespace
{

enum { WARPS = 8, THREADS = WARPS * 32, ROWS = WARPS * KT_ATTEND_STRIP, KEYS = 64, BATCH = 4 };

constexpr float NO_MAX = -1e30f, LN_2 = 0.6931471805599453f;

template <int QK, int V> struct stage {
    static constexpr uint32_t BYTES = KEYS * (QK + V) * 2;
    kt_attend_factor<QK> k;
    kt_attend_factor<V> v;

    __device__ __forceinline__ stage(uint32_t shared, int32_t index)
        : k{shared + index * BYTES}, v{shared + index * BYTES + KEYS * QK * 2}
    {
    }
};

/* By way of the stages, which are free yet. */
template <typename T, int QK>
__device__ __forceinline__ void load_queries(const kt_attend_source<T> &x,
                                             const struct kt_attend_tile &t, uint32_t shared,
                                             uint32_t (&q)[QK / 16][4])
{
    int32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * KT_ATTEND_STRIP + lane % 16;
    kt_attend_factor<QK> tile = {shared};
    kt_attend_load<ROWS, THREADS, BATCH>(x, t.first, t.count, tile);
    kt_copy_wait();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < QK / 16; k++)
        kt_ldmatrix(q[k], tile.at(row, 2 * k | lane / 16));
    __syncthreads();
}

/* Of the 4 threads that share a row. */
__device__ __forceinline__ float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float row_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* Keys [first, last) that a thread's two rows see. */
struct sight {
    int32_t first[2], last[2];
};

__device__ __forceinline__ void hide(const struct sight &see, int32_t key, float (&s)[KEYS / 8][4])
{
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        for (int i = 0; i < 4; i++) {
            int32_t at = key + kt_attend_column(n) + i % 2;
            if (at < see.first[i / 2] || at >= see.last[i / 2])
                s[n][i] = -INFINITY;
        }
}

/* s becomes unnormalised probabilities; max is of the scores, sum this thread's part. */
template <int V>
__device__ __forceinline__ void accumulate_softmax(float scale, float (&s)[KEYS / 8][4],
                                                   float (&max)[2], float (&sum)[2],
                                                   float (&o)[V / 8][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best = max[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            best = fmaxf(best, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        best = row_max(best);
        float factor = kt_exp2((max[half] - best) * scale), shift = best * scale;
        max[half] = best;
        sum[half] *= factor;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = kt_exp2(fmaf(s[n][i], scale, -shift));
                sum[half] += s[n][i];
            }
#pragma unroll
        for (int n = 0; n < V / 8; n++) {
            o[n][2 * half] *= factor;
            o[n][2 * half + 1] *= factor;
        }
    }
}

/* Rows of the output, or of a split. */
template <typename Out, int V>
__device__ __forceinline__ void
write_rows(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head,
           int32_t split, const float (&o)[V / 8][4], const float (&max)[2], const float (&sum)[2])
{
    kt_attend_matrix<Out> to = kt_attend_query_rows<Out>(p, t, p.a.o, p.a.o_head_stride, kv_head);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = row_sum(sum[half]), factor = 1.0f / total, best = max[half] * p.a.scale;
        int32_t row = threadIdx.x / 32 * KT_ATTEND_STRIP + kt_attend_row() + 8 * half;
        if (row >= t.count)
            continue;
        int64_t index = kt_attend_index(p, t, kv_head, t.first + row);
        if (p.splits > 1) {
            float *part = kt_attend_part(p, split, index);
#pragma unroll
            for (int n = 0; n < V / 8; n++)
                kt_attend_write(part, kt_attend_column(n), p.a.v_dim, o[n][2 * half],
                                o[n][2 * half + 1]);
            if (threadIdx.x % 4 == 0)
                kt_attend_write(part + p.a.v_dim, 0, 2, best, total);
            continue;
        }
        Out *at = to.at(t.first + row);
#pragma unroll
        for (int n = 0; n < V / 8; n++)
            kt_attend_write(at, kt_attend_column(n), p.a.v_dim, o[n][2 * half] * factor,
                            o[n][2 * half + 1] * factor);
        if (p.a.lse && threadIdx.x % 4 == 0)
            p.a.lse[index] = fmaf(log2f(total), LN_2, best);
    }
}

template <typename In, int QK, int V>
__global__ void __launch_bounds__(THREADS, QK + V > 128 ? 1 : 2)
    forward(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ uint4 memory[];
    uint32_t shared = kt_shared(memory);
    int32_t heads = p.a.num_kv_heads, each = heads * p.splits, from, to;
    int32_t tiles = (int32_t)gridDim.x / each, split = (int32_t)blockIdx.x % p.splits;
    int32_t kv_head = (int32_t)blockIdx.x / p.splits % heads;
    /* the last tiles see most keys and go first */
    struct kt_attend_tile t =
        kt_attend_find(p, p.group, ROWS, tiles - 1 - (int32_t)blockIdx.x / each);
    kt_attend_source<In> k = kt_attend_whole_keys<In>(p, t, kv_head);
    kt_attend_source<In> v = kt_attend_values<In>(p, t, kv_head);
    int32_t strip = t.first + threadIdx.x / 32 * KT_ATTEND_STRIP, last = t.first + t.count - 1;
    struct sight see, ends;
    for (int half = 0; half < 2; half++) {
        kt_attend_visible(p, t, min(strip + kt_attend_row() + 8 * half, last) / p.group,
                          &see.first[half], &see.last[half]);
        kt_attend_visible(p, t, min(strip + half * (KT_ATTEND_STRIP - 1), last) / p.group,
                          &ends.first[half], &ends.last[half]);
    }
    uint32_t q[QK / 16][4];
    float o[V / 8][4] = {}, max[2] = {NO_MAX, NO_MAX}, sum[2] = {};
    load_queries<In, QK>(kt_attend_queries<In>(p, t, kv_head), t, shared, q);
    kt_attend_keys(p, t, &from, &to);
    kt_attend_split(p, split, &from, &to);
    auto load = [&](int32_t key, int32_t index) {
        stage<QK, V> s(shared, index);
        kt_attend_load<KEYS, THREADS, BATCH>(k, key, to - key, s.k);
        kt_attend_load<KEYS, THREADS, BATCH>(v, key, to - key, s.v);
    };
    if (from < to)
        load(from, 0);
    int32_t index = 0;
    for (int32_t key = from; key < to; key += KEYS, index ^= 1) {
        kt_copy_wait();
        __syncthreads();
        if (key + KEYS < to)
            load(key + KEYS, index ^ 1);
        if (key >= ends.last[1] || key + KEYS <= ends.first[0])
            continue;
        stage<QK, V> now(shared, index);
        float s[KEYS / 8][4] = {};
        kt_attend_add_dots<QK, KEYS>(q, now.k, s);
        if (key < ends.first[1] || key + KEYS > ends.last[0])
            hide(see, key, s);
        accumulate_softmax<V>(p.a.scale * KT_LOG2_E, s, max, sum, o);
        kt_attend_add_product<V, KEYS>(s, now.v, o);
    }
#define WRITE(Out) write_rows<Out, V>(p, t, kv_head, split, o, max, sum)
    KT_BY_DTYPE(p.a.o.dtype, WRITE);
#undef WRITE
}

template <typename In> void run(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    int64_t blocks = kt_attend_count(&p->a.queries, p->group, ROWS) * p->a.num_kv_heads * p->splits;
#define RUN(QK, V)                                                                                 \
    kt_attend_launch(cuda, (const void *)forward<In, QK, V>, blocks, THREADS,                      \
                     2 * stage<QK, V>::BYTES, p)
    KT_ATTEND_BY_DIMS(&p->a, RUN);
#undef RUN
}

} // namespace

void kt_attend_tiles_forward(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
#define RUN(In) run<In>(cuda, p)
    KT_BY_DTYPE(p->q.view.dtype, RUN);
#undef RUN
}
