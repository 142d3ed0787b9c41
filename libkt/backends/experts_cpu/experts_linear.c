/* SPDX-License-Identifier: Apache-2.0 */
/* A linear of an expert over one block of rows and columns, and its LoRA. */
#include <string.h>

#include "backends/experts_cpu/experts.h"
#include "core/memory.h"
#include "core/random.h"

enum { LD = KT_EXPERT_BLOCK_COLS };

static int64_t in_features(const struct kt_expert_call *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->inter : c->hidden;
}

static int64_t out_features(const struct kt_expert_call *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->hidden : c->inter;
}

static int drops(const struct kt_expert_call *c, const struct kt_lora_pair *lora)
{
    return c->batch->training && lora->dropout > 0;
}

static struct kt_gemm_right right(const struct kt_weight *w, int transposed, int64_t col)
{
    struct kt_gemm_right b = kt_gemm_right_weight(w, transposed);
    return kt_gemm_right_at(&b, 0, col);
}

/* Columns from `col` of the float32 matrix [rows, cols], or of its transposition. */
static struct kt_gemm_right right_f32(const float *data, int64_t ld, int transposed, int64_t col)
{
    struct kt_gemm_right b = {.matrix = {data, KT_DTYPE_F32, ld}, .transposed = transposed};
    return kt_gemm_right_at(&b, 0, col);
}

/* A single token of a conversation takes codes without their scales. In training that would be
 * another weight than backward's, and a chunk may hold one row of an expert that has more. */
static enum kt_gemm_way way_of(const struct kt_expert_call *c, int64_t rows,
                               const struct kt_gemm_right *b)
{
    enum kt_gemm_way way = kt_gemm_way(c->kernel, rows, b);
    int single = c->batch->tokens == 1 && !c->batch->training;
    return single && way == KT_GEMM_DIRECT ? KT_GEMM_ROW : way;
}

void kt_expert_linear(const struct kt_expert_call *c, struct kt_expert_thread *t, int which,
                      const struct kt_expert_rows *rows, const char *in, int64_t in_stride,
                      int64_t col, int64_t cols, float *tile, int64_t ld)
{
    const struct kt_lora_pair *lora = kt_expert_lora(c, which, rows->expert);
    struct kt_gemm_right b = right(&c->layer->weights[which][rows->expert], 1, col);
    kt_gemm_block_by(way_of(c, rows->count, &b), c->kernel, rows->count, cols,
                     in_features(c, which), 1.0f,
                     in + rows->first * in_stride * c->kernel->element_size, in_stride, &b, 0, tile,
                     ld, t->panels);
    if (!lora)
        return;
    b = right_f32(lora->b, lora->rank, 1, col);
    kt_gemm_block(&c->kernels->f32, rows->count, cols, lora->rank, lora->scale,
                  c->low[which] + rows->first * c->max_rank, c->max_rank, &b, 1, tile, ld,
                  t->panels);
}

void kt_expert_linear_backward(const struct kt_expert_call *c, struct kt_expert_thread *t,
                               int which, const struct kt_expert_rows *rows, const char *dout,
                               int64_t dout_stride, int64_t col, int64_t cols, int accumulate,
                               float *tile, int64_t ld)
{
    const struct kt_lora_pair *lora = kt_expert_lora(c, which, rows->expert);
    struct kt_gemm_right b = right(&c->layer->weights[which][rows->expert], 0, col);
    kt_gemm_block(c->kernel, rows->count, cols, out_features(c, which), 1.0f,
                  dout + rows->first * dout_stride * c->kernel->element_size, dout_stride, &b,
                  accumulate, tile, ld, t->panels);
    if (!lora)
        return;
    const float *dlow = c->dlow[which] + rows->first * c->max_rank;
    int dropped = drops(c, lora);
    b = right_f32(lora->a, in_features(c, which), 0, col);
    kt_gemm_block(&c->kernels->f32, rows->count, cols, lora->rank, 1.0f, dlow, c->max_rank, &b,
                  !dropped, dropped ? t->tile : tile, dropped ? cols : ld, t->panels);
    for (int64_t r = 0; dropped && r < rows->count; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, kt_expert_token(c, rows->first + r), col,
                       cols, t->tile + r * cols, 1, tile + r * ld);
}

