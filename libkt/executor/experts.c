/* SPDX-License-Identifier: Apache-2.0 */
/* The front of all experts backends: chooses one for a call, measures, brings its sum to the device
 * and marks which matrices have a gradient. Experts are summed apart from the residual stream, so
 * that the sum is the same wherever they are computed. */
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "executor/executor.h"
#include "executor/expert_shares.h"

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
    struct kt_experts *e = kt_experts_of_host(pass, work);
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
    struct kt_experts *e = kt_experts_of_host(pass, work);
    struct kt_expert_call call = call_of(pass, work, share);
    if (kt_pass_measures(pass)) {
        measure(pass, e, work, true);
        return;
    }
    KT_SCOPE_END struct kt_scope scope = trace_work(pass, work, share, true);
    e->ops->backward(e, &call, work->dy, sum, dweights);
}

/* -- both ------------------------------------------------------------------------------------- */

/** The device's experts begin to travel; as many of the next layer follow, unless few are used. */
static void enter_supply(struct kt_pass *pass, const struct kt_expert_work *work,
                         const struct kt_expert_shares *s)
{
    int64_t slots = work->routing.tokens * work->routing.topk;
    int32_t layer = (int32_t)(work->layer - pass->model->layers);
    const struct kt_site *site = pass->stage->site;
    int32_t then = slots < work->routing.num_experts ? -1 : pass->next_unit;
    if (then >= 0 && kt_supply_lacks(site->supply, then))
        then = -1; /* its pages are not in memory yet */
    kt_expert_supply_enter(site->experts, &pass->stage->run, layer, s->chosen, then, s->travels);
}

/** The inputs of a host's share begin to travel, before the device is at its own; only then, as the
 * device often does all. When the mark is passed they are there. */
static kt_mark bring(struct kt_pass *pass, struct kt_expert_work *work, bool backward)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    if (work->where != KT_EXPERTS_HOST)
        work->x = kt_to_host(pass, work->n, tokens, hidden);
    if (work->where != KT_EXPERTS_HOST && backward)
        work->dy = kt_to_host(pass, work->device_dy, tokens, hidden);
    return kt_run_mark(&pass->stage->run, KT_QUEUE_OUT);
}

/** Brings the chosen experts into memory. */
static kt_status bring_experts(struct kt_pass *pass, const struct kt_expert_work *work)
{
    if (kt_pass_measures(pass) || work->experts.weights[0] != work->layer->expert_weights[0])
        return KT_OK; /* a shared expert comes with its layer */
    return kt_supply_experts(pass->stage->site->supply, work->layer, &work->routing);
}

/* The device begins first and is waited for last, by what follows. The host waits for its inputs
 * alone: what it sends goes behind whatever the device is at. */

kt_status kt_experts_forward(struct kt_pass *pass, struct kt_expert_work *work, struct kt_view y)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    KT_TRY(bring_experts(pass, work));
    struct kt_expert_shares s = kt_expert_shares_divide(pass, work, false);
    const struct kt_runner *run = &pass->stage->run;
    struct kt_view sum = y;
    kt_mark brought = s.has_host ? bring(pass, work, false) : 0, done = 0;
    if (s.has_device) {
        sum = kt_take(pass, tokens, hidden);
        kt_zero(pass, tokens, hidden, sum);
        enter_supply(pass, work, &s);
        kt_device_experts_forward(pass, work, &s.device, sum);
        done = kt_run_mark(run, KT_QUEUE_COMPUTE);
    }
    if (s.has_host) {
        struct kt_view host = kt_host_take(pass, tokens, hidden);
        KT_TRY(kt_run_sync(run, brought));
        clear(pass, tokens, hidden, host);
        host_forward(pass, work, &s.host, host);
        add_sum(pass, host, tokens, hidden, sum);
    }
    if (s.has_device)
        kt_add(pass, tokens, hidden, sum, true, y);
    return kt_expert_shares_join(pass, &s, done);
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
    KT_TRY(bring_experts(pass, work));
    struct kt_expert_shares s = kt_expert_shares_divide(pass, work, true);
    const struct kt_runner *run = &pass->stage->run;
    struct kt_view sum = dx, dweights = {0};
    kt_mark brought = s.has_host ? bring(pass, work, true) : 0, done = 0;
    if (s.has_device) {
        dweights = kt_take(pass, tokens, topk);
        sum = kt_take(pass, tokens, hidden);
        kt_zero(pass, tokens, topk, dweights);
        kt_zero(pass, tokens, hidden, sum);
        enter_supply(pass, work, &s);
        kt_device_experts_backward(pass, work, &s.device, sum, dweights.data);
        done = kt_run_mark(run, KT_QUEUE_COMPUTE);
    }
    if (s.has_host) {
        struct kt_view host = kt_host_take(pass, tokens, hidden);
        struct kt_view of_host = kt_host_take(pass, tokens, topk);
        KT_TRY(kt_run_sync(run, brought));
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
    return kt_expert_shares_join(pass, &s, done);
}
