/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts on the device of their layer, in ascending order and several at a time: their rows
 * are gathered, go through the linears of their experts as through any other, and are added to the
 * sum of their tokens. An expert with many rows is done in pieces. */
#include <string.h>

#include "core/memory.h"
#include "executor/pass.h"

enum {
    PIECE = 4096,      /* most rows at one time, or */
    LEAST_PIECE = 1024 /* where the tokens are fewer: so that few rows of many experts fit */
};

/** The rows of a share on the device, and memory for those that are done at one time. */
struct rows {
    const int64_t *first;         /**< [num_experts + 1] of the share; NULL = even shares */
    int64_t total, even;          /**< rows, and those of an expert where they are even */
    const int32_t *index, *slots; /**< [total] token and slot of each */
    const int32_t *token_rows;    /**< [tokens, topk] */
    const float *weights;         /**< likewise */
    int64_t piece;                /**< most rows at one time */
    const struct kt_expert_supply *supply;
    struct kt_view x, y;           /**< [piece, hidden_size]; y float32 */
    struct kt_view gate, up;       /**< [piece, intermediate_size] */
    struct kt_view h, dh, weighed; /**< likewise, in backward; `weighed` where down has LoRA */
    struct kt_view dy_rows;        /**< [piece, hidden_size]; y, where down has LoRA */
    struct kt_view dy, sum;        /**< [tokens, hidden_size] */
    struct kt_view n;              /**< likewise, the input */
    float *dweights;               /**< [tokens, topk] */
};

/** Rows [begin, begin + rows) of a share: experts one after another. */
struct group {
    int64_t begin, rows;
    int32_t num;
    int32_t expert[KT_EXPERTS_TOGETHER];
    int64_t first[KT_EXPERTS_TOGETHER + 1]; /**< of each, counted from `begin` */
};

static int64_t first_of(const struct rows *r, int32_t e)
{
    return r->first ? r->first[e] : kt_min_i64(e * r->even, r->total);
}

/** The group that begins at row g->begin + g->rows; false at the end. An expert is divided only
 * where it alone is too large, so that results do not depend on how many are done together. */
static bool next_group(const struct rows *r, int32_t num_experts, struct group *g)
{
    int32_t e = g->num ? g->expert[g->num - 1] : 0, moving = 0;
    *g = (struct group){.begin = g->begin + g->rows};
    for (; e < num_experts && g->num < KT_EXPERTS_TOGETHER; e++) {
        int64_t begin = kt_max_i64(first_of(r, e), g->begin), rows = first_of(r, e + 1) - begin;
        if (rows <= 0)
            continue;
        moving += !kt_expert_supply_stays(r->supply, e);
        if (g->num && (g->rows + rows > r->piece || moving > kt_expert_supply_moving(r->supply)))
            break;
        g->expert[g->num++] = e;
        g->rows = kt_min_i64(g->rows + rows, r->piece);
        g->first[g->num] = g->rows;
    }
    return g->num > 0;
}

/** Tokens and slots of rows, and rows of tokens, on the device. */
static void send_rows(struct kt_pass *pass, const struct kt_routing *share, struct rows *r)
{
    int64_t slots = share->tokens * share->topk;
    int32_t *words = kt_host_take(pass, 3, slots).data;
    if (kt_pass_measures(pass)) {
        r->total = slots;
        r->even = (slots + share->num_experts - 1) / share->num_experts;
    } else {
        r->first = share->first;
        r->total = share->first[share->num_experts];
        for (int64_t i = 0; i < r->total; i++)
            words[i] = share->slots[i] / share->topk;
        memcpy(words + r->total, share->slots, (size_t)r->total * sizeof *words);
        memcpy(words + 2 * r->total, share->rows, (size_t)slots * sizeof *words);
    }
    r->index = kt_words_to_device(pass, words, 2 * r->total + slots);
    r->slots = r->index + r->total;
    r->token_rows = r->slots + r->total;
}

