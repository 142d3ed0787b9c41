/* SPDX-License-Identifier: Apache-2.0 */
/* The front of all experts backends: chooses one for a call, measures, brings its sum to the device
 * and marks which matrices have a gradient. Experts are summed apart from the residual stream, so
 * that the sum is the same wherever they are computed. */
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "executor/executor.h"
#include "placement/share.h"

static bool any_lora(const struct kt_pass *pass, const struct kt_linear *linears, int32_t count)
{
    for (int32_t e = 0; e < count; e++)
        if (kt_pass_lora(pass, &linears[e]))
            return true;
    return false;
}

struct kt_expert_layer kt_routed_layer(const struct kt_pass *pass, const struct kt_layer *layer)
{
    const struct kt_model_config *config = &pass->model->config;
    struct kt_expert_layer experts = {.num_experts = config->n_routed_experts,
                                      .hidden_size = config->hidden_size,
                                      .intermediate_size = config->moe_intermediate_size,
                                      .activation = config->activation};
    for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
        const struct kt_linear *linears = layer->experts[k];
        experts.weights[k] = layer->expert_weights[k];
        if (any_lora(pass, linears, experts.num_experts))
            experts.lora[k] = &pass->lora->slots[linears[0].index];
    }
    return experts;
}

/** The layer's backend, or the CPU's where that one does not compute such calls. */
static struct kt_experts *backend_for(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    struct kt_experts *experts = pass->executor->experts[work->layer - pass->model->layers];
    bool does = experts->ops->supports(experts, &work->experts, pass->compute, work->routing.tokens,
                                       pass->training);
    return does ? experts : pass->executor->general;
}

enum kt_experts_where kt_experts_where(const struct kt_pass *pass, const struct kt_layer *layer)
{
    return pass->executor->where[layer - pass->model->layers];
}

/** Backward is counted as one that reads what forward kept. */
static double flops_of(const struct kt_expert_layer *l, int64_t rows, bool backward)
{
    double hidden = (double)l->hidden_size, inter = (double)l->intermediate_size;
    return (backward ? 12.0 : 6.0) * (double)rows * hidden * inter;
}

/** Of experts that share the rows evenly, as a plan has to assume. */
static void measure_work(struct kt_pass *pass, const struct kt_experts *e,
                         const struct kt_expert_work *work, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    struct kt_tally *tally = &pass->host.tally;
    int64_t rows = work->routing.tokens * work->routing.topk;
    int64_t experts = kt_min_i64(rows, l->num_experts);
    tally->flops += flops_of(l, rows, backward);
    tally->bytes += kt_experts_bytes(l, rows, experts);
    if (experts)
        pass->experts_seconds +=
            (double)experts * e->ops->seconds(e, l, (rows + experts - 1) / experts, backward);
}

static void measure(struct kt_pass *pass, const struct kt_experts *e,
                    const struct kt_expert_work *work, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    struct kt_tally *tally = &pass->host.tally;
    uint64_t scratch = e->ops->scratch_bytes(e, l, pass->compute, work->routing.tokens,
                                             work->routing.topk, backward);
    if (scratch > tally->scratch)
        tally->scratch = scratch;
    measure_work(pass, e, work, backward);
}

static struct kt_expert_call call_of(const struct kt_pass *pass, const struct kt_expert_work *work,
                                     const struct kt_routing *share)
{
    return (struct kt_expert_call){.layer = &work->experts,
                                   .routing = share,
                                   .compute = pass->compute,
                                   .training = pass->training,
                                   .x = work->x,
                                   .kept = work->kept,
                                   .scratch = pass->host.site->device->scratch};
}

/** x = 0, on the host */
static void clear(struct kt_pass *pass, int64_t tokens, int64_t dim, struct kt_view x)
{
    struct kt_rows_args zero = {.tokens = tokens, .dim = dim, .y = x};
    kt_run_zero(&pass->host.run, &zero);
}

/** y += a sum on the host */
static void add_sum(struct kt_pass *pass, struct kt_view sum, int64_t tokens, int64_t dim,
                    struct kt_view y)
{
    kt_add(pass, tokens, dim, kt_to_device(pass, sum, tokens, dim), true, y);
}

/** A backend's work on a share, which begins here. */
static struct kt_scope trace_work(const struct kt_pass *pass, const struct kt_expert_work *work,
                                  const struct kt_routing *share, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    int64_t rows = share->first[share->num_experts], experts = 0;
    if (!pass->ctx->trace)
        return (struct kt_scope){0};
    for (int32_t e = 0; e < share->num_experts; e++)
        experts += share->first[e + 1] > share->first[e];
    return kt_trace_begin(pass->ctx->trace, KT_TRACK_CPU,
                          backward ? "experts_backward" : "experts_forward",
                          kt_experts_bytes(l, rows, experts), flops_of(l, rows, backward));
}

