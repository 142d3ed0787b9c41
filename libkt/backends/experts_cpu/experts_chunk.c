/* SPDX-License-Identifier: Apache-2.0 */
/* Forward and backward of one chunk of rows, phase by phase. */
#include <string.h>

#include "backends/experts_cpu/experts.h"
#include "core/memory.h"

/* One block of rows and of columns. */
struct task {
    const struct kt_experts_cpu_rows *rows;
    int64_t col, cols;
};

/* Task i over columns of `features`: node by node, for each block of rows, all blocks of columns
 * that the node owns. */
static struct task task_at(const struct kt_experts_cpu_call *c, int64_t i, int64_t features)
{
    int64_t blocks = kt_blocks(features, c->block_cols);
    int32_t node = kt_pool_owner(c->pool, blocks, c->num_blocks, i);
    int64_t first = kt_pool_first(c->pool, node, blocks);
    int64_t owned = kt_pool_first(c->pool, node + 1, blocks) - first;
    i -= c->num_blocks * first;
    struct task t = {.rows = &c->blocks[i / owned], .col = (first + i % owned) * c->block_cols};
    t.cols = kt_min_i64(c->block_cols, features - t.col);
    return t;
}

/* Threads take tasks of columns that their node owns first, so that a node reads about the same
 * part of a weight in every step. */
static void run_tasks(struct kt_experts_cpu_call *c, int64_t features, kt_range_fn fn)
{
    kt_parallel_for_nodes(c->pool, kt_blocks(features, c->block_cols), c->num_blocks, 1, fn, c);
}

static char *inter_row(const struct kt_experts_cpu_call *c, char *buffer, int64_t row, int64_t col)
{
    return buffer + (row * c->inter_stride + col) * c->kernel->element_size;
}

static void keep_full(const struct kt_experts_cpu_call *c, float *buffer, int64_t row, int64_t col,
                      int64_t cols, const float *from)
{
    if (buffer)
        memcpy(buffer + row * c->inter + col, from, (size_t)cols * sizeof *from);
}

/* Gate and up products of a block, in the thread's tiles. */
static void multiply_gate_up(const struct kt_experts_cpu_call *c, struct kt_experts_cpu_thread *t,
                             const struct task *task)
{
    kt_experts_cpu_linear(c, t, KT_EXPERT_GATE, task->rows, c->x_rows, c->hidden_stride, task->col,
                          task->cols, t->gate, c->block_cols);
    kt_experts_cpu_linear(c, t, KT_EXPERT_UP, task->rows, c->x_rows, c->hidden_stride, task->col,
                          task->cols, t->up, c->block_cols);
}

enum direction { KEEP, LOAD };

/* The same, from the tiles to where the caller keeps them, or back. */
static void copy_kept(const struct kt_experts_cpu_call *c, const struct kt_experts_cpu_thread *t,
                      const struct task *task, enum direction direction)
{
    size_t bytes = (size_t)task->cols * sizeof(float);
    for (int64_t r = 0; r < task->rows->count; r++) {
        for (int which = KT_EXPERT_GATE; which <= KT_EXPERT_UP; which++) {
            int64_t slot = kt_experts_cpu_slot(c, task->rows->first + r);
            float *kept = c->given->kept + (2 * slot + which) * c->inter + task->col;
            float *tile = (which == KT_EXPERT_GATE ? t->gate : t->up) + r * c->block_cols;
            memcpy(direction == KEEP ? kept : tile, direction == KEEP ? tile : kept, bytes);
        }
    }
}

/* h = act(gate) * up */
static void gate_up_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->inter);
        multiply_gate_up(c, &t, &task);
        if (c->given->kept)
            copy_kept(c, &t, &task, KEEP);
        for (int64_t r = 0; r < task.rows->count; r++) {
            float *h = t.gate + r * c->block_cols, *up = t.up + r * c->block_cols;
            int64_t row = task.rows->first + r;
            c->kernels->row.silu_mul(task.cols, h, up, h);
            c->kernel->convert(task.cols, h, inter_row(c, c->h, row, task.col));
            keep_full(c, c->h_full, row, task.col, task.cols, h);
        }
    }
}

static void down_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->hidden);
        kt_experts_cpu_linear(c, &t, KT_EXPERT_DOWN, task.rows, c->h, c->inter_stride, task.col,
                              task.cols, c->out + task.rows->first * c->hidden + task.col,
                              c->hidden);
    }
}