static struct rows take_rows(struct kt_pass *pass, const struct kt_expert_work *work,
                             const struct kt_routing *share, struct kt_view sum)
{
    int64_t most = kt_max_i64(kt_min_i64(share->tokens, PIECE), LEAST_PIECE);
    int64_t piece = kt_min_i64(share->tokens * share->topk, most);
    struct rows r = {.weights = work->device_weights,
                     .piece = piece,
                     .supply = pass->stage->site->experts,
                     .sum = sum,
                     .n = work->n};
    send_rows(pass, share, &r);
    r.x = kt_take_activations(pass, piece, work->experts.hidden_size);
    r.y = kt_take(pass, piece, work->experts.hidden_size);
    r.gate = kt_take_activations(pass, piece, work->experts.intermediate_size);
    r.up = kt_take_activations(pass, piece, work->experts.intermediate_size);
    return r;
}

static struct kt_gather_args rows_of(const struct kt_expert_work *work, const struct rows *r,
                                     const struct group *g, int64_t dim)
{
    return (struct kt_gather_args){.rows = g->rows,
                                   .dim = dim,
                                   .tokens = work->routing.tokens,
                                   .index = r->index + g->begin,
                                   .topk = work->routing.topk,
                                   .token_rows = r->token_rows,
                                   .first_row = g->begin,
                                   .num_slots = work->routing.tokens * work->routing.topk,
                                   .slots = r->slots + g->begin};
}

static void gather(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                   const struct group *g, struct kt_view from, struct kt_view to)
{
    struct kt_gather_args args = rows_of(work, r, g, work->experts.hidden_size);
    args.x = from;
    args.y = to;
    kt_run_gather(&pass->stage->run, &args);
}

static void scatter(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                    const struct group *g, const float *weights, struct kt_view from)
{
    struct kt_gather_args args = rows_of(work, r, g, work->experts.hidden_size);
    args.weights = weights;
    args.x = from;
    args.y = r->sum;
    kt_run_scatter_add(&pass->stage->run, &args);
}

/** One linear of the group's i-th expert, on its rows. */
static struct kt_linear_call call_of(const struct kt_expert_work *work, const struct rows *r,
                                     const struct group *g, int32_t i, int linear, struct kt_view x,
                                     struct kt_view y)
{
    int64_t at = g->first[i];
    return (struct kt_linear_call){.linear = &work->layer->experts[linear][g->expert[i]],
                                   .tokens = g->first[i + 1] - at,
                                   .x = kt_view_at(x, at, 0),
                                   .y = kt_view_at(y, at, 0),
                                   .row_tokens = r->index + g->begin + at};
}

/** The gate and up products of gathered rows. */
static void gate_and_up(struct kt_pass *pass, const struct kt_expert_work *work,
                        const struct rows *r, const struct group *g)
{
    struct kt_linear_call calls[2 * KT_EXPERTS_TOGETHER];
    for (int32_t i = 0; i < g->num; i++) {
        calls[2 * i] = call_of(work, r, g, i, KT_EXPERT_GATE, r->x, r->gate);
        calls[2 * i + 1] = call_of(work, r, g, i, KT_EXPERT_UP, r->x, r->up);
    }
    gather(pass, work, r, g, r->n, r->x);
    kt_linears_forward(pass, 2 * g->num, calls);
}

static void down(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                 const struct group *g)
{
    struct kt_linear_call calls[KT_EXPERTS_TOGETHER];
    for (int32_t i = 0; i < g->num; i++)
        calls[i] = call_of(work, r, g, i, KT_EXPERT_DOWN, r->gate, r->y);
    kt_linears_forward(pass, g->num, calls);
}

/** dx (+)= the gradient of a linear's input x, from dy. */
static void linear_backward(struct kt_pass *pass, const struct kt_expert_work *work,
                            const struct rows *r, const struct group *g, int linear,
                            struct kt_view x, struct kt_view dy, bool accumulate, struct kt_view dx)
{
    struct kt_linear_call calls[KT_EXPERTS_TOGETHER];
    for (int32_t i = 0; i < g->num; i++) {
        calls[i] = call_of(work, r, g, i, linear, x, dy);
        calls[i].dx = kt_view_at(dx, g->first[i], 0);
    }
    kt_linears_backward(pass, g->num, calls, accumulate);
}

