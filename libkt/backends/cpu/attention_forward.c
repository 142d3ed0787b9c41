/* SPDX-License-Identifier: Apache-2.0 */
/* Forward: each task owns a block of rows and walks over its keys with a running maximum and sum
 * (arXiv 1805.02867). When few queries see many keys (decoding), a task owns a part of the keys as
 * well, and a second pass joins the parts in order. */
#include "backends/cpu/attention.h"

#include <math.h>
#include <string.h>

#include "core/memory.h"

enum { ROWS = KT_ATTENTION_ROWS, KEYS = KT_ATTENTION_KEYS };

static const float no_max = -1e30f;

/* Turns the scores of keys [key, key + keys) into unnormalised probabilities, zero where the row
 * does not see the key, and rescales what the rows have summed so far. */
static void accumulate_softmax(const struct kt_attend *p, struct kt_attention_thread *t,
                               const struct kt_attention_block *b, int64_t key, int64_t keys)
{
    const struct kt_row_kernels *row = &p->kernels->row;
    for (int64_t r = 0; r < b->count; r++) {
        float *s = t->s + r * KEYS;
        int64_t first, last;
        kt_attend_visible(p, b->sequence, kt_attend_query(p, b, r), &first, &last);
        first = kt_min_i64(kt_max_i64(first - key, 0), keys);
        last = kt_max_i64(kt_min_i64(last - key, keys), first);
        memset(s, 0, (size_t)first * sizeof *s);
        memset(s + last, 0, (size_t)(keys - last) * sizeof *s);
        if (first == last)
            continue;
        float best = row->max(last - first, s + first) * p->a->scale;
        if (best > t->max[r]) {
            float factor = expf(t->max[r] - best);
            t->sum[r] *= factor;
            row->scale_add(p->a->v_dim, factor, t->o + r * p->a->v_dim, false,
                           t->o + r * p->a->v_dim);
            t->max[r] = best;
        }
        t->sum[r] += row->exp_sum(last - first, p->a->scale, t->max[r], s + first, s + first);
    }
}

/* t->o, t->max, t->sum over keys [from, to) */
static void attend_keys(const struct kt_attend *p, struct kt_attention_thread *t,
                        const struct kt_attention_block *b, int64_t from, int64_t to)
{
    memset(t->o, 0, (size_t)(b->count * p->a->v_dim) * sizeof *t->o);
    for (int64_t r = 0; r < b->count; r++) {
        t->max[r] = no_max;
        t->sum[r] = 0;
    }
    for (int64_t key = from; key < to; key += KEYS) {
        int64_t keys = kt_min_i64(KEYS, to - key);
        struct kt_gemm_right v = kt_attend_v(p, b->kv_head, key, 0);
        kt_attend_scores(p, t, b, key, keys);
        accumulate_softmax(p, t, b, key, keys);
        kt_attend_convert(p, t, t->s, b->count, keys);
        kt_gemm_block(p->kernel, b->count, p->a->v_dim, keys, 1.0f, t->p, p->key_stride, &v, true,
                      t->o, p->a->v_dim, t->panels);
    }
}

static void write_row(const struct kt_attend *p, const struct kt_attention_block *b, int64_t r,
                      const float *o, float max, float sum)
{
    const struct kt_attention_args *a = p->a;
    int64_t query = kt_attend_query(p, b, r), head = kt_attend_head(p, b, r);
    p->kernels->row.scale_add(a->v_dim, 1.0f / sum, o, false,
                              kt_attend_at(&a->o, query, head, a->o_head_stride));
    if (a->lse)
        a->lse[head * p->queries + query] = max + logf(sum);
}

static float *part_of(const struct kt_attend *p, int64_t block, int64_t kv_head, int64_t split)
{
    int64_t index = (block * p->a->num_kv_heads + kv_head) * p->splits + split;
    return p->parts + index * ROWS * (p->a->v_dim + 2);
}

/* Keys that any row of the block sees, cut to the part. */
static void key_range(const struct kt_attend *p, const struct kt_attention_block *b, int64_t split,
                      int64_t *from, int64_t *to)
{
    int64_t ignored, start = p->cu_k[b->sequence] + split * p->split;
    kt_attend_visible(p, b->sequence, kt_attend_query(p, b, 0), from, &ignored);
    kt_attend_visible(p, b->sequence, kt_attend_query(p, b, b->count - 1), &ignored, to);
    if (p->splits == 1)
        return;
    *from = kt_max_i64(*from, start);
    *to = kt_min_i64(*to, start + p->split);
}