/* tile = a block of the LoRA input, after dropout. */
static void load_input(const struct kt_expert_call *c, int which, const struct kt_lora_pair *lora,
                       int64_t first, int64_t count, int64_t col, int64_t cols, float *tile)
{
    for (int64_t r = 0; r < count; r++) {
        int64_t row = first + r, token = kt_expert_token(c, row);
        const float *from =
            which == KT_EXPERT_DOWN ? c->h_full + row * c->inter : c->batch->x + token * c->hidden;
        if (drops(c, lora))
            kt_dropout_row(lora->dropout, lora->dropout_key, token, col, cols, from + col, 0,
                           tile + r * LD);
        else
            memcpy(tile + r * LD, from + col, (size_t)cols * sizeof *tile);
    }
}

/* tile = a block of the gradient of the linear's output; of down, before the row's weight. */
static void load_gradient(const struct kt_expert_call *c, int which, int64_t first, int64_t count,
                          int64_t col, int64_t cols, float *tile)
{
    for (int64_t r = 0; r < count; r++) {
        int64_t row = first + r;
        const float *from = which == KT_EXPERT_DOWN ? c->dy + kt_expert_token(c, row) * c->hidden
                            : which == KT_EXPERT_UP ? c->dup_full + row * c->inter
                                                    : c->dgate_full + row * c->inter;
        memcpy(tile + r * LD, from + col, (size_t)cols * sizeof *tile);
    }
}

static void load(const struct kt_expert_call *c, int which, int gradient,
                 const struct kt_lora_pair *lora, int64_t first, int64_t count, int64_t col,
                 int64_t cols, float *tile)
{
    if (gradient)
        load_gradient(c, which, first, count, col, cols, tile);
    else
        load_input(c, which, lora, first, count, col, cols, tile);
}

struct low_task {
    const struct kt_expert_call *c;
    int which;
    int gradient; /* dlow instead of low */
};

static void low_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct low_task *task = arg;
    const struct kt_expert_call *c = task->c;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    int gradient = task->gradient, which = task->which;
    int64_t depth = gradient ? out_features(c, which) : in_features(c, which);
    float *low = gradient ? c->dlow[which] : c->low[which];
    for (int64_t i = begin; i < end; i++) {
        const struct kt_expert_rows *rows = &c->blocks[i];
        const struct kt_lora_pair *lora = kt_expert_lora(c, which, rows->expert);
        for (int64_t col = 0; lora && col < depth; col += LD) {
            int64_t cols = kt_min_i64(LD, depth - col);
            struct kt_gemm_right b = gradient
                                         ? right_f32(lora->b + col * lora->rank, lora->rank, 0, 0)
                                         : right_f32(lora->a + col, depth, 1, 0);
            load(c, which, gradient, lora, rows->first, rows->count, col, cols, t.tile);
            kt_gemm_block(&c->kernels->f32, rows->count, lora->rank, cols,
                          gradient ? lora->scale : 1.0f, t.tile, LD, &b, col > 0,
                          low + rows->first * c->max_rank, c->max_rank, t.panels);
        }
    }
}

void kt_expert_low(struct kt_expert_call *c, int which)
{
    struct low_task task = {c, which, 0};
    if (c->has_lora[which])
        kt_parallel_for(c->pool, c->num_blocks, 1, low_blocks, &task);
}

void kt_expert_dlow(struct kt_expert_call *c, int which)
{
    struct low_task task = {c, which, 1};
    if (c->has_lora[which])
        kt_parallel_for(c->pool, c->num_blocks, 1, low_blocks, &task);
}

