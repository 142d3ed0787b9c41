/* SPDX-License-Identifier: Apache-2.0 */
/* Backward in two passes: one owns blocks of queries (dq), one owns blocks of keys (dk, dv,
 * dk_shared). Both recompute the probabilities from the log-sum-exp. */
#include "backends/cpu/attention.h"

#include <string.h>

#include "core/memory.h"

enum { ROWS = KT_ATTENTION_ROWS, KEYS = KT_ATTENTION_KEYS, OWNED = KT_ATTENTION_OWNED_KEYS };

/* A row of scores s and of products dp = <d_o, v> over n columns, of which [first, last) are
 * visible: s becomes the probabilities, dp the gradient of the unscaled scores. */
static void gradient_row(const struct kt_attend *p, int64_t n, int64_t first, int64_t last,
                         const float *lse, const float *delta, float *s, float *dp)
{
    first = kt_min_i64(kt_max_i64(first, 0), n);
    last = kt_max_i64(kt_min_i64(last, n), first);
    memset(s, 0, (size_t)first * sizeof *s);
    memset(s + last, 0, (size_t)(n - last) * sizeof *s);
    p->kernels->row.exp_minus(last - first, p->a->scale, s + first, lse + first, s + first);
    p->kernels->row.softmax_backward(n, p->a->scale, s, delta, dp);
}

static void fill(int64_t n, float value, float *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = value;
}

static void load_delta(const struct kt_attend *p, const struct kt_attention_block *b)
{
    const struct kt_attention_args *a = p->a;
    for (int64_t r = 0; r < b->count; r++) {
        int64_t query = kt_attend_query(p, b, r), head = kt_attend_head(p, b, r);
        p->delta[head * p->queries + query] =
            p->kernels->row.dot(a->v_dim, kt_attend_at(&a->d_o, query, head, a->o_head_stride),
                                kt_attend_at(&a->o, query, head, a->o_head_stride));
    }
}

/* dq of the block's rows, accumulated in t->dq [ROWS, qk_dim]. */
static void query_gradients(const struct kt_attend *p, struct kt_attention_thread *t,
                            const struct kt_attention_block *b, int64_t key, int64_t keys,
                            bool accumulate)
{
    const struct kt_attention_args *a = p->a;
    struct kt_gemm_right v = kt_attend_v(p, b->kv_head, key, 1);
    struct kt_gemm_right k = kt_attend_k(p, b->kv_head, key, 0);
    kt_attend_scores(p, t, b, key, keys);
    kt_gemm_block(p->kernel, b->count, keys, a->v_dim, 1.0f, t->d_o, p->v_stride, &v, false, t->dp,
                  KEYS, t->panels);
    for (int64_t r = 0; r < b->count; r++) {
        int64_t query = kt_attend_query(p, b, r), head = kt_attend_head(p, b, r), first, last;
        kt_attend_visible(p, b->sequence, query, &first, &last);
        fill(keys, a->lse[head * p->queries + query], t->max);
        fill(keys, p->delta[head * p->queries + query], t->sum);
        gradient_row(p, keys, first - key, last - key, t->max, t->sum, t->s + r * KEYS,
                     t->dp + r * KEYS);
    }
    kt_attend_convert(p, t, t->dp, b->count, keys);
    kt_gemm_block(p->kernel, b->count, p->own, keys, 1.0f, t->p, p->key_stride, &k, accumulate,
                  t->dq, a->qk_dim, t->panels);
    if (!a->shared_dim)
        return;
    k = kt_attend_k_shared(p, key, 0);
    kt_gemm_block(p->kernel, b->count, a->shared_dim, keys, 1.0f, t->p, p->key_stride, &k,
                  accumulate, t->dq + p->own, a->qk_dim, t->panels);
}

static void query_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_attend *p = arg;
    const struct kt_attention_args *a = p->a;
    struct kt_attention_thread t = kt_attend_thread(p, thread);
    int64_t blocks = p->blocks[a->queries.num], from, to, ignored;
    for (int64_t i = begin; i < end; i++) {
        struct kt_attention_block b =
            kt_attend_block(p, p->cu_q, p->group, ROWS, blocks - 1 - i / a->num_kv_heads);
        b.kv_head = i % a->num_kv_heads;
        kt_attend_visible(p, b.sequence, kt_attend_query(p, &b, 0), &from, &ignored);
        kt_attend_visible(p, b.sequence, kt_attend_query(p, &b, b.count - 1), &ignored, &to);
        kt_attend_load_rows(p, &t, &b);
        load_delta(p, &b);
        for (int64_t key = from; key < to; key += KEYS)
            query_gradients(p, &t, &b, key, kt_min_i64(KEYS, to - key), key > from);
        for (int64_t r = 0; r < b.count; r++)
            memcpy(kt_attend_at(&a->dq, kt_attend_query(p, &b, r), kt_attend_head(p, &b, r),
                                a->q_head_stride),
                   t.dq + r * a->qk_dim, (size_t)a->qk_dim * sizeof(float));
    }
}

