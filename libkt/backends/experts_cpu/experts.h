/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/experts_cpu/experts.h
 * The experts backend "cpu" from inside: any processor, any weights, LoRA included. Its products
 * are those of backends/cpu/gemm.h, which read weights in any format where they lie.
 *
 * The rows of a routing are worked on in chunks, so that scratch is bounded and a weight is read
 * once a call but for experts that straddle chunks. A phase over a chunk is a list of tasks (row
 * block of one expert) x (block of columns), each of which owns its results; rows are summed into
 * tokens in a last phase that owns tokens. How an expert is multiplied depends on all of its rows,
 * and a chunk ends with it or with a whole piece of those that gradients of LoRA are summed by. So
 * bits depend neither on the number of threads and nodes, each of which owns blocks of columns, nor
 * on chunks. */
#ifndef KT_BACKENDS_EXPERTS_CPU_EXPERTS_H
#define KT_BACKENDS_EXPERTS_CPU_EXPERTS_H

#include "backend/experts.h"
#include "backends/cpu/gemm.h"
#include "core/memory.h"

enum {
    KT_EXPERT_BLOCK_ROWS = 512,
    KT_EXPERT_BLOCK_COLS = KT_GEMM_BLOCK_COLS,
    KT_EXPERT_PIECE_ROWS = KT_EXPERT_BLOCK_COLS, /**< of an expert, from its first on; a chunk has
                                                 one at least */
};

struct kt_experts_cpu {
    struct kt_experts base;
    struct kt_kernels kernels;
    struct kt_bound_scratch bound;
    uint64_t chunk_bytes; /**< a chunk has as many rows as fit, but at least a piece */
};

kt_status kt_experts_cpu_open(kt_context *ctx, struct kt_experts **out);

/** Rows [first, first + count) of the chunk, all of one expert, which has `all` in the call. */
struct kt_experts_cpu_rows {
    int32_t expert;
    int64_t first, count, all;
};

/** What one thread works in. Tiles are BLOCK_ROWS x BLOCK_COLS floats. */
struct kt_experts_cpu_thread {
    void *panels;
    float *gate, *up, *dh, *tile;
    float *left; /**< [max_rank, BLOCK_COLS] */
    float *sum;  /**< likewise */
};

/** One call, and the chunk that it is at. Row strides are in elements of the buffer. */
struct kt_experts_cpu_call {
    const struct kt_expert_call *given;
    const struct kt_expert_layer *layer;
    const struct kt_routing *routing;
    struct kt_pool *pool;
    const struct kt_kernels *kernels;
    const struct kt_gemm_kernel *kernel; /**< of the call's compute */
    bool backward;
    struct kt_view x, dy, sum; /**< sum: y, or dx in backward */
    float *dweights;
    int64_t hidden, inter, hidden_stride, inter_stride, max_rank;
    bool has_lora[KT_EXPERT_LINEARS];

    int64_t begin, end;                           /**< rows of the chunk */
    struct kt_experts_cpu_rows *experts, *blocks; /**< of it: whole, and cut into row blocks */
    int64_t num_experts, num_blocks;
    int64_t block_cols; /**< columns of a task, and floats between rows of a thread's tiles */

    char *x_rows, *dy_rows;                /**< [rows, hidden] converted */
    char *h;                               /**< [rows, inter] converted; in backward dgate */
    char *dup;                             /**< [rows, inter] converted */
    float *out;                            /**< [rows, hidden] */
    float *partial;                        /**< [rows, blocks of inter] sums of d(weights) */
    float *h_full, *dgate_full, *dup_full; /**< [rows, inter] float32, for LoRA */
    float *low[KT_EXPERT_LINEARS], *dlow[KT_EXPERT_LINEARS]; /**< [rows, max_rank] */
    char *threads;
    uint64_t thread_bytes;
};

static inline int64_t kt_blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

static inline int32_t kt_experts_cpu_slot(const struct kt_experts_cpu_call *c, int64_t row)
{
    return c->routing->slots[c->begin + row];
}

static inline int64_t kt_experts_cpu_token(const struct kt_experts_cpu_call *c, int64_t row)
{
    return kt_experts_cpu_slot(c, row) / c->routing->topk;
}

/** Row `token` of a view of float32. */
static inline float *kt_experts_cpu_row(struct kt_view view, int64_t token)
{
    return kt_view_at(view, token, 0).data;
}

static inline const struct kt_lora_pair *kt_experts_cpu_lora(const struct kt_experts_cpu_call *c,
                                                             int which, int32_t expert)
{
    const struct kt_lora_pair *lora = c->has_lora[which] ? &c->layer->lora[which][expert] : NULL;
    return lora && lora->a ? lora : NULL;
}

struct kt_experts_cpu_thread kt_experts_cpu_thread_scratch(const struct kt_experts_cpu_call *c,
                                                           int32_t thread);

/* experts_linear.c: a linear and its transposition over one block, LoRA included */

/** tile [count, cols] = columns [col, col + cols) of the linear's output for `rows`; `in` converted
 */
void kt_experts_cpu_linear(const struct kt_experts_cpu_call *c, struct kt_experts_cpu_thread *t,
                           int which, const struct kt_experts_cpu_rows *rows, const char *in,
                           int64_t in_stride, int64_t col, int64_t cols, float *tile, int64_t ld);
/** tile (+)= columns of the linear's input gradient from `dout` converted */
void kt_experts_cpu_linear_backward(const struct kt_experts_cpu_call *c,
                                    struct kt_experts_cpu_thread *t, int which,
                                    const struct kt_experts_cpu_rows *rows, const char *dout,
                                    int64_t dout_stride, int64_t col, int64_t cols, bool accumulate,
                                    float *tile, int64_t ld);
/** low = input A^T and dlow = scale * d(output) B of the linears that have LoRA, over the chunk */
void kt_experts_cpu_low(struct kt_experts_cpu_call *c, int which);
void kt_experts_cpu_dlow(struct kt_experts_cpu_call *c, int which);
/** Adds to da and db of all linears, over the chunk. */
void kt_experts_cpu_lora_gradients(struct kt_experts_cpu_call *c);

/* The phases of one chunk. */
void kt_experts_cpu_chunk_forward(struct kt_experts_cpu_call *c);
void kt_experts_cpu_chunk_backward(struct kt_experts_cpu_call *c);

/** Converts rows of x (or dy) of the chunk's tokens. */
void kt_experts_cpu_gather(struct kt_experts_cpu_call *c, struct kt_view from, char *to);
/** sum[token] += out[row], in forward times the row's weight */
void kt_experts_cpu_scatter(struct kt_experts_cpu_call *c);

#endif