/* left [rank, count] = rows of low (or dlow), times the row's weight where the gradient of down's
 * output lacks it. */
static void transpose_low(const struct kt_expert_call *c, int which, const float *low, int32_t rank,
                          int64_t first, int64_t count, float *left)
{
    for (int64_t r = 0; r < count; r++) {
        float weight =
            which == KT_EXPERT_DOWN ? c->batch->topk_weights[kt_expert_slot(c, first + r)] : 1.0f;
        for (int32_t q = 0; q < rank; q++)
            left[q * LD + r] = weight * low[(first + r) * c->max_rank + q];
    }
}

/* t->sum [rank, cols] = sum over the expert's rows of dlow x input (of_a) or low x gradient. */
static void outer_block(const struct kt_expert_call *c, struct kt_expert_thread *t, int which,
                        int of_a, const struct kt_expert_rows *rows,
                        const struct kt_lora_pair *lora, int64_t col, int64_t cols)
{
    for (int64_t done = 0; done < rows->count; done += LD) {
        int64_t first = rows->first + done, count = kt_min_i64(LD, rows->count - done);
        struct kt_gemm_right b = right_f32(t->tile, LD, 0, 0);
        transpose_low(c, which, of_a ? c->dlow[which] : c->low[which], lora->rank, first, count,
                      t->left);
        load(c, which, !of_a, lora, first, count, col, cols, t->tile);
        kt_gemm_block(&c->kernels->f32, lora->rank, cols, count, of_a ? 1.0f : lora->scale, t->left,
                      LD, &b, done > 0, t->sum, LD, t->panels);
    }
}

static void add_gradient(const struct kt_expert_call *c, const struct kt_expert_thread *t,
                         int which, int of_a, const struct kt_lora_pair *lora, int64_t col,
                         int64_t cols)
{
    for (int32_t q = 0; q < lora->rank; q++) {
        for (int64_t j = 0; j < cols; j++) {
            if (of_a)
                lora->da[q * in_features(c, which) + col + j] += t->sum[q * LD + j];
            else
                lora->db[(col + j) * lora->rank + q] += t->sum[q * LD + j];
        }
    }
}

static int64_t widest_blocks(const struct kt_expert_call *c)
{
    return kt_blocks(kt_max_i64(c->hidden, c->inter), LD);
}

/* Task: expert x linear x (A or B) x block of columns. */
static void gradient_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_expert_call *c = arg;
    struct kt_expert_thread t = kt_expert_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        int64_t col = i % widest_blocks(c) * LD, rest = i / widest_blocks(c);
        int of_a = (int)(rest % 2), which = (int)(rest / 2 % KT_EXPERT_LINEARS);
        const struct kt_expert_rows *rows = &c->experts[rest / 2 / KT_EXPERT_LINEARS];
        const struct kt_lora_pair *lora = kt_expert_lora(c, which, rows->expert);
        int64_t features = of_a ? in_features(c, which) : out_features(c, which);
        if (!lora || col >= features)
            continue;
        int64_t cols = kt_min_i64(LD, features - col);
        outer_block(c, &t, which, of_a, rows, lora, col, cols);
        add_gradient(c, &t, which, of_a, lora, col, cols);
    }
}

void kt_expert_lora_gradients(struct kt_expert_call *c)
{
    if (!c->max_rank)
        return;
    kt_parallel_for(c->pool, c->num_experts * KT_EXPERT_LINEARS * 2 * widest_blocks(c), 1,
                    gradient_blocks, c);
    for (int64_t i = 0; i < c->num_experts * KT_EXPERT_LINEARS; i++) {
        const struct kt_lora_pair *lora = kt_expert_lora(c, (int)(i % KT_EXPERT_LINEARS),
                                                         c->experts[i / KT_EXPERT_LINEARS].expert);
        if (lora)
            *lora->has_grad = 1;
    }
}
