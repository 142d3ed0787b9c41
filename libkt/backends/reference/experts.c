/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"

/* A matrix with both strides free, so that a transposition is a swap. */
struct view {
    float *data;
    int64_t rows, cols, row_step, col_step;
};

static struct view dense(const float *data, int64_t rows, int64_t cols)
{
    return (struct view){(float *)data, rows, cols, cols, 1};
}

static struct view transposed(struct view v)
{
    return (struct view){v.data, v.cols, v.rows, v.col_step, v.row_step};
}

struct product {
    float alpha;
    struct view a, b, c;
};

static void multiply_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *p = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        for (int64_t j = 0; j < p->c.cols; j++) {
            double sum = 0;
            for (int64_t q = 0; q < p->a.cols; q++)
                sum += (double)p->a.data[i * p->a.row_step + q * p->a.col_step] *
                       (double)p->b.data[q * p->b.row_step + j * p->b.col_step];
            p->c.data[i * p->c.row_step + j * p->c.col_step] += p->alpha * (float)sum;
        }
    }
}

/* c += alpha * a * b */
static void multiply(kt_context *ctx, float alpha, struct view a, struct view b, struct view c)
{
    struct product p = {alpha, a, b, c};
    kt_parallel_for(ctx->pool, c.rows, 1, multiply_rows, &p);
}

/* What one expert works in; n = tokens routed to it. */
struct work {
    int64_t n, capacity;
    int32_t *slots; /* [capacity] token * topk + j */
    float *x, *dx;  /* [n, hidden] */
    float *y;       /* [n, hidden]: output, or in backward the output's gradient */
    float *gate, *up, *h, *dgate, *dup, *dh; /* [n, intermediate] */
    float *weight;                           /* one expert's matrix, widened */
    float *dropped;    /* [n, max(hidden, intermediate)] LoRA input after dropout */
    float *low, *dlow; /* [n, rank] */
};

static int64_t max_rank(const struct kt_expert_layer *layer)
{
    int64_t rank = 0;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        for (int32_t e = 0; layer->lora[which] && e < layer->num_experts; e++)
            if (layer->lora[which][e].a)
                rank = kt_max_i64(rank, layer->lora[which][e].rank);
    return rank;
}

static int64_t work_floats(const struct kt_expert_layer *layer, int64_t n)
{
    int64_t h = layer->hidden_size, i = layer->intermediate_size;
    return n * (3 * h + 6 * i + kt_max_i64(h, i) + 2 * max_rank(layer)) + h * i;
}

static float *take(float **memory, int64_t floats)
{
    float *taken = *memory;
    *memory += floats;
    return taken;
}

static kt_status allocate(kt_context *ctx, const struct kt_expert_layer *layer, int64_t n,
                          struct work *w)
{
    int64_t h = layer->hidden_size, i = layer->intermediate_size;
    void *memory;
    KT_TRY(kt_buffer_alloc(ctx, (uint64_t)(work_floats(layer, n) + n), sizeof(float),
                           "the reference experts", &memory));
    float *at = memory;
    w->capacity = n;
    w->x = take(&at, n * h);
    w->dx = take(&at, n * h);
    w->y = take(&at, n * h);
    w->gate = take(&at, n * i);
    w->up = take(&at, n * i);
    w->h = take(&at, n * i);
    w->dgate = take(&at, n * i);
    w->dup = take(&at, n * i);
    w->dh = take(&at, n * i);
    w->dropped = take(&at, n * kt_max_i64(h, i));
    w->low = take(&at, n * max_rank(layer));
    w->dlow = take(&at, n * max_rank(layer));
    w->weight = take(&at, h * i);
    w->slots = (int32_t *)at;
    return KT_OK;
}

static void gather(const struct kt_expert_layer *layer, const struct kt_expert_batch *batch,
                   int32_t expert, struct work *w)
{
    w->n = 0;
    for (int64_t s = 0; s < batch->tokens * batch->topk; s++) {
        if (batch->topk_ids[s] != expert)
            continue;
        memcpy(w->x + w->n * layer->hidden_size, batch->x + s / batch->topk * layer->hidden_size,
               (size_t)layer->hidden_size * sizeof(float));
        w->slots[w->n++] = (int32_t)s;
    }
}

static const struct kt_lora_pair *lora_of(const struct kt_expert_layer *layer, int which,
                                          int32_t expert)
{
    const struct kt_lora_pair *lora = layer->lora[which] ? &layer->lora[which][expert] : NULL;
    return lora && lora->a ? lora : NULL;
}

static int drops(const struct kt_lora_pair *lora, const struct kt_expert_batch *batch)
{
    return batch->training && lora->dropout > 0;
}

/* The LoRA input after dropout, or the input itself. */
static const float *lora_input(const struct kt_lora_pair *lora, const struct kt_expert_batch *batch,
                               const struct work *w, const float *in, int64_t cols)
{
    if (!drops(lora, batch))
        return in;
    for (int64_t r = 0; r < w->n; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, w->slots[r] / batch->topk, 0, cols,
                       in + r * cols, 0, w->dropped + r * cols);
    return w->dropped;
}

