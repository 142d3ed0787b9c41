/* SPDX-License-Identifier: Apache-2.0 */
/* Forward and backward of one chunk of rows, phase by phase. */
#include <string.h>

#include "backends/llamafile/experts.h"
#include "core/memory.h"

/* One block of rows and of columns. */
struct task {
    const struct kt_expert_rows *rows;
    int64_t block, col, cols;
};

/* Task i over columns of `features`: node by node, for each block of rows, all blocks of columns
 * that the node owns. */
static struct task task_at(const struct kt_expert_call *c, int64_t i, int64_t features)
{
    int64_t blocks = kt_blocks(features, c->block_cols);
    int32_t node = kt_pool_owner(c->pool, blocks, c->num_blocks, i);
    int64_t first = kt_pool_first(c->pool, node, blocks);
    int64_t owned = kt_pool_first(c->pool, node + 1, blocks) - first;
    i -= c->num_blocks * first;
    struct task t = {.rows = &c->blocks[i / owned], .block = first + i % owned};
    t.col = t.block * c->block_cols;
    t.cols = kt_min_i64(c->block_cols, features - t.col);
    return t;
}

/* Threads take tasks of columns that their node owns first, so that a node reads about the same
 * part of a weight in every step. */
static void run_tasks(struct kt_expert_call *c, int64_t features, kt_range_fn fn)
{
    kt_parallel_for_nodes(c->pool, kt_blocks(features, c->block_cols), c->num_blocks, 1, fn, c);
}

static char *inter_row(const struct kt_expert_call *c, char *buffer, int64_t row, int64_t col)
{
    return buffer + (row * c->inter_stride + col) * c->kernel->element_size;
}

static void keep_full(const struct kt_expert_call *c, float *buffer, int64_t row, int64_t col,
                      int64_t cols, const float *from)
{
    if (buffer)
        memcpy(buffer + row * c->inter + col, from, (size_t)cols * sizeof *from);
}

/* Gate and up products of a row, as the caller keeps them. */
static float *kept_row(const struct kt_expert_call *c, int64_t row, int which, int64_t col)
{
    return c->batch->kept + (2 * (int64_t)kt_expert_slot(c, row) + which) * c->inter + col;
}

/* h = act(gate) * up */
static void gate_up_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->inter);
        int64_t first = task.rows->first, col = task.col, cols = task.cols;
        kt_expert_linear(c, &t, KT_EXPERT_GATE, task.rows, c->x, c->hidden_stride, col, cols,
                         t.gate, c->block_cols);
        kt_expert_linear(c, &t, KT_EXPERT_UP, task.rows, c->x, c->hidden_stride, col, cols, t.up,
                         c->block_cols);
        for (int64_t r = 0; r < task.rows->count; r++) {
            float *h = t.gate + r * c->block_cols, *up = t.up + r * c->block_cols;
            if (c->batch->kept) {
                memcpy(kept_row(c, first + r, KT_EXPERT_GATE, col), h, (size_t)cols * sizeof *h);
                memcpy(kept_row(c, first + r, KT_EXPERT_UP, col), up, (size_t)cols * sizeof *up);
            }
            c->kernels->row.silu_mul(cols, h, up, h);
            c->kernel->convert(cols, h, inter_row(c, c->h, first + r, col));
            keep_full(c, c->h_full, first + r, col, cols, h);
        }
    }
}

static void down_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->hidden);
        kt_expert_linear(c, &t, KT_EXPERT_DOWN, task.rows, c->h, c->inter_stride, task.col,
                         task.cols, c->out + task.rows->first * c->hidden + task.col, c->hidden);
    }
}

void kt_expert_chunk_forward(struct kt_expert_call *c)
{
    kt_expert_gather(c, c->batch->x, c->x);
    kt_expert_low(c, KT_EXPERT_GATE);
    kt_expert_low(c, KT_EXPERT_UP);
    run_tasks(c, c->inter, gate_up_blocks);
    kt_expert_low(c, KT_EXPERT_DOWN);
    run_tasks(c, c->hidden, down_blocks);
    kt_expert_scatter(c, 1);
}