/* -- the host's share -------------------------------------------------------------------------- */

/** sum += the rows of a share. */
static void host_forward(struct kt_pass *pass, const struct kt_expert_work *work,
                         const struct kt_routing *share, struct kt_view sum)
{
    struct kt_experts *e = backend_for(pass, work);
    struct kt_expert_call call = call_of(pass, work, share);
    if (kt_pass_measures(pass)) {
        measure(pass, e, work, false);
        return;
    }
    KT_SCOPE_END struct kt_scope scope = trace_work(pass, work, share, false);
    e->ops->forward(e, &call, sum);
}

static void host_backward(struct kt_pass *pass, const struct kt_expert_work *work,
                          const struct kt_routing *share, struct kt_view sum, float *dweights)
{
    struct kt_experts *e = backend_for(pass, work);
    struct kt_expert_call call = call_of(pass, work, share);
    if (kt_pass_measures(pass)) {
        measure(pass, e, work, true);
        return;
    }
    KT_SCOPE_END struct kt_scope scope = trace_work(pass, work, share, true);
    e->ops->backward(e, &call, work->dy, sum, dweights);
}

/* -- who computes what ------------------------------------------------------------------------- */

/** The routing's rows, divided. */
struct shares {
    struct kt_routing host, device;
    bool has_host, has_device;
    uint8_t *chosen; /**< [num_experts] 1 = the device's */
};

/** What an expert takes on the current device: to bring it there and to multiply, whichever is
 * longer. */
static double device_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                             struct kt_rates rates, int32_t expert, int64_t rows, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    int32_t layer = (int32_t)(work->layer - pass->model->layers);
    uint64_t distance = kt_expert_supply_distance(pass->stage->site->experts, layer, expert);
    double products = backward ? 15 : 6;
    double flops = products * (double)rows * (double)l->hidden_size * (double)l->intermediate_size;
    double bring = (double)distance / rates.link, multiply = flops / rates.flops;
    return rows ? (bring > multiply ? bring : multiply) : 0;
}

/** Beside a device that reads the host's memory, experts take so many times as long. Measured with
 * "amx" on 16 threads, at 48 rows an expert: 2.0 forward, 2.2 backward. */
static const double beside_device = 2;

/** What an expert takes on the host. Backward recomputes two of forward's three products. */
static double host_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                           int64_t rows, bool backward)
{
    const struct kt_experts *e = backend_for(pass, work);
    double seconds = e->ops->seconds(e, &work->experts, rows, backward);
    if (backward)
        seconds += e->ops->seconds(e, &work->experts, rows, false) * 2 / 3;
    return beside_device * seconds;
}

/** What bringing inputs to the host and its sum back takes: each is copied, and the sum cleared. */
static double host_fixed_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                                 bool backward)
{
    const struct kt_device *host = pass->host.site->device;
    double copies = backward ? 6 : 4;
    double bytes = 4.0 * (double)work->routing.tokens * (double)work->experts.hidden_size;
    return copies * bytes / host->ops->rates(host, pass->compute).bytes;
}

static void choose(const struct kt_pass *pass, const struct kt_expert_work *work, bool backward,
                   struct kt_share_cost *costs, int32_t *order, uint8_t *chosen)
{
    const struct kt_routing *r = &work->routing;
    const struct kt_device *device = pass->stage->site->device;
    struct kt_rates rates = device->ops->rates(device, pass->compute);
    KT_TRACE_HOST(pass->ctx, "divide experts");
    for (int32_t i = 0; i < r->num_experts; i++) {
        int64_t rows = r->first[i + 1] - r->first[i];
        costs[i] =
            (struct kt_share_cost){.host = host_seconds(pass, work, rows, backward),
                                   .device = device_seconds(pass, work, rates, i, rows, backward)};
    }
    kt_share_choose(costs, r->num_experts, host_fixed_seconds(pass, work, backward), order, chosen);
}

/** Shares take memory on the host's arena. */
static struct shares divide(struct kt_pass *pass, const struct kt_expert_work *work, bool backward)
{
    struct kt_arena *arena = kt_host_arena(pass);
    const struct kt_routing *r = &work->routing;
    int64_t bytes = (int64_t)kt_routing_bytes(r->tokens, r->topk, r->num_experts);
    struct shares s = {.host = *r,
                       .device = *r,
                       .has_host = work->where != KT_EXPERTS_DEVICE,
                       .has_device = work->where != KT_EXPERTS_HOST};
    if (!s.has_device)
        return s;
    s.chosen = kt_arena_take(arena, r->num_experts, 1, 1);
    void *memory[] = {kt_arena_take(arena, bytes, 1, 1), kt_arena_take(arena, bytes, 1, 1)};
    void *costs = kt_arena_take(arena, r->num_experts, sizeof(struct kt_share_cost), 1);
    void *order = kt_arena_take(arena, r->num_experts, sizeof(int32_t), 1);
    if (kt_pass_measures(pass))
        return s;
    for (int32_t e = 0; e < r->num_experts; e++)
        s.chosen[e] = r->first[e + 1] > r->first[e];
    if (!s.has_host)
        return s;
    choose(pass, work, backward, costs, order, s.chosen);
    s.device = kt_routing_share(r, s.chosen, memory[0]);
    for (int32_t e = 0; e < r->num_experts; e++)
        s.chosen[e] = !s.chosen[e];
    s.host = kt_routing_share(r, s.chosen, memory[1]);
    for (int32_t e = 0; e < r->num_experts; e++)
        s.chosen[e] = !s.chosen[e];
    s.has_host = s.host.first[r->num_experts] > 0;
    s.has_device = s.device.first[r->num_experts] > 0;
    return s;
}