static struct kt_glu_args glu(const struct kt_expert_work *work, const struct rows *r,
                              const struct group *g)
{
    return (struct kt_glu_args){.activation = work->experts.activation,
                                .tokens = g->rows,
                                .dim = work->experts.intermediate_size,
                                .gate = r->gate,
                                .up = r->up};
}

static void forward_group(struct kt_pass *pass, const struct kt_expert_work *work,
                          const struct rows *r, const struct group *g)
{
    struct kt_glu_args args = glu(work, r, g);
    args.h = r->gate;
    gate_and_up(pass, work, r, g);
    kt_run_glu_forward(&pass->stage->run, &args);
    down(pass, work, r, g);
    scatter(pass, work, r, g, r->weights, r->y);
}

/** What down's LoRA takes for its input while the gradient of its output is not weighed yet: h,
 * weighed instead. */
static struct kt_view input_of_down(struct kt_pass *pass, const struct kt_expert_work *work,
                                    const struct rows *r, const struct group *g)
{
    struct kt_gather_args args = rows_of(work, r, g, work->experts.intermediate_size);
    if (!r->weighed.data)
        return r->h;
    args.tokens = g->rows;
    args.index = NULL;
    args.weights = r->weights;
    args.x = r->h;
    args.y = r->weighed;
    kt_run_gather(&pass->stage->run, &args);
    return r->weighed;
}

static void backward_group(struct kt_pass *pass, const struct kt_expert_work *work,
                           const struct rows *r, const struct group *g)
{
    const struct kt_runner *run = &pass->stage->run;
    struct kt_glu_args args = glu(work, r, g);
    struct kt_weigh_args weigh = {.rows = g->rows,
                                  .dim = work->experts.intermediate_size,
                                  .num_slots = work->routing.tokens * work->routing.topk,
                                  .slots = r->slots + g->begin,
                                  .weights = r->weights,
                                  .dweights = r->dweights,
                                  .h = r->h,
                                  .dh = r->dh};
    args.h = r->h;
    gate_and_up(pass, work, r, g);
    kt_run_glu_forward(run, &args);
    gather(pass, work, r, g, r->dy, r->dy_rows);
    linear_backward(pass, work, r, g, KT_EXPERT_DOWN, input_of_down(pass, work, r, g), r->dy_rows,
                    false, r->dh);
    kt_run_weigh(run, &weigh);
    args.dh = r->dh;
    args.dgate = r->gate;
    args.dup = r->up;
    kt_run_glu_backward(run, &args);
    linear_backward(pass, work, r, g, KT_EXPERT_GATE, r->x, r->gate, false, r->y);
    linear_backward(pass, work, r, g, KT_EXPERT_UP, r->x, r->up, true, r->y);
    scatter(pass, work, r, g, NULL, r->y);
}

typedef void (*group_fn)(struct kt_pass *pass, const struct kt_expert_work *work,
                         const struct rows *r, const struct group *g);

enum { ALIGNED_ROWS = 16 /* rows of the narrowest matrix that fill what an arena aligns to */ };

/** Whether experts have other LoRA, which takes other memory. */
static bool differ(const struct kt_pass *pass, const struct kt_layer *layer, int32_t a, int32_t b)
{
    for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
        const struct kt_lora_pair *x = kt_pass_lora(pass, &layer->experts[k][a]);
        const struct kt_lora_pair *y = kt_pass_lora(pass, &layer->experts[k][b]);
        if (!x != !y || (x && (x->rank != y->rank || x->dropout != y->dropout)))
            return true;
    }
    return false;
}

