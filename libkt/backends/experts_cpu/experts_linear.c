/* SPDX-License-Identifier: Apache-2.0 */
/* A linear of an expert over one block of rows and columns, and its LoRA. */
#include <string.h>

#include "backends/experts_cpu/experts.h"
#include "core/memory.h"
#include "core/random.h"

enum { LD = KT_EXPERT_BLOCK_COLS };

static int64_t in_features(const struct kt_experts_cpu_call *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->inter : c->hidden;
}

static int64_t out_features(const struct kt_experts_cpu_call *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->hidden : c->inter;
}

static bool drops(const struct kt_experts_cpu_call *c, const struct kt_lora_pair *lora)
{
    return c->given->training && lora->dropout > 0;
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

/* A block of columns of what rows make of a factor, in the way that is the best for all rows of the
 * expert. A single one of a conversation takes codes without their scales; in training that would
 * be another weight than backward's. */
static void multiply(const struct kt_experts_cpu_call *c, const struct kt_gemm_kernel *kernel,
                     const struct kt_experts_cpu_rows *rows, int64_t n, int64_t k, float alpha,
                     const void *a, int64_t lda, const struct kt_gemm_right *b, bool accumulate,
                     float *to, int64_t ld, void *panels)
{
    enum kt_gemm_way way = kt_gemm_way(kernel, rows->all, b);
    bool single = c->routing->tokens == 1 && !c->given->training && rows->all == 1;
    const char *left = (const char *)a + rows->first * lda * kernel->element_size;
    kt_gemm_block_by(single && way == KT_GEMM_DIRECT ? KT_GEMM_ROW : way, kernel, rows->count, n, k,
                     alpha, left, lda, b, accumulate, to, ld, panels);
}

void kt_experts_cpu_linear(const struct kt_experts_cpu_call *c, struct kt_experts_cpu_thread *t,
                           int which, const struct kt_experts_cpu_rows *rows, const char *in,
                           int64_t in_stride, int64_t col, int64_t cols, float *tile, int64_t ld)
{
    const struct kt_lora_pair *lora = kt_experts_cpu_lora(c, which, rows->expert);
    struct kt_gemm_right b = right(&c->layer->weights[which][rows->expert], 1, col);
    multiply(c, c->kernel, rows, cols, in_features(c, which), 1.0f, in, in_stride, &b, false, tile,
             ld, t->panels);
    if (!lora)
        return;
    b = right_f32(lora->b, lora->rank, 1, col);
    multiply(c, &c->kernels->f32, rows, cols, lora->rank, lora->scale, c->low[which], c->max_rank,
             &b, true, tile, ld, t->panels);
}

void kt_experts_cpu_linear_backward(const struct kt_experts_cpu_call *c,
                                    struct kt_experts_cpu_thread *t, int which,
                                    const struct kt_experts_cpu_rows *rows, const char *dout,
                                    int64_t dout_stride, int64_t col, int64_t cols, bool accumulate,
                                    float *tile, int64_t ld)
{
    const struct kt_lora_pair *lora = kt_experts_cpu_lora(c, which, rows->expert);
    struct kt_gemm_right b = right(&c->layer->weights[which][rows->expert], 0, col);
    multiply(c, c->kernel, rows, cols, out_features(c, which), 1.0f, dout, dout_stride, &b,
             accumulate, tile, ld, t->panels);
    if (!lora)
        return;
    bool dropped = drops(c, lora);
    b = right_f32(lora->a, in_features(c, which), 0, col);
    multiply(c, &c->kernels->f32, rows, cols, lora->rank, 1.0f, c->dlow[which], c->max_rank, &b,
             !dropped, dropped ? t->tile : tile, dropped ? cols : ld, t->panels);
    for (int64_t r = 0; dropped && r < rows->count; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, kt_experts_cpu_token(c, rows->first + r),
                       col, cols, t->tile + r * cols, 1, tile + r * ld);
}

/* tile = a block of the LoRA input, after dropout. */
static void load_input(const struct kt_experts_cpu_call *c, int which,
                       const struct kt_lora_pair *lora, int64_t first, int64_t count, int64_t col,
                       int64_t cols, float *tile)
{
    for (int64_t r = 0; r < count; r++) {
        int64_t row = first + r, token = kt_experts_cpu_token(c, row);
        const float *from =
            which == KT_EXPERT_DOWN ? c->h_full + row * c->inter : kt_experts_cpu_row(c->x, token);
        if (drops(c, lora))
            kt_dropout_row(lora->dropout, lora->dropout_key, token, col, cols, from + col, 0,
                           tile + r * LD);
        else
            memcpy(tile + r * LD, from + col, (size_t)cols * sizeof *tile);
    }
}

/* tile = a block of the gradient of the linear's output; of down, before the row's weight. */
static void load_gradient(const struct kt_experts_cpu_call *c, int which, int64_t first,
                          int64_t count, int64_t col, int64_t cols, float *tile)
{
    for (int64_t r = 0; r < count; r++) {
        int64_t row = first + r;
        const float *from = which == KT_EXPERT_GATE ? c->dgate_full + row * c->inter
                            : which == KT_EXPERT_UP
                                ? c->dup_full + row * c->inter
                                : kt_experts_cpu_row(c->dy, kt_experts_cpu_token(c, row));
        memcpy(tile + r * LD, from + col, (size_t)cols * sizeof *tile);
    }
}

static void load(const struct kt_experts_cpu_call *c, int which, bool gradient,
                 const struct kt_lora_pair *lora, int64_t first, int64_t count, int64_t col,
                 int64_t cols, float *tile)
{
    if (gradient)
        load_gradient(c, which, first, count, col, cols, tile);
    else
        load_input(c, which, lora, first, count, col, cols, tile);
}

struct low_task {
    const struct kt_experts_cpu_call *c;
    int which;
    bool gradient; /* dlow instead of low */
};

static void low_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct low_task *task = arg;
    const struct kt_experts_cpu_call *c = task->c;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    bool gradient = task->gradient;
    int which = task->which;
    int64_t depth = gradient ? out_features(c, which) : in_features(c, which);
    float *low = gradient ? c->dlow[which] : c->low[which];
    for (int64_t i = begin; i < end; i++) {
        const struct kt_experts_cpu_rows *rows = &c->blocks[i];
        struct kt_experts_cpu_rows tile = {rows->expert, 0, rows->count, rows->all};
        const struct kt_lora_pair *lora = kt_experts_cpu_lora(c, which, rows->expert);
        for (int64_t col = 0; lora && col < depth; col += LD) {
            int64_t cols = kt_min_i64(LD, depth - col);
            struct kt_gemm_right b = gradient
                                         ? right_f32(lora->b + col * lora->rank, lora->rank, 0, 0)
                                         : right_f32(lora->a + col, depth, 1, 0);
            load(c, which, gradient, lora, rows->first, rows->count, col, cols, t.tile);
            multiply(c, &c->kernels->f32, &tile, lora->rank, cols, gradient ? lora->scale : 1.0f,
                     t.tile, LD, &b, col > 0, low + rows->first * c->max_rank, c->max_rank,
                     t.panels);
        }
    }
}