static void widen(const struct kt_weight *weight, float *to)
{
    for (int64_t r = 0; r < weight->rows; r++)
        kt_weight_decode(weight, r, 0, weight->cols, to + r * weight->cols);
}

/* out [n, rows] = in [n, cols] * (W + scale * B A)^T */
static void linear(kt_context *ctx, const struct kt_expert_layer *layer,
                   const struct kt_expert_batch *batch, int which, int32_t expert, struct work *w,
                   const float *in, float *out)
{
    const struct kt_weight *weight = &layer->weights[which][expert];
    const struct kt_lora_pair *lora = lora_of(layer, which, expert);
    int64_t n = w->n, rows = weight->rows, cols = weight->cols;
    widen(weight, w->weight);
    memset(out, 0, (size_t)(n * rows) * sizeof *out);
    multiply(ctx, 1, dense(in, n, cols), transposed(dense(w->weight, rows, cols)),
             dense(out, n, rows));
    if (!lora)
        return;
    const float *input = lora_input(lora, batch, w, in, cols);
    memset(w->low, 0, (size_t)(n * lora->rank) * sizeof *w->low);
    multiply(ctx, 1, dense(input, n, cols), transposed(dense(lora->a, lora->rank, cols)),
             dense(w->low, n, lora->rank));
    multiply(ctx, lora->scale, dense(w->low, n, lora->rank),
             transposed(dense(lora->b, rows, lora->rank)), dense(out, n, rows));
}

/* din += dout * (W + scale * B A), and the LoRA gradients. */
static void linear_backward(kt_context *ctx, const struct kt_expert_layer *layer,
                            const struct kt_expert_batch *batch, int which, int32_t expert,
                            struct work *w, const float *in, const float *dout, float *din)
{
    const struct kt_weight *weight = &layer->weights[which][expert];
    const struct kt_lora_pair *lora = lora_of(layer, which, expert);
    int64_t n = w->n, rows = weight->rows, cols = weight->cols;
    widen(weight, w->weight);
    multiply(ctx, 1, dense(dout, n, rows), dense(w->weight, rows, cols), dense(din, n, cols));
    if (!lora)
        return;
    struct view a = dense(lora->a, lora->rank, cols), b = dense(lora->b, rows, lora->rank);
    struct view low = dense(w->low, n, lora->rank), dlow = dense(w->dlow, n, lora->rank);
    struct view input = dense(lora_input(lora, batch, w, in, cols), n, cols);
    memset(w->low, 0, (size_t)(n * lora->rank) * sizeof *w->low);
    memset(w->dlow, 0, (size_t)(n * lora->rank) * sizeof *w->dlow);
    multiply(ctx, 1, input, transposed(a), low);
    multiply(ctx, lora->scale, dense(dout, n, rows), b, dlow);
    multiply(ctx, lora->scale, transposed(dense(dout, n, rows)), low,
             dense(lora->db, rows, lora->rank));
    multiply(ctx, 1, transposed(dlow), input, dense(lora->da, lora->rank, cols));
    *lora->has_grad = 1;
    if (!drops(lora, batch)) {
        multiply(ctx, 1, dlow, a, dense(din, n, cols));
        return;
    }
    memset(w->dropped, 0, (size_t)(n * cols) * sizeof *w->dropped);
    multiply(ctx, 1, dlow, a, dense(w->dropped, n, cols));
    for (int64_t r = 0; r < n; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, w->slots[r] / batch->topk, 0, cols,
                       w->dropped + r * cols, 1, din + r * cols);
}

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static void activate(const struct kt_expert_layer *layer, struct work *w)
{
    for (int64_t i = 0; i < w->n * layer->intermediate_size; i++)
        w->h[i] = w->gate[i] * sigmoid(w->gate[i]) * w->up[i];
}

static void activate_backward(const struct kt_expert_layer *layer, struct work *w)
{
    for (int64_t i = 0; i < w->n * layer->intermediate_size; i++) {
        float g = w->gate[i], s = sigmoid(g);
        w->dgate[i] = w->dh[i] * w->up[i] * s * (1 + g * (1 - s));
        w->dup[i] = w->dh[i] * g * s;
    }
}

/* Between rows of gate and up and what the caller keeps of them. */
static void exchange_kept(const struct kt_expert_layer *layer, const struct kt_expert_batch *batch,
                          struct work *w, int keep)
{
    int64_t inter = layer->intermediate_size;
    size_t bytes = (size_t)inter * sizeof(float);
    for (int64_t r = 0; r < w->n; r++) {
        float *kept = batch->kept + 2 * inter * w->slots[r];
        float *gate = w->gate + r * inter, *up = w->up + r * inter;
        memcpy(keep ? kept : gate, keep ? gate : kept, bytes);
        memcpy(keep ? kept + inter : up, keep ? up : kept + inter, bytes);
    }
}

static void gate_and_up(kt_context *ctx, const struct kt_expert_layer *layer,
                        const struct kt_expert_batch *batch, int32_t expert, struct work *w)
{
    linear(ctx, layer, batch, KT_EXPERT_GATE, expert, w, w->x, w->gate);
    linear(ctx, layer, batch, KT_EXPERT_UP, expert, w, w->x, w->up);
}