/* Keys and values of a block of keys as left factors, in t->q and t->d_o. */
static void load_keys(const struct kt_attend *p, struct kt_attention_thread *t, int64_t kv_head,
                      int64_t key, int64_t keys)
{
    const struct kt_attention_args *a = p->a;
    int64_t size = p->kernel->element_size, shared = kt_gemm_row_stride(p->kernel, p->own);
    for (int64_t r = 0; r < keys; r++) {
        int64_t j = key + r;
        p->kernel->convert(p->own, kt_attend_at(&a->k, j, kv_head, a->k_head_stride),
                           t->q + r * p->q_stride * size);
        if (a->shared_dim)
            p->kernel->convert(a->shared_dim, kt_attend_at(&a->k_shared, j, 0, 0),
                               t->q + (r * p->q_stride + shared) * size);
        p->kernel->convert(a->v_dim, kt_attend_at(&a->v, j, kv_head, a->v_head_stride),
                           t->d_o + r * p->v_stride * size);
    }
}

struct key_task {
    int32_t sequence;
    int64_t key, keys, head;
};

/* t->s = k q^T and t->dp = v d_o^T for queries [query, query + n) of one head. */
static void transposed_products(const struct kt_attend *p, struct kt_attention_thread *t,
                                const struct key_task *b, int64_t query, int64_t n)
{
    const struct kt_attention_args *a = p->a;
    const float *q = kt_attend_at(&a->q, query, b->head, a->q_head_stride);
    const float *d_o = kt_attend_at(&a->d_o, query, b->head, a->o_head_stride);
    struct kt_gemm_right r = kt_attend_right(q, a->q.ld, 1);
    kt_gemm_block(p->kernel, b->keys, n, p->own, 1.0f, t->q, p->q_stride, &r, false, t->s, KEYS,
                  t->panels);
    if (a->shared_dim) {
        r = kt_attend_right(q + p->own, a->q.ld, 1);
        kt_gemm_block(p->kernel, b->keys, n, a->shared_dim, 1.0f,
                      t->q + kt_gemm_row_stride(p->kernel, p->own) * p->kernel->element_size,
                      p->q_stride, &r, true, t->s, KEYS, t->panels);
    }
    r = kt_attend_right(d_o, a->d_o.ld, 1);
    kt_gemm_block(p->kernel, b->keys, n, a->v_dim, 1.0f, t->d_o, p->v_stride, &r, false, t->dp,
                  KEYS, t->panels);
}

static void key_gradients(const struct kt_attend *p, struct kt_attention_thread *t,
                          const struct key_task *b, int64_t query, int64_t n, bool first_block,
                          bool first_head)
{
    const struct kt_attention_args *a = p->a;
    int64_t kv_head = b->head / p->group;
    int64_t shift = p->cu_k[b->sequence + 1] - p->cu_q[b->sequence + 1];
    int64_t seen = a->window ? a->window : INT32_MAX; /* queries that see a key */
    const float *q = kt_attend_at(&a->q, query, b->head, a->q_head_stride);
    struct kt_gemm_right r =
        kt_attend_right(kt_attend_at(&a->d_o, query, b->head, a->o_head_stride), a->d_o.ld, 0);
    bool fresh = first_block && b->head % p->group == 0;
    transposed_products(p, t, b, query, n);
    for (int64_t i = 0; i < b->keys; i++) {
        int64_t first = b->key + i - shift - query;
        gradient_row(p, n, first, first + seen, a->lse + b->head * p->queries + query,
                     p->delta + b->head * p->queries + query, t->s + i * KEYS, t->dp + i * KEYS);
    }
    kt_attend_convert(p, t, t->s, b->keys, n);
    kt_gemm_block(p->kernel, b->keys, a->v_dim, n, 1.0f, t->p, p->key_stride, &r, !fresh,
                  kt_attend_at(&a->dv, b->key, kv_head, a->v_head_stride), a->dv.ld, t->panels);
    kt_attend_convert(p, t, t->dp, b->keys, n);
    r = kt_attend_right(q, a->q.ld, 0);
    kt_gemm_block(p->kernel, b->keys, p->own, n, 1.0f, t->p, p->key_stride, &r, !fresh,
                  kt_attend_at(&a->dk, b->key, kv_head, a->k_head_stride), a->dk.ld, t->panels);
    if (!a->shared_dim)
        return;
    r = kt_attend_right(q + p->own, a->q.ld, 0);
    kt_gemm_block(p->kernel, b->keys, a->shared_dim, n, 1.0f, t->p, p->key_stride, &r,
                  !(first_block && first_head), kt_attend_at(&a->dk_shared, b->key, 0, 0),
                  a->dk_shared.ld, t->panels);
}

