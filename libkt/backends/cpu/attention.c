/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over packed sequences. Backward makes two passes, one that owns queries (dq) and one
 * that owns keys (dk, dv, dk_shared); both recompute the probabilities from the log-sum-exp. */
#include "backends/cpu/cpu.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"

struct attend {
    const struct kt_row_kernels *row;
    const struct kt_attention *a;
    const struct kt_attention_grad *g;
    int64_t queries, keys, scratch_floats;
    float *scratch; /* a thread: scores and their gradients of the longest sequence */
    float *delta;   /* [num_heads, queries]: <d_o, o> */
};

static int32_t sequence_of(const int32_t *cu_seqlens, int32_t num_sequences, int64_t token)
{
    int32_t low = 0, high = num_sequences - 1;
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (cu_seqlens[middle] <= token)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Keys [first, last] that query t of sequence s sees. */
static void visible_keys(const struct kt_attention *a, int32_t s, int64_t t, int64_t *first,
                         int64_t *last)
{
    *last = a->cu_seqlens_k[s + 1] - a->cu_seqlens_q[s + 1] + t;
    *first = a->cu_seqlens_k[s];
    if (a->window)
        *first = kt_max_i64(*first, *last - a->window + 1);
}

static float score(const struct attend *p, const float *q, int64_t key, int64_t kv_head)
{
    const struct kt_attention *a = p->a;
    int32_t own = a->qk_dim - a->shared_dim;
    float s = p->row->dot(own, q, a->k + key * a->k_stride + kv_head * a->k_head_stride);
    if (a->shared_dim)
        s += p->row->dot(a->shared_dim, q + own, a->k_shared + key * a->k_shared_stride);
    return s;
}

static void forward(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct attend *p = arg;
    const struct kt_attention *a = p->a;
    float *scores = p->scratch + thread * p->scratch_floats;
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / a->num_heads, h = item % a->num_heads, first, last;
        int64_t kv_head = h / (a->num_heads / a->num_kv_heads);
        visible_keys(a, sequence_of(a->cu_seqlens_q, a->num_sequences, t), t, &first, &last);
        for (int64_t j = first; j <= last; j++)
            scores[j - first] = score(p, a->q + t * a->q_stride + h * a->q_head_stride, j, kv_head);
        int64_t n = last - first + 1;
        float max = p->row->max(n, scores) * a->scale;
        float sum = p->row->exp_sum(n, a->scale, max, scores, scores);
        float *o = a->o + t * a->o_stride + h * a->o_head_stride;
        memset(o, 0, (size_t)a->v_dim * sizeof *o);
        for (int64_t j = first; j <= last; j++)
            p->row->scale_add(a->v_dim, scores[j - first] / sum,
                              a->v + j * a->v_stride + kv_head * a->v_head_stride, 1, o);
        if (a->lse)
            a->lse[h * p->queries + t] = max + logf(sum);
    }
}

/* Probability of a key for a query, and d(loss)/d(score), scale included. */
static float score_gradient(const struct attend *p, int64_t t, int64_t h, int64_t key,
                            float *probability)
{
    const struct kt_attention *a = p->a;
    int64_t kv_head = h / (a->num_heads / a->num_kv_heads);
    float s = score(p, a->q + t * a->q_stride + h * a->q_head_stride, key, kv_head);
    float dp = p->row->dot(a->v_dim, p->g->d_o + t * a->o_stride + h * a->o_head_stride,
                           a->v + key * a->v_stride + kv_head * a->v_head_stride);
    *probability = expf(s * a->scale - a->lse[h * p->queries + t]);
    return *probability * (dp - p->delta[h * p->queries + t]) * a->scale;
}

static void backward_queries(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct attend *p = arg;
    const struct kt_attention *a = p->a;
    int32_t own = a->qk_dim - a->shared_dim;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / a->num_heads, h = item % a->num_heads, first, last;
        int64_t kv_head = h / (a->num_heads / a->num_kv_heads);
        int64_t o = t * a->o_stride + h * a->o_head_stride;
        float *dq = p->g->dq + t * a->q_stride + h * a->q_head_stride, probability;
        p->delta[h * p->queries + t] = p->row->dot(a->v_dim, p->g->d_o + o, a->o + o);
        visible_keys(a, sequence_of(a->cu_seqlens_q, a->num_sequences, t), t, &first, &last);
        memset(dq, 0, (size_t)a->qk_dim * sizeof *dq);
        for (int64_t j = first; j <= last; j++) {
            float ds = score_gradient(p, t, h, j, &probability);
            p->row->scale_add(own, ds, a->k + j * a->k_stride + kv_head * a->k_head_stride, 1, dq);
            if (a->shared_dim)
                p->row->scale_add(a->shared_dim, ds, a->k_shared + j * a->k_shared_stride, 1,
                                  dq + own);
        }
    }
}

