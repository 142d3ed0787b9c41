/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/attention.h
 * What attention's forward and backward share.
 *
 * The queries of a sequence that use the same key/value head are its rows: row r is query
 * r / group, head r % group of that key/value head, so that grouped and multi-query attention fill
 * the matrix kernels even with one query. Work is cut into blocks of rows and blocks of keys; a
 * block's scores stay in the thread's scratch. */
#ifndef KT_BACKENDS_CPU_ATTENTION_H
#define KT_BACKENDS_CPU_ATTENTION_H

#include "backends/cpu/gemm.h"

enum {
    KT_ATTENTION_ROWS = 128,      /**< rows of a block of queries */
    KT_ATTENTION_KEYS = 128,      /**< keys of a block in the passes that own queries */
    KT_ATTENTION_OWNED_KEYS = 64, /**< keys of a block in the pass that owns keys */
    KT_ATTENTION_MIN_SPLIT = 512, /**< keys of a part when few queries see many keys */
    KT_ATTENTION_MAX_SPLITS = 64
};

struct kt_attend {
    const struct kt_kernels *kernels;
    const struct kt_gemm_kernel *kernel;
    const struct kt_attention_args *a;
    const int32_t *cu_q, *cu_k; /**< offsets of queries and keys */
    bool backward;
    int64_t group;   /**< heads of a key/value head */
    int64_t queries; /**< of all sequences */
    int64_t own;     /**< features of a key that are not shared */
    int64_t q_stride, v_stride,
        key_stride;        /**< of converted rows of qk_dim, v_dim, a block's keys */
    int64_t *blocks;       /**< [num_sequences + 1] blocks before a sequence */
    int64_t longest;       /**< keys of the longest sequence */
    int64_t split, splits; /**< keys of a part, and parts of the longest sequence */
    float *parts;          /**< [blocks, kv heads, splits, ROWS, v_dim + 2], when splits > 1 */
    float *delta;          /**< [num_heads, queries]: <d_o, o> */
    char *threads;
    uint64_t thread_bytes;
};

/** Rows [first, first + count) of sequence s and key/value head. */
struct kt_attention_block {
    int32_t sequence;
    int64_t kv_head, first, count;
};

struct kt_attention_thread {
    char *q, *d_o;    /**< converted rows of a block of queries; or of keys and values */
    char *p;          /**< converted probabilities or their gradients */
    float *s, *dp;    /**< [ROWS, KEYS] */
    float *o, *dq;    /**< [ROWS, v_dim], [ROWS, qk_dim] */
    float *max, *sum; /**< [ROWS] */
    void *panels;
};

/** Fills what does not depend on the pass. Offsets are the device's when it runs, and the host's
 * when it is `measured`. */
void kt_attend_init(struct kt_attend *p, const struct kt_cpu_device *cpu,
                    const struct kt_attention_args *a, bool backward, bool measured);

/** Bytes of the index of blocks and the threads' scratch; kt_attend_place lays them out. */
uint64_t kt_attend_bytes(const struct kt_attend *p, const struct kt_pool *pool);
void kt_attend_place(struct kt_attend *p, char *memory);
struct kt_attention_thread kt_attend_thread(const struct kt_attend *p, int32_t thread);

/** Blocks of `size` out of per_item x (queries or keys) of each sequence; returns their number. */
int64_t kt_attend_count_blocks(struct kt_attend *p, const int32_t *offsets, int64_t per_item,
                               int64_t size);
struct kt_attention_block kt_attend_block(const struct kt_attend *p, const int32_t *offsets,
                                          int64_t per_item, int64_t size, int64_t block);

static inline int64_t kt_attend_query(const struct kt_attend *p, const struct kt_attention_block *b,
                                      int64_t row)
{
    return p->cu_q[b->sequence] + (b->first + row) / p->group;
}

static inline int64_t kt_attend_head(const struct kt_attend *p, const struct kt_attention_block *b,
                                     int64_t row)
{
    return b->kv_head * p->group + (b->first + row) % p->group;
}

/** Keys [first, last) of its sequence, in packed numbers, that packed query t sees. */
static inline void kt_attend_visible(const struct kt_attend *p, int32_t s, int64_t t,
                                     int64_t *first, int64_t *last)
{
    *last = t + p->cu_k[s + 1] - p->cu_q[s + 1] + 1;
    *first = p->cu_k[s];
    if (p->a->window && *first < *last - p->a->window)
        *first = *last - p->a->window;
}

/** Where row `row` of a view and head `head` begin. */
static inline float *kt_attend_at(const struct kt_view *view, int64_t row, int64_t head,
                                  int64_t head_stride)
{
    return (float *)view->data + row * view->ld + head * head_stride;
}

/** Rows of such a view as a right factor. */
static inline struct kt_gemm_right kt_attend_right(const float *data, int64_t ld, bool transposed)
{
    return (struct kt_gemm_right){.matrix = {data, KT_DTYPE_F32, ld}, .transposed = transposed};
}

/** Converts the rows of q (and of d_o, when there are gradients) of a block. */
void kt_attend_load_rows(const struct kt_attend *p, struct kt_attention_thread *t,
                         const struct kt_attention_block *b);
/** t->s [rows, keys] = q k^T for keys [key, key + keys), before the scale */
void kt_attend_scores(const struct kt_attend *p, struct kt_attention_thread *t,
                      const struct kt_attention_block *b, int64_t key, int64_t keys);
/** Converts `rows` rows of t->s or t->dp into t->p. */
void kt_attend_convert(const struct kt_attend *p, struct kt_attention_thread *t, const float *from,
                       int64_t rows, int64_t keys);

/** Keys and values of a block as right factors. */
struct kt_gemm_right kt_attend_k(const struct kt_attend *p, int64_t kv_head, int64_t key,
                                 bool transposed);
struct kt_gemm_right kt_attend_k_shared(const struct kt_attend *p, int64_t key, bool transposed);
struct kt_gemm_right kt_attend_v(const struct kt_attend *p, int64_t kv_head, int64_t key,
                                 bool transposed);

#endif