/* One row of a block: the part of d(topk_weight), and dgate and dup in place of gate and up. */
static void activate_row(const struct kt_expert_call *c, struct kt_expert_thread *t, int64_t row,
                         int64_t r, int64_t block, int64_t cols)
{
    float *gate = t->gate + r * c->block_cols, *up = t->up + r * c->block_cols,
          *dh = t->dh + r * c->block_cols, *h = t->tile;
    float weight = c->batch->topk_weights[kt_expert_slot(c, row)];
    int64_t col = block * c->block_cols;
    c->kernels->row.silu_mul(cols, gate, up, h);
    c->partial[row * kt_blocks(c->inter, c->block_cols) + block] = c->kernels->row.dot(cols, dh, h);
    keep_full(c, c->h_full, row, col, cols, h);
    c->kernels->row.silu_mul_backward(cols, weight, gate, up, dh, gate, up);
    c->kernel->convert(cols, gate, inter_row(c, c->h, row, col));
    c->kernel->convert(cols, up, inter_row(c, c->dup, row, col));
    keep_full(c, c->dgate_full, row, col, cols, gate);
    keep_full(c, c->dup_full, row, col, cols, up);
}

/* Gate and up products of a block, kept or computed again, in the thread's tiles. */
static void gate_and_up(const struct kt_expert_call *c, struct kt_expert_thread *t,
                        const struct task *task)
{
    const struct kt_expert_rows *rows = task->rows;
    int64_t col = task->col, cols = task->cols;
    if (!c->batch->kept) {
        kt_expert_linear(c, t, KT_EXPERT_GATE, rows, c->x, c->hidden_stride, col, cols, t->gate,
                         c->block_cols);
        kt_expert_linear(c, t, KT_EXPERT_UP, rows, c->x, c->hidden_stride, col, cols, t->up,
                         c->block_cols);
        return;
    }
    for (int64_t r = 0; r < rows->count; r++) {
        int64_t row = rows->first + r;
        size_t bytes = (size_t)cols * sizeof(float);
        memcpy(t->gate + r * c->block_cols, kept_row(c, row, KT_EXPERT_GATE, col), bytes);
        memcpy(t->up + r * c->block_cols, kept_row(c, row, KT_EXPERT_UP, col), bytes);
    }
}

static void activation_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->inter);
        gate_and_up(c, &t, &task);
        kt_expert_linear_backward(c, &t, KT_EXPERT_DOWN, task.rows, c->dy_rows, c->hidden_stride,
                                  task.col, task.cols, 0, t.dh, c->block_cols);
        for (int64_t r = 0; r < task.rows->count; r++)
            activate_row(c, &t, task.rows->first + r, r, task.block, task.cols);
    }
}

static void dx_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->hidden);
        float *out = c->out + task.rows->first * c->hidden + task.col;
        kt_expert_linear_backward(c, &t, KT_EXPERT_GATE, task.rows, c->h, c->inter_stride, task.col,
                                  task.cols, 0, out, c->hidden);
        kt_expert_linear_backward(c, &t, KT_EXPERT_UP, task.rows, c->dup, c->inter_stride, task.col,
                                  task.cols, 1, out, c->hidden);
    }
}

static void sum_partials(struct kt_expert_call *c)
{
    int64_t col_blocks = kt_blocks(c->inter, c->block_cols);
    for (int64_t row = 0; row < c->end - c->begin; row++) {
        float sum = 0;
        for (int64_t i = 0; i < col_blocks; i++)
            sum += c->partial[row * col_blocks + i];
        c->dtopk_weights[kt_expert_slot(c, row)] = sum;
    }
}

void kt_expert_chunk_backward(struct kt_expert_call *c)
{
    if (!c->batch->kept)
        kt_expert_gather(c, c->batch->x, c->x);
    kt_expert_gather(c, c->dy, c->dy_rows);
    kt_expert_low(c, KT_EXPERT_GATE);
    kt_expert_low(c, KT_EXPERT_UP);
    kt_expert_dlow(c, KT_EXPERT_DOWN);
    run_tasks(c, c->inter, activation_blocks);
    sum_partials(c);
    kt_expert_low(c, KT_EXPERT_DOWN);
    kt_expert_dlow(c, KT_EXPERT_GATE);
    kt_expert_dlow(c, KT_EXPERT_UP);
    kt_expert_lora_gradients(c);
    run_tasks(c, c->hidden, dx_blocks);
    kt_expert_scatter(c, 0);
}
