/* SPDX-License-Identifier: Apache-2.0 */
/* Forward and backward of one chunk of rows, phase by phase. */
#include <string.h>

#include "backends/llamafile/experts.h"
#include "core/memory.h"

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
    int64_t col_blocks = kt_blocks(c->inter, c->block_cols);
    for (int64_t i = begin; i < end; i++) {
        const struct kt_expert_rows *rows = &c->blocks[i / col_blocks];
        int64_t col = i % col_blocks * c->block_cols,
                cols = kt_min_i64(c->block_cols, c->inter - col);
        kt_expert_linear(c, &t, KT_EXPERT_GATE, rows, c->x, c->hidden_stride, col, cols, t.gate,
                         c->block_cols);
        kt_expert_linear(c, &t, KT_EXPERT_UP, rows, c->x, c->hidden_stride, col, cols, t.up,
                         c->block_cols);
        for (int64_t r = 0; r < rows->count; r++) {
            float *h = t.gate + r * c->block_cols, *up = t.up + r * c->block_cols;
            if (c->batch->kept) {
                int64_t row = rows->first + r;
                memcpy(kept_row(c, row, KT_EXPERT_GATE, col), h, (size_t)cols * sizeof *h);
                memcpy(kept_row(c, row, KT_EXPERT_UP, col), up, (size_t)cols * sizeof *up);
            }
            c->kernels->row.silu_mul(cols, h, up, h);
            c->kernel->convert(cols, h, inter_row(c, c->h, rows->first + r, col));
            keep_full(c, c->h_full, rows->first + r, col, cols, h);
        }
    }
}

static void down_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    int64_t col_blocks = kt_blocks(c->hidden, c->block_cols);
    for (int64_t i = begin; i < end; i++) {
        const struct kt_expert_rows *rows = &c->blocks[i / col_blocks];
        int64_t col = i % col_blocks * c->block_cols,
                cols = kt_min_i64(c->block_cols, c->hidden - col);
        kt_expert_linear(c, &t, KT_EXPERT_DOWN, rows, c->h, c->inter_stride, col, cols,
                         c->out + rows->first * c->hidden + col, c->hidden);
    }
}

void kt_expert_chunk_forward(struct kt_expert_call *c)
{
    kt_expert_gather(c, c->batch->x, c->x);
    kt_expert_low(c, KT_EXPERT_GATE);
    kt_expert_low(c, KT_EXPERT_UP);
    kt_expert_tasks(c, c->num_blocks * kt_blocks(c->inter, c->block_cols), gate_up_blocks, c);
    kt_expert_low(c, KT_EXPERT_DOWN);
    kt_expert_tasks(c, c->num_blocks * kt_blocks(c->hidden, c->block_cols), down_blocks, c);
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
                        const struct kt_expert_rows *rows, int64_t col, int64_t cols)
{
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
    int64_t col_blocks = kt_blocks(c->inter, c->block_cols);
    for (int64_t i = begin; i < end; i++) {
        const struct kt_expert_rows *rows = &c->blocks[i / col_blocks];
        int64_t block = i % col_blocks, col = block * c->block_cols,
                cols = kt_min_i64(c->block_cols, c->inter - col);
        gate_and_up(c, &t, rows, col, cols);
        kt_expert_linear_backward(c, &t, KT_EXPERT_DOWN, rows, c->dy_rows, c->hidden_stride, col,
                                  cols, 0, t.dh, c->block_cols);
        for (int64_t r = 0; r < rows->count; r++)
            activate_row(c, &t, rows->first + r, r, block, cols);
    }
}

static void dx_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    int64_t col_blocks = kt_blocks(c->hidden, c->block_cols);
    for (int64_t i = begin; i < end; i++) {
        const struct kt_expert_rows *rows = &c->blocks[i / col_blocks];
        int64_t col = i % col_blocks * c->block_cols,
                cols = kt_min_i64(c->block_cols, c->hidden - col);
        float *out = c->out + rows->first * c->hidden + col;
        kt_expert_linear_backward(c, &t, KT_EXPERT_GATE, rows, c->h, c->inter_stride, col, cols, 0,
                                  out, c->hidden);
        kt_expert_linear_backward(c, &t, KT_EXPERT_UP, rows, c->dup, c->inter_stride, col, cols, 1,
                                  out, c->hidden);
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
    kt_expert_tasks(c, c->num_blocks * kt_blocks(c->inter, c->block_cols), activation_blocks, c);
    sum_partials(c);
    kt_expert_low(c, KT_EXPERT_DOWN);
    kt_expert_dlow(c, KT_EXPERT_GATE);
    kt_expert_dlow(c, KT_EXPERT_UP);
    kt_expert_lora_gradients(c);
    kt_expert_tasks(c, c->num_blocks * kt_blocks(c->hidden, c->block_cols), dx_blocks, c);
    kt_expert_scatter(c, 0);
}