/* Task: (block, key/value head, part). The last blocks see most keys and go first. */
static void forward_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_attend *p = arg;
    struct kt_attention_thread t = kt_attend_thread(p, thread);
    int64_t heads = p->a->num_kv_heads, blocks = p->blocks[p->a->queries.num], from, to;
    for (int64_t i = begin; i < end; i++) {
        int64_t split = i % p->splits, kv_head = i / p->splits % heads;
        int64_t block = blocks - 1 - i / p->splits / heads;
        struct kt_attention_block b = kt_attend_block(p, p->cu_q, p->group, ROWS, block);
        b.kv_head = kv_head;
        key_range(p, &b, split, &from, &to);
        kt_attend_load_rows(p, &t, &b);
        attend_keys(p, &t, &b, from, to);
        for (int64_t r = 0; r < b.count && p->splits == 1; r++)
            write_row(p, &b, r, t.o + r * p->a->v_dim, t.max[r], t.sum[r]);
        for (int64_t r = 0; r < b.count && p->splits > 1; r++) {
            float *part = part_of(p, block, kv_head, split) + r * (p->a->v_dim + 2);
            part[0] = t.max[r];
            part[1] = t.sum[r];
            memcpy(part + 2, t.o + r * p->a->v_dim, (size_t)p->a->v_dim * sizeof *part);
        }
    }
}

/* Task: (block, key/value head). */
static void join_parts(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_attend *p = arg;
    struct kt_attention_thread t = kt_attend_thread(p, thread);
    int64_t heads = p->a->num_kv_heads, dim = p->a->v_dim;
    for (int64_t i = begin; i < end; i++) {
        struct kt_attention_block b = kt_attend_block(p, p->cu_q, p->group, ROWS, i / heads);
        b.kv_head = i % heads;
        for (int64_t r = 0; r < b.count; r++) {
            float max = no_max, sum = 0;
            for (int64_t split = 0; split < p->splits; split++)
                max = fmaxf(max, part_of(p, i / heads, i % heads, split)[r * (dim + 2)]);
            memset(t.o, 0, (size_t)dim * sizeof *t.o);
            for (int64_t split = 0; split < p->splits; split++) {
                const float *part = part_of(p, i / heads, i % heads, split) + r * (dim + 2);
                float factor = expf(part[0] - max);
                sum += factor * part[1];
                p->kernels->row.scale_add(dim, factor, part + 2, true, t.o);
            }
            write_row(p, &b, r, t.o, max, sum);
        }
    }
}

/* Parts depend on the shapes alone, so that bits do not depend on the number of threads. */
static void choose_splits(struct kt_attend *p)
{
    const struct kt_attention_args *a = p->a;
    int64_t rows = 0, keys = 0;
    for (int32_t s = 0; s < a->queries.num; s++) {
        rows = kt_max_i64(rows, (p->cu_q[s + 1] - p->cu_q[s]) * p->group);
        keys = kt_max_i64(keys, p->cu_k[s + 1] - p->cu_k[s]);
    }
    p->longest = keys;
    p->split = kt_max_i64(KT_ATTENTION_MIN_SPLIT,
                          (keys / KT_ATTENTION_MAX_SPLITS + KEYS - 1) / KEYS * KEYS);
    p->splits = rows <= ROWS && keys > p->split ? (keys + p->split - 1) / p->split : 1;
}

/* Parts exist when a sequence has at most one block. Fewer keys may make more of them. */
static uint64_t parts_bytes(const struct kt_attend *p)
{
    int64_t most = kt_min_i64(KT_ATTENTION_MAX_SPLITS + 1, p->longest / KT_ATTENTION_MIN_SPLIT + 1);
    if (p->splits == 1)
        return 0;
    return (uint64_t)(p->a->queries.num * p->a->num_kv_heads * most) * ROWS *
           (uint64_t)(p->a->v_dim + 2) * sizeof(float);
}

uint64_t kt_cpu_attention_forward_scratch(const struct kt_cpu_device *cpu,
                                          const struct kt_attention_args *a)
{
    struct kt_attend p;
    kt_attend_init(&p, cpu, a, false, true);
    if (!p.queries)
        return 0;
    choose_splits(&p);
    return kt_attend_bytes(&p, cpu->pool) + parts_bytes(&p);
}

void kt_cpu_attention_forward(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_attention_args *a = args;
    struct kt_pool *pool = kt_cpu(dev)->pool;
    struct kt_attend p;
    kt_attend_init(&p, kt_cpu(dev), a, false, false);
    if (!p.queries)
        return;
    choose_splits(&p);
    kt_attend_place(&p, scratch);
    p.parts = (float *)(void *)((char *)scratch + kt_attend_bytes(&p, pool));
    int64_t blocks = kt_attend_count_blocks(&p, p.cu_q, p.group, ROWS);
    int64_t tasks = blocks * a->num_kv_heads * p.splits;
    bool small = kt_gemm_is_small(p.queries * a->num_heads, p.longest, a->qk_dim + a->v_dim);
    kt_parallel_for(pool, tasks, small ? tasks : 1, forward_blocks, &p);
    if (p.splits > 1)
        kt_parallel_for(pool, blocks * a->num_kv_heads, 1, join_parts, &p);
}
