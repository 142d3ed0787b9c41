/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of a few queries a sequence, as generation has them, in float32. A warp has a row or
 * several and walks over keys, whose features lie across its lanes; nothing is shared but what the
 * caches keep. */
#include "backends/cuda/attention.cuh"

namespace
{

enum {
    WARP = 32,
    WARPS = 8,
    QK = KT_ATTEND_FEW_QK / WARP, /* features of a lane */
    V = KT_ATTEND_FEW_V / WARP
};

constexpr float NO_MAX = -1e30f;

/* A lane's part of a row's features: those of `x`, and behind the first `own` those of `shared`.
 * Behind the last it repeats it, so that no load waits for a branch. */
template <typename T, int N>
__device__ __forceinline__ void load(const T *x, int32_t own, const T *shared, int32_t dim,
                                     float (&to)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        int32_t at = min(i * WARP + (int32_t)threadIdx.x % WARP, dim - 1);
        const T *from = at < own ? x + at : shared + (at - own);
        to[i] = kt_load(from);
    }
}

struct row {
    float max, sum, o[V];
    int32_t first, last; /* keys that it sees */
};

/* Takes KEYS scores of a row and what they weigh. */
template <int KEYS>
__device__ __forceinline__ void add_keys(struct row &r, const float (&s)[KEYS],
                                         const float (&v)[KEYS][V])
{
    float best = r.max;
    for (int k = 0; k < KEYS; k++)
        best = fmaxf(best, s[k]);
    float factor = expf(r.max - best), p[KEYS];
    r.sum *= factor;
    for (int k = 0; k < KEYS; k++) {
        p[k] = s[k] > NO_MAX ? expf(s[k] - best) : 0.0f;
        r.sum += p[k];
    }
    r.max = best;
#pragma unroll
    for (int i = 0; i < V; i++) {
        r.o[i] *= factor;
        for (int k = 0; k < KEYS; k++)
            r.o[i] = fmaf(p[k], v[k][i], r.o[i]);
    }
}

template <typename T>
__device__ void write(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head,
                      int32_t split, int32_t index_in_sequence, const struct row &r)
{
    kt_attend_matrix<T> to = kt_attend_query_rows<T>(p, t, p.a.o, p.a.o_head_stride, kv_head);
    int64_t index = kt_attend_index(p, t, kv_head, index_in_sequence);
    float *part = kt_attend_part(p, split, index);
    int32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < V; i++) {
        int32_t at = i * WARP + lane;
        if (at >= p.a.v_dim)
            continue;
        if (p.splits > 1)
            part[at] = r.o[i];
        else
            kt_store(to.at(index_in_sequence) + at, r.o[i] / r.sum);
    }
    if (lane)
        return;
    if (p.splits > 1)
        part[p.a.v_dim] = r.max, part[p.a.v_dim + 1] = r.sum;
    else if (p.a.lse)
        p.a.lse[index] = r.max + logf(r.sum);
}

template <typename T, int ROWS, int KEYS>
__global__ void __launch_bounds__(WARP *WARPS) forward(const __grid_constant__ struct kt_attend p)
{
    int32_t split = (int32_t)blockIdx.x % p.splits, block = (int32_t)blockIdx.x / p.splits;
    int32_t kv_head = block % p.a.num_kv_heads;
    struct kt_attend_tile t = kt_attend_find(p, p.group, WARPS * ROWS, block / p.a.num_kv_heads);
    int32_t row = t.first + (int32_t)threadIdx.x / WARP * ROWS, first, last;
    int32_t rows = min(ROWS, t.first + t.count - row);
    if (rows <= 0)
        return;
    kt_attend_keys(p, t, &first, &last);
    kt_attend_split(p, split, &first, &last);
    kt_attend_matrix<const T> qs = kt_attend_query_rows<const T>(p, t, p.q, kv_head),
                              ks = kt_attend_key_rows<const T>(t, p.k, kv_head),
                              shared = kt_attend_key_rows<const T>(t, p.k_shared, 0),
                              vs = kt_attend_key_rows<const T>(t, p.v, kv_head);
    struct row r[ROWS];
    float q[ROWS][QK];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int32_t at = row + min(i, rows - 1);
        r[i] = {NO_MAX, 0};
        kt_attend_visible(p, t, at / p.group, &r[i].first, &r[i].last);
        load(qs.at(at), p.a.qk_dim, qs.at(at), p.a.qk_dim, q[i]);
#pragma unroll
        for (int d = 0; d < QK; d++)
            q[i][d] = d * WARP + (int32_t)threadIdx.x % WARP < p.a.qk_dim ? q[i][d] : 0.0f;
    }
    for (int32_t key = first; key < last; key += KEYS) {
        float s[ROWS][KEYS], v[KEYS][V];
#pragma unroll
        for (int k = 0; k < KEYS; k++) {
            int32_t at = min(key + k, last - 1);
            float features[QK];
            load(ks.at(at), p.own, shared.at(at), p.a.qk_dim, features);
            load(vs.at(at), p.a.v_dim, vs.at(at), p.a.v_dim, v[k]);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float dot = 0;
#pragma unroll
                for (int d = 0; d < QK; d++)
                    dot = fmaf(q[i][d], features[d], dot);
                s[i][k] = dot;
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int k = 0; k < KEYS; k++) {
                bool sees = key + k >= r[i].first && key + k < min(last, r[i].last);
                float dot = kt_warp_sum(s[i][k]);
                s[i][k] = sees ? dot * p.a.scale : NO_MAX;
            }
            add_keys<KEYS>(r[i], s[i], v);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (i < rows)
            write<T>(p, t, kv_head, split, row + i, r[i]);
}

} // namespace

int32_t kt_attend_few_rows(const struct kt_attention_args *a)
{
    int32_t group = a->num_heads / a->num_kv_heads, longest = 0;
    for (int32_t s = 0; s < a->queries.num; s++)
        longest = max(longest, a->queries.host[s + 1] - a->queries.host[s]);
    if (longest > KT_ATTEND_FEW || a->qk_dim > KT_ATTEND_FEW_QK || a->v_dim > KT_ATTEND_FEW_V)
        return 0;
    return group * longest >= 4 * WARPS ? 2 * WARPS : WARPS;
}

void kt_attend_few_forward(struct kt_cuda_device *cuda, const struct kt_attend *p, int32_t rows)
{
    int64_t blocks = kt_attend_count(&p->a.queries, p->group, rows) * p->a.num_kv_heads * p->splits;
#define FORWARD(T)                                                                                 \
    kt_attend_launch(                                                                              \
        cuda, rows == WARPS ? (const void *)forward<T, 1, 2> : (const void *)forward<T, 2, 1>,     \
        blocks, WARP * WARPS, 0, p)
    KT_BY_DTYPE(p->a.q.dtype, FORWARD);
#undef FORWARD
}