/** The memory of as many rows as are done at one time, of so many experts like `expert`. */
static void measure_large(struct kt_pass *pass, const struct kt_expert_work *work,
                          const struct rows *r, group_fn fn, int32_t expert, int32_t experts)
{
    struct kt_tally *tally = &pass->stage->tally, before = *tally;
    struct group g = {.num = experts};
    for (int32_t i = 0; i < experts; i++)
        g.expert[i] = expert;
    for (int32_t i = 0; i < experts; i++)
        g.first[i + 1] = g.first[i] + r->piece / experts + (experts > 1 ? ALIGNED_ROWS : 0);
    g.rows = r->piece;
    fn(pass, work, r, &g);
    before.scratch = tally->scratch;
    *tally = before;
}

typedef void (*gradient_fn)(const struct kt_site *site, const struct kt_runner *run,
                            const kt_lora *lora, const struct kt_linear *linear);

/** Brings the gradients of the matrices of a group to the device, or back; but not of the expert
 * `but`, which was in use before the group, or is behind it. */
static void move_gradients(struct kt_pass *pass, const struct kt_layer *layer,
                           const struct group *g, int32_t but, gradient_fn move)
{
    const struct kt_site *site = pass->stage->site;
    bool moves = !kt_device_is_host(site->device) && !kt_pass_measures(pass);
    for (int32_t i = 0; moves && i < g->num; i++)
        for (int k = 0; k < KT_EXPERT_LINEARS; k++)
            if (g->expert[i] != but && kt_pass_lora(pass, &layer->experts[k][g->expert[i]]))
                move(site, &pass->stage->run, pass->lora, &layer->experts[k][g->expert[i]]);
}

/** Its experts are taken but for the first, if that is the one that was in use before. */
static void take(struct kt_pass *pass, const struct group *g, int32_t before)
{
    struct kt_expert_supply *supply = pass->stage->site->experts;
    for (int32_t i = 0; i < g->num; i++)
        if (g->expert[i] != before)
            kt_expert_supply_take(supply, &pass->stage->run, g->expert[i]);
}

static void run(struct kt_pass *pass, const struct kt_expert_work *work, const struct rows *r,
                group_fn fn, bool backward)
{
    const struct kt_site *site = pass->stage->site;
    struct group g = {0};
    uint64_t mark = kt_pass_mark(pass);
    int32_t before = -1; /* the expert whose rows go on in the next group */
    for (int32_t e = 0; kt_pass_measures(pass) && r->total && e < work->experts.num_experts; e++)
        if (e == 0 || differ(pass, work->layer, e, e - 1)) {
            measure_large(pass, work, r, fn, e, 1);
            measure_large(pass, work, r, fn, e, KT_EXPERTS_TOGETHER);
        }
    while (next_group(r, work->experts.num_experts, &g)) {
        int32_t last = g.expert[g.num - 1];
        int32_t behind = first_of(r, last + 1) > g.begin + g.rows ? last : -1;
        if (before < 0)
            kt_expert_supply_give_back(site->experts, &pass->stage->run);
        take(pass, &g, before);
        if (backward)
            move_gradients(pass, work->layer, &g, before, kt_site_linear_grad_in);
        fn(pass, work, r, &g);
        if (backward)
            move_gradients(pass, work->layer, &g, behind, kt_site_linear_grad_out);
        kt_pass_release(pass, mark);
        before = behind;
    }
    kt_expert_supply_give_back(site->experts, &pass->stage->run);
}

void kt_device_experts_forward(struct kt_pass *pass, const struct kt_expert_work *work,
                               const struct kt_routing *share, struct kt_view sum)
{
    uint64_t mark = kt_pass_mark(pass);
    struct rows r = take_rows(pass, work, share, sum);
    run(pass, work, &r, forward_group, false);
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
    r.dh = kt_take_activations(pass, r.piece, inter);
    r.dy_rows = r.y;
    if (work->experts.lora[KT_EXPERT_DOWN])
        r.weighed = kt_take_activations(pass, r.piece, inter);
    else
        r.dy_rows = kt_take_activations(pass, r.piece, work->experts.hidden_size);
    run(pass, work, &r, backward_group, true);
    kt_pass_release(pass, mark);
}