void kt_experts_cpu_low(struct kt_experts_cpu_call *c, int which)
{
    struct low_task task = {c, which, false};
    if (c->has_lora[which])
        kt_parallel_for(c->pool, c->num_blocks, 1, low_blocks, &task);
}

void kt_experts_cpu_dlow(struct kt_experts_cpu_call *c, int which)
{
    struct low_task task = {c, which, true};
    if (c->has_lora[which])
        kt_parallel_for(c->pool, c->num_blocks, 1, low_blocks, &task);
}

/* left [rank, count] = rows of low (or dlow), times the row's weight where the gradient of down's
 * output lacks it. */
static void transpose_low(const struct kt_experts_cpu_call *c, int which, const float *low,
                          int32_t rank, int64_t first, int64_t count, float *left)
{
    for (int64_t r = 0; r < count; r++) {
        float weight =
            which == KT_EXPERT_DOWN ? c->routing->weights[kt_experts_cpu_slot(c, first + r)] : 1.0f;
        for (int32_t q = 0; q < rank; q++)
            left[q * LD + r] = weight * low[(first + r) * c->max_rank + q];
    }
}

/* Element (q, j) of a block of da [rank, in], or of db [out, rank]. */
static float *gradient_at(const struct kt_experts_cpu_call *c, int which, bool of_a,
                          const struct kt_lora_pair *lora, int64_t q, int64_t j)
{
    return of_a ? lora->da + q * in_features(c, which) + j : lora->db + j * lora->rank + q;
}

