/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"

/* A matrix with both strides free, so that a transposition is a swap. */
struct matrix {
    float *data;
    int64_t rows, cols, row_step, col_step;
};

static struct matrix dense(const float *data, int64_t rows, int64_t cols)
{
    return (struct matrix){(float *)data, rows, cols, cols, 1};
}

static struct matrix transposed(struct matrix v)
{
    return (struct matrix){v.data, v.cols, v.rows, v.col_step, v.row_step};
}

struct product {
    float alpha;
    struct matrix a, b, c;
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
static void multiply(kt_context *ctx, float alpha, struct matrix a, struct matrix b,
                     struct matrix c)
{
    struct product p = {alpha, a, b, c};
    kt_parallel_for(ctx->pool, c.rows, 1, multiply_rows, &p);
}

/* What one expert works in; n = its rows. */
struct work {
    int64_t n;
    const int32_t *slots; /* [n] token * topk + j */
    float *x, *dx;        /* [n, hidden] */
    float *y;             /* [n, hidden]: output, or in backward the output's gradient */
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

static struct work place(const struct kt_expert_layer *layer, int64_t n, void *memory)
{
    int64_t h = layer->hidden_size, i = layer->intermediate_size, rank = max_rank(layer);
    float *at = memory;
    struct work w = {.x = take(&at, n * h), .dx = take(&at, n * h), .y = take(&at, n * h)};
    w.gate = take(&at, n * i);
    w.up = take(&at, n * i);
    w.h = take(&at, n * i);
    w.dgate = take(&at, n * i);
    w.dup = take(&at, n * i);
    w.dh = take(&at, n * i);
    w.dropped = take(&at, n * kt_max_i64(h, i));
    w.low = take(&at, n * rank);
    w.dlow = take(&at, n * rank);
    w.weight = take(&at, h * i);
    return w;
}

static float *token_row(const struct kt_expert_call *call, const struct work *w, int64_t row,
                        struct kt_view view)
{
    return kt_view_at(view, w->slots[row] / call->routing->topk, 0).data;
}

static void gather(const struct kt_expert_call *call, int32_t expert, struct work *w)
{
    const int64_t *first = call->routing->first;
    int64_t hidden = call->layer->hidden_size;
    w->slots = call->routing->slots + first[expert];
    w->n = first[expert + 1] - first[expert];
    for (int64_t r = 0; r < w->n; r++)
        memcpy(w->x + r * hidden, token_row(call, w, r, call->x), (size_t)hidden * sizeof(float));
}

static const struct kt_lora_pair *lora_of(const struct kt_expert_layer *layer, int which,
                                          int32_t expert)
{
    const struct kt_lora_pair *lora = layer->lora[which] ? &layer->lora[which][expert] : NULL;
    return lora && lora->a ? lora : NULL;
}

static bool drops(const struct kt_lora_pair *lora, const struct kt_expert_call *call)
{
    return call->training && lora->dropout > 0;
}

/* The LoRA input after dropout, or the input itself. */
static const float *lora_input(const struct kt_lora_pair *lora, const struct kt_expert_call *call,
                               const struct work *w, const float *in, int64_t cols)
{
    if (!drops(lora, call))
        return in;
    for (int64_t r = 0; r < w->n; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, w->slots[r] / call->routing->topk, 0, cols,
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
                   const struct kt_expert_call *call, int which, int32_t expert, struct work *w,
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
    const float *input = lora_input(lora, call, w, in, cols);
    memset(w->low, 0, (size_t)(n * lora->rank) * sizeof *w->low);
    multiply(ctx, 1, dense(input, n, cols), transposed(dense(lora->a, lora->rank, cols)),
             dense(w->low, n, lora->rank));
    multiply(ctx, lora->scale, dense(w->low, n, lora->rank),
             transposed(dense(lora->b, rows, lora->rank)), dense(out, n, rows));
}

/* din += dout * (W + scale * B A), and the LoRA gradients. */
static void linear_backward(kt_context *ctx, const struct kt_expert_layer *layer,
                            const struct kt_expert_call *call, int which, int32_t expert,
                            struct work *w, const float *in, const float *dout, float *din)
{
    const struct kt_weight *weight = &layer->weights[which][expert];
    const struct kt_lora_pair *lora = lora_of(layer, which, expert);
    int64_t n = w->n, rows = weight->rows, cols = weight->cols;
    widen(weight, w->weight);
    multiply(ctx, 1, dense(dout, n, rows), dense(w->weight, rows, cols), dense(din, n, cols));
    if (!lora)
        return;
    struct matrix a = dense(lora->a, lora->rank, cols), b = dense(lora->b, rows, lora->rank);
    struct matrix low = dense(w->low, n, lora->rank), dlow = dense(w->dlow, n, lora->rank);
    struct matrix input = dense(lora_input(lora, call, w, in, cols), n, cols);
    memset(w->low, 0, (size_t)(n * lora->rank) * sizeof *w->low);
    memset(w->dlow, 0, (size_t)(n * lora->rank) * sizeof *w->dlow);
    multiply(ctx, 1, input, transposed(a), low);
    multiply(ctx, lora->scale, dense(dout, n, rows), b, dlow);
    multiply(ctx, lora->scale, transposed(dense(dout, n, rows)), low,
             dense(lora->db, rows, lora->rank));
    multiply(ctx, 1, transposed(dlow), input, dense(lora->da, lora->rank, cols));
    if (!drops(lora, call)) {
        multiply(ctx, 1, dlow, a, dense(din, n, cols));
        return;
    }
    memset(w->dropped, 0, (size_t)(n * cols) * sizeof *w->dropped);
    multiply(ctx, 1, dlow, a, dense(w->dropped, n, cols));
    for (int64_t r = 0; r < n; r++)
        kt_dropout_row(lora->dropout, lora->dropout_key, w->slots[r] / call->routing->topk, 0, cols,
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
static void exchange_kept(const struct kt_expert_layer *layer, const struct kt_expert_call *call,
                          struct work *w, bool keep)
{
    int64_t inter = layer->intermediate_size;
    size_t bytes = (size_t)inter * sizeof(float);
    for (int64_t r = 0; r < w->n; r++) {
        float *kept = call->kept + 2 * inter * w->slots[r];
        float *gate = w->gate + r * inter, *up = w->up + r * inter;
        memcpy(keep ? kept : gate, keep ? gate : kept, bytes);
        memcpy(keep ? kept + inter : up, keep ? up : kept + inter, bytes);
    }
}

static void gate_and_up(kt_context *ctx, const struct kt_expert_layer *layer,
                        const struct kt_expert_call *call, int32_t expert, struct work *w)
{
    linear(ctx, layer, call, KT_EXPERT_GATE, expert, w, w->x, w->gate);
    linear(ctx, layer, call, KT_EXPERT_UP, expert, w, w->x, w->up);
}

static void forward_expert(kt_context *ctx, const struct kt_expert_call *call, int32_t expert,
                           struct work *w, struct kt_view y)
{
    const struct kt_expert_layer *layer = call->layer;
    gate_and_up(ctx, layer, call, expert, w);
    if (call->kept)
        exchange_kept(layer, call, w, true);
    activate(layer, w);
    linear(ctx, layer, call, KT_EXPERT_DOWN, expert, w, w->h, w->y);
    for (int64_t r = 0; r < w->n; r++)
        for (int64_t i = 0; i < layer->hidden_size; i++)
            token_row(call, w, r, y)[i] +=
                call->routing->weights[w->slots[r]] * w->y[r * layer->hidden_size + i];
}

static float dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return (float)sum;
}

/* d(weight) by its definition, <dy, E(x)>, as a check of backends that avoid E(x). */
static void backward_expert(kt_context *ctx, const struct kt_expert_call *call, int32_t expert,
                            struct work *w, struct kt_view dy, struct kt_view dx, float *dweights)
{
    const struct kt_expert_layer *layer = call->layer;
    int64_t hidden = layer->hidden_size, n = w->n;
    if (call->kept)
        exchange_kept(layer, call, w, false);
    else
        gate_and_up(ctx, layer, call, expert, w);
    activate(layer, w);
    linear(ctx, layer, call, KT_EXPERT_DOWN, expert, w, w->h, w->y);
    for (int64_t r = 0; r < n; r++) {
        const float *row = token_row(call, w, r, dy);
        dweights[w->slots[r]] = dot(row, w->y + r * hidden, hidden);
        for (int64_t i = 0; i < hidden; i++)
            w->y[r * hidden + i] = call->routing->weights[w->slots[r]] * row[i];
    }
    memset(w->dh, 0, (size_t)(n * layer->intermediate_size) * sizeof *w->dh);
    memset(w->dx, 0, (size_t)(n * hidden) * sizeof *w->dx);
    linear_backward(ctx, layer, call, KT_EXPERT_DOWN, expert, w, w->h, w->y, w->dh);
    activate_backward(layer, w);
    linear_backward(ctx, layer, call, KT_EXPERT_GATE, expert, w, w->x, w->dgate, w->dx);
    linear_backward(ctx, layer, call, KT_EXPERT_UP, expert, w, w->x, w->dup, w->dx);
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < hidden; i++)
            token_row(call, w, r, dx)[i] += w->dx[r * hidden + i];
}

static int64_t most_rows(const struct kt_routing *routing)
{
    int64_t most = 0;
    for (int32_t e = 0; e < routing->num_experts; e++)
        most = kt_max_i64(most, routing->first[e + 1] - routing->first[e]);
    return most;
}

static void reference_forward(struct kt_experts *e, const struct kt_expert_call *call,
                              struct kt_view y)
{
    struct work w = place(call->layer, most_rows(call->routing), call->scratch);
    for (int32_t expert = 0; expert < call->layer->num_experts; expert++) {
        gather(call, expert, &w);
        if (w.n)
            forward_expert(e->ctx, call, expert, &w, y);
    }
}

static void reference_backward(struct kt_experts *e, const struct kt_expert_call *call,
                               struct kt_view dy, struct kt_view dx, float *dweights)
{
    struct work w = place(call->layer, most_rows(call->routing), call->scratch);
    for (int32_t expert = 0; expert < call->layer->num_experts; expert++) {
        gather(call, expert, &w);
        if (w.n)
            backward_expert(e->ctx, call, expert, &w, dy, dx, dweights);
    }
}

static bool reference_supports(const struct kt_experts *e, const struct kt_expert_layer *layer,
                               kt_compute compute, int64_t tokens, bool training)
{
    (void)e, (void)layer, (void)compute, (void)tokens, (void)training;
    return true;
}

/* One expert may have all slots. */
static uint64_t reference_scratch_bytes(const struct kt_experts *e,
                                        const struct kt_expert_layer *layer, kt_compute compute,
                                        int64_t tokens, int32_t topk, bool backward)
{
    (void)e, (void)compute, (void)backward;
    return (uint64_t)work_floats(layer, tokens * topk) * sizeof(float);
}

/* Rough: it is for comparisons, not for speed. */
static double reference_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                                int64_t rows, bool backward)
{
    static const struct kt_experts_rate rate = {3e8, 1e9};
    (void)backward;
    return kt_experts_seconds(e, layer, rows, rate);
}

static void reference_close(struct kt_experts *e)
{
    free(e);
}

static const struct kt_experts_ops reference_ops = {
    .abi = KT_BACKEND_ABI,
    .name = "reference",
    .supports = reference_supports,
    .scratch_bytes = reference_scratch_bytes,
    .forward = reference_forward,
    .backward = reference_backward,
    .seconds = reference_seconds,
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