/** The device's experts begin to travel; those of the next layer follow if it will use most. */
static void enter_supply(struct kt_pass *pass, const struct kt_expert_work *work,
                         const struct shares *s)
{
    int64_t slots = work->routing.tokens * work->routing.topk;
    int32_t layer = (int32_t)(work->layer - pass->model->layers);
    kt_expert_supply_enter(pass->stage->site->experts, &pass->stage->run, layer, s->chosen,
                           slots < work->routing.num_experts ? -1 : pass->next_unit);
}

/** The inputs of a host's share begin to travel, before the device is at its own; only then, as the
 * device often does all. */
static void bring(struct kt_pass *pass, struct kt_expert_work *work, bool backward)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    if (work->where == KT_EXPERTS_HOST)
        return;
    work->x = kt_to_host(pass, work->n, tokens, hidden);
    if (backward)
        work->dy = kt_to_host(pass, work->device_dy, tokens, hidden);
}

/* The device begins first and is waited for last, by what follows. */

kt_status kt_experts_forward(struct kt_pass *pass, struct kt_expert_work *work, struct kt_view y)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    struct shares s = divide(pass, work, false);
    struct kt_view sum = y;
    if (s.has_host)
        bring(pass, work, false);
    if (s.has_device) {
        sum = kt_take(pass, tokens, hidden);
        kt_zero(pass, tokens, hidden, sum);
        enter_supply(pass, work, &s);
        kt_device_experts_forward(pass, work, &s.device, sum);
    }
    if (s.has_host) {
        struct kt_view host = kt_host_take(pass, tokens, hidden);
        KT_TRY(kt_host_wait(pass));
        clear(pass, tokens, hidden, host);
        host_forward(pass, work, &s.host, host);
        add_sum(pass, host, tokens, hidden, sum);
    }
    if (s.has_device)
        kt_add(pass, tokens, hidden, sum, true, y);
    return KT_OK;
}

/** The experts that have rows add to their gradients. */
static void mark_gradients(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    const int64_t *first = work->routing.first;
    for (int k = 0; !kt_pass_measures(pass) && k < KT_EXPERT_LINEARS; k++)
        for (int32_t e = 0; work->experts.lora[k] && e < work->experts.num_experts; e++)
            if (first[e + 1] > first[e] && work->experts.lora[k][e].a)
                kt_pass_mark_grad(pass, &work->experts.lora[k][e]);
}

kt_status kt_experts_backward(struct kt_pass *pass, struct kt_expert_work *work, struct kt_view dx,
                              const float **dweights_out)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    int32_t topk = work->routing.topk;
    struct shares s = divide(pass, work, true);
    struct kt_view sum = dx, dweights = {0};
    if (s.has_host)
        bring(pass, work, true);
    if (s.has_device) {
        dweights = kt_take(pass, tokens, topk);
        sum = kt_take(pass, tokens, hidden);
        kt_zero(pass, tokens, topk, dweights);
        kt_zero(pass, tokens, hidden, sum);
        enter_supply(pass, work, &s);
        kt_device_experts_backward(pass, work, &s.device, sum, dweights.data);
    }
    if (s.has_host) {
        struct kt_view host = kt_host_take(pass, tokens, hidden);
        struct kt_view of_host = kt_host_take(pass, tokens, topk);
        KT_TRY(kt_host_wait(pass));
        clear(pass, tokens, hidden, host);
        clear(pass, tokens, topk, of_host);
        host_backward(pass, work, &s.host, host, of_host.data);
        add_sum(pass, host, tokens, hidden, sum);
        of_host = kt_to_device(pass, of_host, tokens, topk);
        if (s.has_device)
            kt_add(pass, tokens, topk, of_host, true, dweights);
        else
            dweights = of_host;
    }
    if (s.has_device)
        kt_add(pass, tokens, hidden, sum, true, dx);
    mark_gradients(pass, work);
    *dweights_out = dweights.data;
    return KT_OK;
}