enum direction { LOAD, STORE };

/* Between a block of the gradient and t->sum [rank, cols]. */
static void copy_gradient(const struct kt_experts_cpu_call *c,
                          const struct kt_experts_cpu_thread *t, int which, bool of_a,
                          const struct kt_lora_pair *lora, int64_t col, int64_t cols,
                          enum direction direction)
{
    for (int32_t q = 0; q < lora->rank; q++) {
        for (int64_t j = 0; j < cols; j++) {
            float *gradient = gradient_at(c, which, of_a, lora, q, col + j);
            float *sum = t->sum + q * LD + j;
            *(direction == LOAD ? sum : gradient) = *(direction == LOAD ? gradient : sum);
        }
    }
}

/* da += dlow^T input (of_a) or db += gradient^T low, piece by piece of the expert's rows, so that
 * the sum does not depend on where chunks end. */
static void add_outer(const struct kt_experts_cpu_call *c, struct kt_experts_cpu_thread *t,
                      int which, bool of_a, const struct kt_experts_cpu_rows *rows,
                      const struct kt_lora_pair *lora, int64_t col, int64_t cols)
{
    struct kt_gemm_right b = right_f32(t->tile, LD, 0, 0);
    copy_gradient(c, t, which, of_a, lora, col, cols, LOAD);
    for (int64_t done = 0; done < rows->count; done += KT_EXPERT_PIECE_ROWS) {
        int64_t first = rows->first + done,
                count = kt_min_i64(KT_EXPERT_PIECE_ROWS, rows->count - done);
        transpose_low(c, which, of_a ? c->dlow[which] : c->low[which], lora->rank, first, count,
                      t->left);
        load(c, which, !of_a, lora, first, count, col, cols, t->tile);
        kt_gemm_block(&c->kernels->f32, lora->rank, cols, count, of_a ? 1.0f : lora->scale, t->left,
                      LD, &b, true, t->sum, LD, t->panels);
    }
    copy_gradient(c, t, which, of_a, lora, col, cols, STORE);
}

static int64_t widest_blocks(const struct kt_experts_cpu_call *c)
{
    return kt_blocks(kt_max_i64(c->hidden, c->inter), LD);
}

/* Task: expert x linear x (A or B) x block of columns. */
static void gradient_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    struct kt_experts_cpu_thread t = kt_experts_cpu_thread_scratch(c, thread);
    for (int64_t i = begin; i < end; i++) {
        int64_t col = i % widest_blocks(c) * LD, rest = i / widest_blocks(c);
        bool of_a = rest % 2;
        int which = (int)(rest / 2 % KT_EXPERT_LINEARS);
        const struct kt_experts_cpu_rows *rows = &c->experts[rest / 2 / KT_EXPERT_LINEARS];
        const struct kt_lora_pair *lora = kt_experts_cpu_lora(c, which, rows->expert);
        int64_t features = of_a ? in_features(c, which) : out_features(c, which);
        if (!lora || col >= features)
            continue;
        add_outer(c, &t, which, of_a, rows, lora, col, kt_min_i64(LD, features - col));
    }
}

void kt_experts_cpu_lora_gradients(struct kt_experts_cpu_call *c)
{
    if (c->max_rank)
        kt_parallel_for(c->pool, c->num_experts * KT_EXPERT_LINEARS * 2 * widest_blocks(c), 1,
                        gradient_blocks, c);
}
