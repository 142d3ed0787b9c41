/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts on the device of their layer, one after another in ascending order: their rows are
 * gathered, go through the linears of the expert as through any other, and are added to the sum of
 * their tokens. An expert with many rows is done in pieces. */
#include "core/memory.h"
#include "executor/pass.h"

enum { PIECE = 4096 };

/** The rows of a share on the device, and memory for a piece of an expert's. */
struct rows {
    const int32_t *index, *slots; /**< [rows] token and slot of each */
    const float *weights;         /**< [tokens, topk] */
    int64_t piece;                /**< most rows at one time */
    struct kt_view x, y;          /**< [piece, hidden_size]; y float32 */
    struct kt_view gate, up;      /**< [piece, intermediate_size] */
    struct kt_view h, weighed;    /**< likewise, in backward; `weighed` where down has LoRA */
    struct kt_view dy, sum;       /**< [tokens, hidden_size] */
    struct kt_view n;             /**< likewise, the input */
    float *dweights;              /**< [tokens, topk] */
};

/** A piece of the rows of one expert. */
struct piece {
    const struct kt_linear *linears[KT_EXPERT_LINEARS];
    int64_t begin, rows;
};

/** Tokens of rows, and slots, on the device. */
static void send_rows(struct kt_pass *pass, const struct kt_routing *share, struct rows *r)
{
    int64_t slots = share->tokens * share->topk;
    int32_t *index = kt_host_take(pass, 1, slots).data;
    int64_t rows = kt_pass_measures(pass) ? slots : share->first[share->num_experts];
    for (int64_t i = 0; !kt_pass_measures(pass) && i < rows; i++)
        index[i] = share->slots[i] / share->topk;
    r->index = kt_words_to_device(pass, index, rows);
    r->slots = kt_words_to_device(pass, share->slots, rows);
}

static struct rows take_rows(struct kt_pass *pass, const struct kt_expert_work *work,
                             const struct kt_routing *share, struct kt_view sum)
{
    int64_t piece = kt_min_i64(share->tokens, PIECE);
    struct rows r = {.weights = work->device_weights, .piece = piece, .sum = sum, .n = work->n};
    send_rows(pass, share, &r);
    r.x = kt_take_activations(pass, piece, work->experts.hidden_size);
    r.y = kt_take(pass, piece, work->experts.hidden_size);
    r.gate = kt_take_activations(pass, piece, work->experts.intermediate_size);
    r.up = kt_take_activations(pass, piece, work->experts.intermediate_size);
    return r;
}

static struct kt_gather_args rows_of(const struct kt_expert_work *work, const struct rows *r,
                                     const struct piece *p, int64_t dim)
{
    return (struct kt_gather_args){.rows = p->rows,
                                   .dim = dim,
                                   .tokens = work->routing.tokens,
                                   .index = r->index + p->begin,
                                   .num_slots = work->routing.tokens * work->routing.topk,
                                   .slots = r->slots + p->begin};
}

static void gather(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                   const struct piece *p, struct kt_view from, struct kt_view to)
{
    struct kt_gather_args args = rows_of(work, r, p, work->experts.hidden_size);
    args.x = from;
    args.y = to;
    kt_run_gather(&pass->stage->run, &args);
}

static void scatter(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                    const struct piece *p, const float *weights, struct kt_view from)
{
    struct kt_gather_args args = rows_of(work, r, p, work->experts.hidden_size);
    args.weights = weights;
    args.x = from;
    args.y = r->sum;
    kt_run_scatter_add(&pass->stage->run, &args);
}

/** The gate and up products of gathered rows. */
static void gate_and_up(struct kt_pass *pass, const struct kt_expert_work *work,
                        const struct rows *r, const struct piece *p)
{
    gather(pass, work, r, p, r->n, r->x);
    kt_linear_forward(pass, p->linears[KT_EXPERT_GATE], p->rows, r->x, false, r->gate);
    kt_linear_forward(pass, p->linears[KT_EXPERT_UP], p->rows, r->x, false, r->up);
}

static struct kt_glu_args glu(const struct kt_expert_work *work, const struct rows *r,
                              const struct piece *p)
{
    return (struct kt_glu_args){.activation = work->experts.activation,
                                .tokens = p->rows,
                                .dim = work->experts.intermediate_size,
                                .gate = r->gate,
                                .up = r->up};
}

static void forward_piece(struct kt_pass *pass, const struct kt_expert_work *work,
                          const struct rows *r, const struct piece *p)
{
    struct kt_glu_args args = glu(work, r, p);
    args.h = r->gate;
    gate_and_up(pass, work, r, p);
    kt_run_glu_forward(&pass->stage->run, &args);
    kt_linear_forward(pass, p->linears[KT_EXPERT_DOWN], p->rows, r->gate, false, r->y);
    scatter(pass, work, r, p, r->weights, r->y);
}

/** What down's LoRA takes for its input while the gradient of its output is not weighed yet: h,
 * weighed instead. */
static struct kt_view input_of_down(struct kt_pass *pass, const struct kt_expert_work *work,
                                    const struct rows *r, const struct piece *p)
{
    struct kt_gather_args args = rows_of(work, r, p, work->experts.intermediate_size);
    if (!r->weighed.data)
        return r->h;
    args.tokens = p->rows;
    args.index = NULL;
    args.weights = r->weights;
    args.x = r->h;
    args.y = r->weighed;
    kt_run_gather(&pass->stage->run, &args);
    return r->weighed;
}