static void clear_rows(int64_t rows, int64_t n, float *x, int64_t stride)
{
    for (int64_t r = 0; r < rows; r++)
        memset(x + r * stride, 0, (size_t)n * sizeof *x);
}

/* Keys that no query sees have no gradient. */
static void clear_keys(const struct kt_attend *p, const struct key_task *b, bool first_head)
{
    const struct kt_attention_args *a = p->a;
    int64_t kv_head = b->head / p->group;
    clear_rows(b->keys, p->own, kt_attend_at(&a->dk, b->key, kv_head, a->k_head_stride), a->dk.ld);
    clear_rows(b->keys, a->v_dim, kt_attend_at(&a->dv, b->key, kv_head, a->v_head_stride),
               a->dv.ld);
    if (a->shared_dim && first_head)
        clear_rows(b->keys, a->shared_dim, kt_attend_at(&a->dk_shared, b->key, 0, 0),
                   a->dk_shared.ld);
}

/* Queries [from, to) that see any of the block's keys. */
static void query_range(const struct kt_attend *p, const struct key_task *b, int64_t *from,
                        int64_t *to)
{
    const struct kt_attention_args *a = p->a;
    int64_t shift = p->cu_k[b->sequence + 1] - p->cu_q[b->sequence + 1];
    *from = kt_max_i64(p->cu_q[b->sequence], b->key - shift);
    *to = p->cu_q[b->sequence + 1];
    if (a->window)
        *to = kt_min_i64(*to, b->key + b->keys - 1 - shift + a->window);
}

/* Heads that one task of the second pass does: all, when they share a part of the key. */
static int64_t heads_of_task(const struct kt_attend *p)
{
    return p->a->shared_dim ? p->a->num_heads : p->group;
}

static void key_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_attend *p = arg;
    struct kt_attention_thread t = kt_attend_thread(p, thread);
    int64_t heads = heads_of_task(p), tasks = p->a->num_heads / heads, from, to;
    for (int64_t i = begin; i < end; i++) {
        struct kt_attention_block block = kt_attend_block(p, p->cu_k, 1, OWNED, i / tasks);
        struct key_task b = {.sequence = block.sequence,
                             .key = p->cu_k[block.sequence] + block.first,
                             .keys = block.count};
        query_range(p, &b, &from, &to);
        for (int64_t h = 0; h < heads; h++) {
            b.head = i % tasks * heads + h;
            if (from >= to)
                clear_keys(p, &b, h == 0);
            else if (b.head % p->group == 0)
                load_keys(p, &t, b.head / p->group, b.key, b.keys);
            for (int64_t query = from; query < to; query += KEYS)
                key_gradients(p, &t, &b, query, kt_min_i64(KEYS, to - query), query == from,
                              h == 0);
        }
    }
}

uint64_t kt_cpu_attention_backward_scratch(const struct kt_cpu_device *cpu,
                                           const struct kt_attention_args *a)
{
    struct kt_attend p;
    kt_attend_init(&p, cpu, a, true, true);
    if (!a->queries.num)
        return 0;
    return kt_attend_bytes(&p, cpu->pool) + (uint64_t)(p.queries * a->num_heads) * sizeof *p.delta;
}

void kt_cpu_attention_backward(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_attention_args *a = args;
    struct kt_pool *pool = kt_cpu(dev)->pool;
    struct kt_attend p;
    kt_attend_init(&p, kt_cpu(dev), a, true, false);
    if (!a->queries.num)
        return;
    kt_attend_place(&p, scratch);
    p.delta = (float *)(void *)((char *)scratch + kt_attend_bytes(&p, pool));
    int64_t blocks = kt_attend_count_blocks(&p, p.cu_q, p.group, ROWS);
    kt_parallel_for(pool, blocks * a->num_kv_heads, 1, query_blocks, &p);
    blocks = kt_attend_count_blocks(&p, p.cu_k, 1, OWNED);
    kt_parallel_for(pool, blocks * (a->num_heads / heads_of_task(&p)), 1, key_blocks, &p);
}