void kt_experts_cpu_chunk_forward(struct kt_experts_cpu_call *c)
{
    kt_experts_cpu_gather(c, c->x, c->x_rows);
    kt_experts_cpu_low(c, KT_EXPERT_GATE);
    kt_experts_cpu_low(c, KT_EXPERT_UP);
    run_tasks(c, c->inter, gate_up_blocks);
    kt_experts_cpu_low(c, KT_EXPERT_DOWN);
    run_tasks(c, c->hidden, down_blocks);
    kt_experts_cpu_scatter(c);
}

/* One row of a block: the parts of d(weight), of so many columns however wide the block is, so
 * that their sum does not depend on it; and dgate and dup in place of gate and up. */
static void activate_row(const struct kt_experts_cpu_call *c, struct kt_experts_cpu_thread *t,
                         int64_t row, int64_t r, int64_t col, int64_t cols)
{
    float *gate = t->gate + r * c->block_cols, *up = t->up + r * c->block_cols,
          *dh = t->dh + r * c->block_cols, *h = t->tile;
    float weight = c->routing->weights[kt_experts_cpu_slot(c, row)];
    float *partial =
        c->partial + row * kt_blocks(c->inter, KT_EXPERT_BLOCK_COLS) + col / KT_EXPERT_BLOCK_COLS;
    c->kernels->row.silu_mul(cols, gate, up, h);
    for (int64_t i = 0; i < cols; i += KT_EXPERT_BLOCK_COLS)
        *partial++ = c->kernels->row.dot(kt_min_i64(KT_EXPERT_BLOCK_COLS, cols - i), dh + i, h + i);
    keep_full(c, c->h_full, row, col, cols, h);
    c->kernels->row.silu_mul_backward(cols, weight, gate, up, dh, gate, up);
    c->kernel->convert(cols, gate, inter_row(c, c->h, row, col));
    c->kernel->convert(cols, up, inter_row(c, c->dup, row, col));
    keep_full(c, c->dgate_full, row, col, cols, gate);
    keep_full(c, c->dup_full, row, col, cols, up);
}

static void activation_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->inter);
        if (c->given->kept)
            copy_kept(c, &t, &task, LOAD);
        else
            multiply_gate_up(c, &t, &task);
        kt_experts_cpu_linear_backward(c, &t, KT_EXPERT_DOWN, task.rows, c->dy_rows,
                                       c->hidden_stride, task.col, task.cols, false, t.dh,
                                       c->block_cols);
        for (int64_t r = 0; r < task.rows->count; r++)
            activate_row(c, &t, task.rows->first + r, r, task.col, task.cols);
    }
}

static void dx_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        struct task task = task_at(c, i, c->hidden);
        float *out = c->out + task.rows->first * c->hidden + task.col;
        kt_experts_cpu_linear_backward(c, &t, KT_EXPERT_GATE, task.rows, c->h, c->inter_stride,
                                       task.col, task.cols, false, out, c->hidden);
        kt_experts_cpu_linear_backward(c, &t, KT_EXPERT_UP, task.rows, c->dup, c->inter_stride,
                                       task.col, task.cols, true, out, c->hidden);
    }
}

static void sum_partials(struct kt_experts_cpu_call *c)
{
    int64_t col_blocks = kt_blocks(c->inter, KT_EXPERT_BLOCK_COLS);
    for (int64_t row = 0; row < c->end - c->begin; row++) {
        float sum = 0;
        for (int64_t i = 0; i < col_blocks; i++)
            sum += c->partial[row * col_blocks + i];
        c->dweights[kt_experts_cpu_slot(c, row)] = sum;
    }
}

void kt_experts_cpu_chunk_backward(struct kt_experts_cpu_call *c)
{
    if (!c->given->kept)
        kt_experts_cpu_gather(c, c->x, c->x_rows);
    kt_experts_cpu_gather(c, c->dy, c->dy_rows);
    kt_experts_cpu_low(c, KT_EXPERT_GATE);
    kt_experts_cpu_low(c, KT_EXPERT_UP);
    kt_experts_cpu_dlow(c, KT_EXPERT_DOWN);
    run_tasks(c, c->inter, activation_blocks);
    sum_partials(c);
    kt_experts_cpu_low(c, KT_EXPERT_DOWN);
    kt_experts_cpu_dlow(c, KT_EXPERT_GATE);
    kt_experts_cpu_dlow(c, KT_EXPERT_UP);
    kt_experts_cpu_lora_gradients(c);
    run_tasks(c, c->hidden, dx_blocks);
    kt_experts_cpu_scatter(c);
}
