/* SPDX-License-Identifier: Apache-2.0 */
/* The front of all experts backends: chooses one for a call, measures, brings its sum to the device
 * and marks which matrices have a gradient. Experts are summed apart from the residual stream, so
 * that the sum is the same wherever they are computed. */
#include "core/context.h"
#include "core/memory.h"
#include "executor/executor.h"

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

/** Of experts that share the rows evenly, as a plan has to assume. */
static void measure_work(struct kt_pass *pass, const struct kt_experts *e,
                         const struct kt_expert_work *work, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    struct kt_tally *tally = &pass->host.tally;
    int64_t rows = work->routing.tokens * work->routing.topk;
    int64_t experts = kt_min_i64(rows, l->num_experts);
    double hidden = (double)l->hidden_size, inter = (double)l->intermediate_size;
    tally->flops += (backward ? 12.0 : 6.0) * (double)rows * hidden * inter;
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

static struct kt_expert_call call_of(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    return (struct kt_expert_call){.layer = &work->experts,
                                   .routing = &work->routing,
                                   .compute = pass->compute,
                                   .training = pass->training,
                                   .x = work->x,
                                   .kept = work->kept,
                                   .scratch = pass->host.site->device->scratch};
}

/** A sum of zeros on the host. */
static struct kt_view take_sum(struct kt_pass *pass, int64_t tokens, int64_t dim)
{
    struct kt_view sum = kt_host_take(pass, tokens, dim);
    struct kt_rows_args zero = {.tokens = tokens, .dim = dim, .y = sum};
    kt_run_zero(&pass->host.run, &zero);
    return sum;
}

/** y += the host's sum */
static void add_sum(struct kt_pass *pass, struct kt_view sum, int64_t tokens, int64_t dim,
                    struct kt_view y)
{
    kt_add(pass, tokens, dim, kt_to_device(pass, sum, tokens, dim), true, y);
}

void kt_experts_forward(struct kt_pass *pass, const struct kt_expert_work *work, struct kt_view y)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    struct kt_experts *e = backend_for(pass, work);
    struct kt_expert_call call = call_of(pass, work);
    struct kt_view sum = take_sum(pass, tokens, hidden);
    if (kt_pass_measures(pass))
        measure(pass, e, work, false);
    else
        e->ops->forward(e, &call, sum);
    add_sum(pass, sum, tokens, hidden, y);
}

/** The experts that have rows add to their gradients. */
static void mark_gradients(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    const int64_t *first = work->routing.first;
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        for (int32_t e = 0; work->experts.lora[k] && e < work->experts.num_experts; e++)
            if (first[e + 1] > first[e] && work->experts.lora[k][e].a)
                kt_pass_mark_grad(pass, &work->experts.lora[k][e]);
}

void kt_experts_backward(struct kt_pass *pass, const struct kt_expert_work *work, struct kt_view dx,
                         float *dweights)
{
    int64_t tokens = work->routing.tokens, hidden = work->experts.hidden_size;
    struct kt_experts *e = backend_for(pass, work);
    struct kt_expert_call call = call_of(pass, work);
    struct kt_view sum = take_sum(pass, tokens, hidden);
    if (kt_pass_measures(pass)) {
        measure(pass, e, work, true);
    } else {
        e->ops->backward(e, &call, work->dy, sum, dweights);
        mark_gradients(pass, work);
    }
    add_sum(pass, sum, tokens, hidden, dx);
}
