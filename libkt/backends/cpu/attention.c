/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks, scratch and right factors of attention. */
#include "backends/cpu/attention.h"

#include <string.h>

#include "core/memory.h"

enum { ROWS = KT_ATTENTION_ROWS, KEYS = KT_ATTENTION_KEYS };

void kt_attend_init(struct kt_attend *p, const struct kt_cpu_device *cpu,
                    const struct kt_attention_args *a, bool backward, bool measured)
{
    *p = (struct kt_attend){.kernels = &cpu->kernels, .a = a, .backward = backward};
    p->cu_q = measured ? a->queries.host : a->queries.device;
    p->cu_k = measured ? a->keys.host : a->keys.device;
    p->kernel = kt_gemm_kernel_for(p->kernels, a->compute);
    p->group = a->num_heads / a->num_kv_heads;
    p->queries = a->queries.num ? p->cu_q[a->queries.num] : 0;
    p->own = a->qk_dim - a->shared_dim;
    p->q_stride =
        kt_gemm_row_stride(p->kernel, p->own) + kt_gemm_row_stride(p->kernel, a->shared_dim);
    p->v_stride = kt_gemm_row_stride(p->kernel, a->v_dim);
    p->key_stride = kt_gemm_row_stride(p->kernel, KEYS);
}

static uint64_t line(uint64_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Lays out one thread's scratch at `at`; returns its bytes. */
static uint64_t place_thread(const struct kt_attend *p, char *at, struct kt_attention_thread *t)
{
    uint64_t element = (uint64_t)p->kernel->element_size, used = 0;
    struct {
        void *pointer;
        uint64_t bytes;
    } list[] = {
        {&t->q, ROWS * (uint64_t)p->q_stride * element},
        {&t->d_o, ROWS * (uint64_t)p->v_stride * element},
        {&t->p, ROWS * (uint64_t)p->key_stride * element},
        {&t->s, ROWS * KEYS * sizeof(float)},
        {&t->dp, ROWS * KEYS * sizeof(float)},
        {&t->o, ROWS * (uint64_t)p->a->v_dim * sizeof(float)},
        {&t->dq, p->backward ? ROWS * (uint64_t)p->a->qk_dim * sizeof(float) : 0},
        {&t->max, ROWS * sizeof(float)},
        {&t->sum, ROWS * sizeof(float)},
        {&t->panels, kt_gemm_panel_bytes(p->kernel)},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char *pointer = at ? at + used : NULL;
        memcpy(list[i].pointer, &pointer, sizeof pointer);
        used += line(list[i].bytes);
    }
    return used;
}

static uint64_t index_bytes(const struct kt_attend *p)
{
    return line(((uint64_t)p->a->queries.num + 1) * sizeof *p->blocks);
}

uint64_t kt_attend_bytes(const struct kt_attend *p, const struct kt_pool *pool)
{
    struct kt_attention_thread t;
    return index_bytes(p) + (uint64_t)kt_pool_num_threads(pool) * place_thread(p, NULL, &t);
}

void kt_attend_place(struct kt_attend *p, char *memory)
{
    struct kt_attention_thread t;
    p->blocks = (int64_t *)(void *)memory;
    p->threads = memory + index_bytes(p);
    p->thread_bytes = place_thread(p, NULL, &t);
}

struct kt_attention_thread kt_attend_thread(const struct kt_attend *p, int32_t thread)
{
    struct kt_attention_thread t;
    place_thread(p, p->threads + (uint64_t)thread * p->thread_bytes, &t);
    return t;
}

int64_t kt_attend_count_blocks(struct kt_attend *p, const int32_t *offsets, int64_t per_item,
                               int64_t size)
{
    p->blocks[0] = 0;
    for (int32_t s = 0; s < p->a->queries.num; s++) {
        int64_t rows = (offsets[s + 1] - offsets[s]) * per_item;
        p->blocks[s + 1] = p->blocks[s] + (rows + size - 1) / size;
    }
    return p->blocks[p->a->queries.num];
}

struct kt_attention_block kt_attend_block(const struct kt_attend *p, const int32_t *offsets,
                                          int64_t per_item, int64_t size, int64_t block)
{
    int32_t low = 0, high = p->a->queries.num - 1;
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (p->blocks[middle] <= block)
            low = middle;
        else
            high = middle - 1;
    }
    struct kt_attention_block b = {.sequence = low, .first = (block - p->blocks[low]) * size};
    b.count = kt_min_i64(size, (offsets[low + 1] - offsets[low]) * per_item - b.first);
    return b;
}

void kt_attend_load_rows(const struct kt_attend *p, struct kt_attention_thread *t,
                         const struct kt_attention_block *b)
{
    const struct kt_attention_args *a = p->a;
    int64_t size = p->kernel->element_size;
    int64_t shared = kt_gemm_row_stride(p->kernel, p->own);
    for (int64_t r = 0; r < b->count; r++) {
        int64_t query = kt_attend_query(p, b, r), head = kt_attend_head(p, b, r);
        const float *q = kt_attend_at(&a->q, query, head, a->q_head_stride);
        p->kernel->convert(p->own, q, t->q + r * p->q_stride * size);
        if (a->shared_dim)
            p->kernel->convert(a->shared_dim, q + p->own, t->q + (r * p->q_stride + shared) * size);
        if (p->backward)
            p->kernel->convert(a->v_dim, kt_attend_at(&a->d_o, query, head, a->o_head_stride),
                               t->d_o + r * p->v_stride * size);
    }
}

void kt_attend_scores(const struct kt_attend *p, struct kt_attention_thread *t,
                      const struct kt_attention_block *b, int64_t key, int64_t keys)
{
    struct kt_gemm_right k = kt_attend_k(p, b->kv_head, key, 1);
    kt_gemm_block(p->kernel, b->count, keys, p->own, 1.0f, t->q, p->q_stride, &k, false, t->s, KEYS,
                  t->panels);
    if (!p->a->shared_dim)
        return;
    k = kt_attend_k_shared(p, key, 1);
    kt_gemm_block(p->kernel, b->count, keys, p->a->shared_dim, 1.0f,
                  t->q + kt_gemm_row_stride(p->kernel, p->own) * p->kernel->element_size,
                  p->q_stride, &k, true, t->s, KEYS, t->panels);
}

void kt_attend_convert(const struct kt_attend *p, struct kt_attention_thread *t, const float *from,
                       int64_t rows, int64_t keys)
{
    for (int64_t r = 0; r < rows; r++)
        p->kernel->convert(keys, from + r * KEYS,
                           t->p + r * p->key_stride * p->kernel->element_size);
}

struct kt_gemm_right kt_attend_k(const struct kt_attend *p, int64_t kv_head, int64_t key,
                                 bool transposed)
{
    const struct kt_attention_args *a = p->a;
    return kt_attend_right(kt_attend_at(&a->k, key, kv_head, a->k_head_stride), a->k.ld,
                           transposed);
}

struct kt_gemm_right kt_attend_k_shared(const struct kt_attend *p, int64_t key, bool transposed)
{
    const struct kt_view *k = &p->a->k_shared;
    return kt_attend_right(kt_attend_at(k, key, 0, 0), k->ld, transposed);
}

struct kt_gemm_right kt_attend_v(const struct kt_attend *p, int64_t kv_head, int64_t key,
                                 bool transposed)
{
    const struct kt_attention_args *a = p->a;
    return kt_attend_right(kt_attend_at(&a->v, key, kv_head, a->v_head_stride), a->v.ld,
                           transposed);
}
