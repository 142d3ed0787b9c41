/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/experts_cpu/experts.h
 * The experts backend "llamafile" from inside: CPUs without AMX. Its products are those of
 * backends/cpu/gemm.h, which read weights in any format where they lie.
 *
 * Slots (token, j) are sorted by expert into rows and worked on in chunks of consecutive rows, so
 * that scratch is bounded and a weight is read once a call but for experts that straddle chunks. A
 * phase over a chunk is a list of tasks (row block of one expert) x (block of columns), each of
 * which owns its results; rows are summed into tokens in a last phase that owns tokens. So bits do
 * not depend on the number of threads, nor on the nodes, each of which owns blocks of columns. */
#ifndef KT_BACKENDS_EXPERTS_CPU_EXPERTS_H
#define KT_BACKENDS_EXPERTS_CPU_EXPERTS_H

#include "backend/experts.h"
#include "backends/cpu/gemm.h"
#include "core/memory.h"

enum {
    KT_EXPERT_BLOCK_ROWS = 512,
    KT_EXPERT_BLOCK_COLS = KT_GEMM_BLOCK_COLS,
    KT_EXPERT_MIN_CHUNK_ROWS = 64
};

struct kt_llamafile_experts {
    struct kt_experts base;
    struct kt_kernels kernels;
    struct kt_scratch scratch;
    uint64_t chunk_bytes; /**< a chunk has as many rows as fit, but at least MIN_CHUNK_ROWS */
};

kt_status kt_llamafile_open(kt_context *ctx, struct kt_experts **out);

/** Rows [first, first + count) of the chunk, all of one expert. */
struct kt_expert_rows {
    int32_t expert;
    int64_t first, count;
};

/** What one thread works in. Tiles are BLOCK_ROWS x BLOCK_COLS floats. */
struct kt_expert_thread {
    void *panels;
    float *gate, *up, *dh, *tile;
    float *left; /**< [max_rank, BLOCK_COLS] */
    float *sum;  /**< likewise */
};

/** One call, and the chunk that it is at. Row strides are in elements of the buffer. */
struct kt_expert_call {
    struct kt_pool *pool;
    const struct kt_kernels *kernels;
    const struct kt_gemm_kernel *kernel; /**< of the batch's compute */
    const struct kt_expert_layer *layer;
    const struct kt_expert_batch *batch;
    const float *dy; /**< NULL in forward */
    float *sum;      /**< y, or dx in backward */
    float *dtopk_weights;
    int64_t hidden, inter, hidden_stride, inter_stride, max_rank;
    int has_lora[KT_EXPERT_LINEARS];

    int32_t *order;                          /**< [slots] slot of a row */
    int32_t *position;                       /**< [slots] row of a slot */
    int64_t *first;                          /**< [num_experts + 1] first row of an expert */
    int64_t begin, end;                      /**< rows of the chunk */
    struct kt_expert_rows *experts, *blocks; /**< of the chunk: whole, and cut into row blocks */
    int64_t num_experts, num_blocks;
    int64_t block_cols; /**< columns of a task, and floats between rows of a thread's tiles */

    char *x, *dy_rows;                     /**< [rows, hidden] converted */
    char *h;                               /**< [rows, inter] converted; in backward dgate */
    char *dup;                             /**< [rows, inter] converted */
    float *out;                            /**< [rows, hidden] */
    float *partial;                        /**< [rows, blocks of inter] sums of d(topk_weights) */
    float *h_full, *dgate_full, *dup_full; /**< [rows, inter] float32, for LoRA */
    float *low[KT_EXPERT_LINEARS], *dlow[KT_EXPERT_LINEARS]; /**< [rows, max_rank] */
    char *threads;
    uint64_t thread_bytes;
};

static inline int64_t kt_blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

static inline int32_t kt_expert_slot(const struct kt_expert_call *c, int64_t row)
{
    return c->order[c->begin + row];
}

static inline int64_t kt_expert_token(const struct kt_expert_call *c, int64_t row)
{
    return kt_expert_slot(c, row) / c->batch->topk;
}

static inline const struct kt_lora_pair *kt_expert_lora(const struct kt_expert_call *c, int which,
                                                        int32_t expert)
{
    const struct kt_lora_pair *lora = c->has_lora[which] ? &c->layer->lora[which][expert] : NULL;
    return lora && lora->a ? lora : NULL;
}

struct kt_expert_thread kt_expert_thread_scratch(const struct kt_expert_call *c, int32_t thread);

/* experts_linear.c: a linear and its transposition over one block, LoRA included */

/** tile [count, cols] = columns [col, col + cols) of the linear's output for `rows`; `in` converted
 */
void kt_expert_linear(const struct kt_expert_call *c, struct kt_expert_thread *t, int which,
                      const struct kt_expert_rows *rows, const char *in, int64_t in_stride,
                      int64_t col, int64_t cols, float *tile, int64_t ld);
/** tile (+)= columns of the linear's input gradient from `dout` converted */
void kt_expert_linear_backward(const struct kt_expert_call *c, struct kt_expert_thread *t,
                               int which, const struct kt_expert_rows *rows, const char *dout,
                               int64_t dout_stride, int64_t col, int64_t cols, int accumulate,
                               float *tile, int64_t ld);
/** low = input A^T and dlow = scale * d(output) B of the linears that have LoRA, over the chunk */
void kt_expert_low(struct kt_expert_call *c, int which);
void kt_expert_dlow(struct kt_expert_call *c, int which);
/** Adds to da and db of all linears, over the chunk. */
void kt_expert_lora_gradients(struct kt_expert_call *c);

/* The phases of one chunk. */
void kt_expert_chunk_forward(struct kt_expert_call *c);
void kt_expert_chunk_backward(struct kt_expert_call *c);

/** Converts rows of x (or dy) of the chunk's tokens. */
void kt_expert_gather(struct kt_expert_call *c, const float *from, char *to);
/** sum[token] += out[row] times the row's weight (or 1) */
void kt_expert_scatter(struct kt_expert_call *c, int weighted);

#endif