static void backward_piece(struct kt_pass *pass, const struct kt_expert_work *work,
                           const struct rows *r, const struct piece *p)
{
    const struct kt_runner *run = &pass->stage->run;
    struct kt_glu_args args = glu(work, r, p);
    struct kt_weigh_args weigh = {.rows = p->rows,
                                  .dim = work->experts.intermediate_size,
                                  .num_slots = work->routing.tokens * work->routing.topk,
                                  .slots = r->slots + p->begin,
                                  .weights = r->weights,
                                  .dweights = r->dweights,
                                  .h = r->h};
    struct kt_view dh = kt_take_activations(pass, r->piece, work->experts.intermediate_size);
    args.h = r->h;
    gate_and_up(pass, work, r, p);
    kt_run_glu_forward(run, &args);
    gather(pass, work, r, p, r->dy, r->y);
    kt_linear_backward(pass, p->linears[KT_EXPERT_DOWN], p->rows, input_of_down(pass, work, r, p),
                       r->y, false, dh);
    weigh.dh = args.dh = dh;
    kt_run_weigh(run, &weigh);
    args.dgate = r->gate;
    args.dup = r->up;
    kt_run_glu_backward(run, &args);
    kt_linear_backward(pass, p->linears[KT_EXPERT_GATE], p->rows, r->x, r->gate, false, r->y);
    kt_linear_backward(pass, p->linears[KT_EXPERT_UP], p->rows, r->x, r->up, true, r->y);
    scatter(pass, work, r, p, NULL, r->y);
}

typedef void (*piece_fn)(struct kt_pass *pass, const struct kt_expert_work *work,
                         const struct rows *r, const struct piece *p);

/** Rows [begin, end) of an expert. */
static void run_expert(struct kt_pass *pass, const struct kt_expert_work *work,
                       const struct rows *r, piece_fn fn, int32_t e, int64_t begin, int64_t end)
{
    uint64_t mark = kt_pass_mark(pass);
    struct piece p;
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        p.linears[k] = &work->layer->experts[k][e];
    for (; begin < end; begin += p.rows) {
        p.begin = begin;
        p.rows = kt_min_i64(end - begin, r->piece);
        pass->row_tokens = r->index + begin;
        fn(pass, work, r, &p);
        kt_pass_release(pass, mark);
    }
    pass->row_tokens = NULL;
}

/** All experts with even shares of the rows, and the memory of one with many. */
static void measure(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                    piece_fn fn)
{
    struct kt_tally *tally = &pass->stage->tally, before = *tally;
    int64_t rows = work->routing.tokens * work->routing.topk;
    int64_t experts = kt_min_i64(rows, work->experts.num_experts);
    run_expert(pass, work, r, fn, 0, 0, r->piece);
    before.scratch = tally->scratch;
    *tally = before;
    for (int32_t e = 0; e < experts; e++)
        run_expert(pass, work, r, fn, e, 0, (rows + experts - 1) / experts);
}

typedef void (*gradient_fn)(const struct kt_site *site, const struct kt_runner *run,
                            const kt_lora *lora, const struct kt_linear *linear);

/** Brings the gradients of an expert's matrices to the device, or back. */
static void move_gradients(struct kt_pass *pass, const struct kt_layer *layer, int32_t e,
                           gradient_fn move)
{
    const struct kt_site *site = pass->stage->site;
    for (int k = 0; !kt_device_is_host(site->device) && k < KT_EXPERT_LINEARS; k++)
        if (kt_pass_lora(pass, &layer->experts[k][e]))
            move(site, &pass->stage->run, pass->lora, &layer->experts[k][e]);
}

static void run(struct kt_pass *pass, const struct kt_expert_work *work,
                const struct kt_routing *share, const struct rows *r, piece_fn fn, bool backward)
{
    const struct kt_site *site = pass->stage->site;
    if (kt_pass_measures(pass)) {
        measure(pass, work, r, fn);
        return;
    }
    for (int32_t e = 0; e < share->num_experts; e++) {
        if (share->first[e] == share->first[e + 1])
            continue;
        kt_expert_supply_take(site->experts, &pass->stage->run, e);
        if (backward)
            move_gradients(pass, work->layer, e, kt_site_linear_grad_in);
        run_expert(pass, work, r, fn, e, share->first[e], share->first[e + 1]);
        if (backward)
            move_gradients(pass, work->layer, e, kt_site_linear_grad_out);
    }
    kt_expert_supply_leave(site->experts, &pass->stage->run);
}

void kt_device_experts_forward(struct kt_pass *pass, const struct kt_expert_work *work,
                               const struct kt_routing *share, struct kt_view sum)
{
    uint64_t mark = kt_pass_mark(pass);
    struct rows r = take_rows(pass, work, share, sum);
    run(pass, work, share, &r, forward_piece, false);
    kt_pass_release(pass, mark);
}

void kt_device_experts_backward(struct kt_pass *pass, const struct kt_expert_work *work,
                                const struct kt_routing *share, struct kt_view sum, float *dweights)
{
    uint64_t mark = kt_pass_mark(pass);
    struct rows r = take_rows(pass, work, share, sum);
    int64_t inter = work->experts.intermediate_size;
    r.dy = work->device_dy;
    r.dweights = dweights;
    r.h = kt_take_activations(pass, r.piece, inter);
    if (work->experts.lora[KT_EXPERT_DOWN])
        r.weighed = kt_take_activations(pass, r.piece, inter);
    run(pass, work, share, &r, backward_piece, true);
    kt_pass_release(pass, mark);
}