static void clear_key(const struct attend *p, int64_t key)
{
    const struct kt_attention *a = p->a;
    for (int64_t h = 0; h < a->num_kv_heads; h++) {
        memset(p->g->dk + key * a->k_stride + h * a->k_head_stride, 0,
               (size_t)(a->qk_dim - a->shared_dim) * sizeof(float));
        memset(p->g->dv + key * a->v_stride + h * a->v_head_stride, 0,
               (size_t)a->v_dim * sizeof(float));
    }
    if (a->shared_dim)
        memset(p->g->dk_shared + key * a->k_shared_stride, 0,
               (size_t)a->shared_dim * sizeof(float));
}

static void backward_keys(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct attend *p = arg;
    const struct kt_attention *a = p->a;
    int32_t own = a->qk_dim - a->shared_dim;
    (void)thread;
    for (int64_t j = begin; j < end; j++) {
        int32_t s = sequence_of(a->cu_seqlens_k, a->num_sequences, j);
        int64_t shift = a->cu_seqlens_k[s + 1] - a->cu_seqlens_q[s + 1];
        int64_t from = kt_max_i64(a->cu_seqlens_q[s], j - shift), to = a->cu_seqlens_q[s + 1];
        if (a->window)
            to = kt_min_i64(to, j - shift + a->window);
        clear_key(p, j);
        for (int64_t h = 0; h < a->num_heads; h++) {
            int64_t kv_head = h / (a->num_heads / a->num_kv_heads);
            float *dk = p->g->dk + j * a->k_stride + kv_head * a->k_head_stride, probability;
            float *dv = p->g->dv + j * a->v_stride + kv_head * a->v_head_stride;
            for (int64_t t = from; t < to; t++) {
                const float *q = a->q + t * a->q_stride + h * a->q_head_stride;
                float ds = score_gradient(p, t, h, j, &probability);
                p->row->scale_add(own, ds, q, 1, dk);
                p->row->scale_add(a->v_dim, probability,
                                  p->g->d_o + t * a->o_stride + h * a->o_head_stride, 1, dv);
                if (a->shared_dim)
                    p->row->scale_add(a->shared_dim, ds, q + own, 1,
                                      p->g->dk_shared + j * a->k_shared_stride);
            }
        }
    }
}

static struct attend prepare(struct kt_device *dev, const struct kt_attention *a)
{
    return (struct attend){.row = &kt_cpu(dev)->kernels.row,
                           .a = a,
                           .queries = a->num_sequences ? a->cu_seqlens_q[a->num_sequences] : 0,
                           .keys = a->num_sequences ? a->cu_seqlens_k[a->num_sequences] : 0};
}

kt_status kt_cpu_attention_forward(struct kt_device *dev, const struct kt_attention *a)
{
    struct attend p = prepare(dev, a);
    uint64_t threads = (uint64_t)kt_pool_num_threads(dev->ctx->pool);
    void *memory;
    for (int32_t s = 0; s < a->num_sequences; s++)
        p.scratch_floats =
            kt_max_i64(p.scratch_floats, a->cu_seqlens_k[s + 1] - a->cu_seqlens_k[s]);
    KT_TRY(kt_scratch_get(&kt_cpu(dev)->scratch,
                          threads * (uint64_t)p.scratch_floats * sizeof(float), "attention",
                          &memory));
    p.scratch = memory;
    kt_parallel_for(dev->ctx->pool, p.queries * a->num_heads, 4, forward, &p);
    return KT_OK;
}

kt_status kt_cpu_attention_backward(struct kt_device *dev, const struct kt_attention *a,
                                    const struct kt_attention_grad *g)
{
    struct attend p = prepare(dev, a);
    void *memory;
    KT_TRY(kt_scratch_get(&kt_cpu(dev)->scratch,
                          (uint64_t)p.queries * (uint64_t)a->num_heads * sizeof(float),
                          "attention's backward", &memory));
    p.g = g;
    p.delta = memory;
    kt_parallel_for(dev->ctx->pool, p.queries * a->num_heads, 4, backward_queries, &p);
    kt_parallel_for(dev->ctx->pool, p.keys, 1, backward_keys, &p);
    return KT_OK;
}

uint64_t kt_cpu_attention_scratch_bytes(const kt_context *ctx, int64_t tokens, int32_t num_heads)
{
    int64_t rows = kt_max_i64(kt_pool_num_threads(ctx->pool), num_heads);
    return (uint64_t)tokens * (uint64_t)rows * sizeof(float);
}