static void forward_expert(kt_context *ctx, const struct kt_expert_layer *layer,
                           const struct kt_expert_batch *batch, int32_t expert, struct work *w,
                           float *y)
{
    gate_and_up(ctx, layer, batch, expert, w);
    if (batch->kept)
        exchange_kept(layer, batch, w, 1);
    activate(layer, w);
    linear(ctx, layer, batch, KT_EXPERT_DOWN, expert, w, w->h, w->y);
    for (int64_t r = 0; r < w->n; r++)
        for (int64_t i = 0; i < layer->hidden_size; i++)
            y[w->slots[r] / batch->topk * layer->hidden_size + i] +=
                batch->topk_weights[w->slots[r]] * w->y[r * layer->hidden_size + i];
}

static float dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return (float)sum;
}

/* d(topk_weight) by its definition, <dy, E(x)>, as a check of backends that avoid E(x). */
static void backward_expert(kt_context *ctx, const struct kt_expert_layer *layer,
                            const struct kt_expert_batch *batch, int32_t expert, struct work *w,
                            const float *dy, float *dx, float *dtopk_weights)
{
    int64_t hidden = layer->hidden_size, n = w->n;
    if (batch->kept)
        exchange_kept(layer, batch, w, 0);
    else
        gate_and_up(ctx, layer, batch, expert, w);
    activate(layer, w);
    linear(ctx, layer, batch, KT_EXPERT_DOWN, expert, w, w->h, w->y);
    for (int64_t r = 0; r < n; r++) {
        const float *row = dy + w->slots[r] / batch->topk * hidden;
        dtopk_weights[w->slots[r]] = dot(row, w->y + r * hidden, hidden);
        for (int64_t i = 0; i < hidden; i++)
            w->y[r * hidden + i] = batch->topk_weights[w->slots[r]] * row[i];
    }
    memset(w->dh, 0, (size_t)(n * layer->intermediate_size) * sizeof *w->dh);
    memset(w->dx, 0, (size_t)(n * hidden) * sizeof *w->dx);
    linear_backward(ctx, layer, batch, KT_EXPERT_DOWN, expert, w, w->h, w->y, w->dh);
    activate_backward(layer, w);
    linear_backward(ctx, layer, batch, KT_EXPERT_GATE, expert, w, w->x, w->dgate, w->dx);
    linear_backward(ctx, layer, batch, KT_EXPERT_UP, expert, w, w->x, w->dup, w->dx);
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < hidden; i++)
            dx[w->slots[r] / batch->topk * hidden + i] += w->dx[r * hidden + i];
}

static int64_t most_tokens(const struct kt_expert_layer *layer, const struct kt_expert_batch *batch)
{
    int64_t most = 0;
    for (int32_t e = 0; e < layer->num_experts; e++) {
        int64_t n = 0;
        for (int64_t s = 0; s < batch->tokens * batch->topk; s++)
            n += batch->topk_ids[s] == e;
        most = kt_max_i64(most, n);
    }
    return most;
}

static kt_status reference_forward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                   const struct kt_expert_batch *batch, float *y)
{
    struct work w;
    KT_TRY(allocate(e->ctx, layer, most_tokens(layer, batch), &w));
    for (int32_t expert = 0; expert < layer->num_experts; expert++) {
        gather(layer, batch, expert, &w);
        if (w.n)
            forward_expert(e->ctx, layer, batch, expert, &w, y);
    }
    kt_buffer_free(e->ctx, w.x);
    return KT_OK;
}

static kt_status reference_backward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                    const struct kt_expert_batch *batch, const float *dy, float *dx,
                                    float *dtopk_weights)
{
    struct work w;
    KT_TRY(allocate(e->ctx, layer, most_tokens(layer, batch), &w));
    for (int32_t expert = 0; expert < layer->num_experts; expert++) {
        gather(layer, batch, expert, &w);
        if (w.n)
            backward_expert(e->ctx, layer, batch, expert, &w, dy, dx, dtopk_weights);
    }
    kt_buffer_free(e->ctx, w.x);
    return KT_OK;
}

static uint64_t reference_scratch_bytes(const struct kt_experts *e,
                                        const struct kt_expert_layer *layer, int64_t tokens,
                                        int32_t topk)
{
    (void)e;
    return (uint64_t)(work_floats(layer, tokens * topk) + tokens * topk) * sizeof(float);
}

static void reference_close(struct kt_experts *e)
{
    free(e);
}

static const struct kt_experts_ops reference_ops = {
    .name = "reference",
    .forward = reference_forward,
    .backward = reference_backward,
    .scratch_bytes = reference_scratch_bytes,
    .close = reference_close,
};

kt_status kt_reference_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_experts *e = calloc(1, sizeof *e);
    if (!e)
        return kt_fail_memory(ctx, sizeof *e, "the reference experts");
    e->ops = &reference_ops;
    e->ctx = ctx;
    *out = e;
    return KT_OK;
}
