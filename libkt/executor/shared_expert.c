/* SPDX-License-Identifier: Apache-2.0 */
/* Shared experts that a gate weighs are a layer of one expert that every token chooses, with the
 * sigmoid of the gate for its weight: the experts backend computes them, and d(weight) with it. */
#include <string.h>

#include "core/context.h"
#include "executor/pass.h"

struct gate {
    struct kt_router_args router; /**< on the device */
    struct kt_expert_work work;   /**< on the host, after kt_host_wait */
    int32_t *ids;                 /**< [tokens], all 0, on the host */
    float *weights;               /**< [tokens], on the host */
};

struct kt_expert_layer kt_shared_layer(const struct kt_pass *pass, const struct kt_layer *layer)
{
    const struct kt_model_config *config = &pass->model->config;
    const struct kt_linear *linears[KT_EXPERT_LINEARS] = {[KT_EXPERT_GATE] = layer->mlp.gate,
                                                          [KT_EXPERT_UP] = layer->mlp.up,
                                                          [KT_EXPERT_DOWN] = layer->mlp.down};
    struct kt_expert_layer shared = {.num_experts = 1,
                                     .hidden_size = config->hidden_size,
                                     .intermediate_size = layer->mlp.intermediate_size,
                                     .activation = config->activation};
    for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
        shared.weights[k] = &linears[k]->weight;
        shared.lora[k] = kt_pass_lora(pass, linears[k]);
    }
    return shared;
}

/** The gate's weights on the device, and everything on its way to the host. */
static struct gate weigh(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                         const struct kt_products *products)
{
    int64_t tokens = pass->tokens;
    struct gate g = {.work = {.layer = layer,
                              .experts = kt_shared_layer(pass, layer),
                              .routing = {.tokens = tokens, .topk = 1, .num_experts = 1},
                              .kept = products->shared}};
    struct kt_view logits = kt_take(pass, tokens, 1);
    g.router = (struct kt_router_args){.router = {.scoring = KT_SCORING_SIGMOID,
                                                  .num_experts = 1,
                                                  .topk = 1,
                                                  .n_group = 1,
                                                  .topk_group = 1,
                                                  .routed_scaling_factor = 1},
                                       .tokens = tokens,
                                       .logits = logits.data,
                                       .ids = kt_take_ints(pass, tokens, 1),
                                       .weights = kt_take(pass, tokens, 1).data};
    kt_linear_forward(pass, layer->shared_gate, tokens, n, false, logits);
    kt_run_router_forward(&pass->stage->run, &g.router);
    g.ids = kt_host_take(pass, tokens, 1).data;
    g.weights = kt_to_host(pass, kt_view_f32(g.router.weights, 1), tokens, 1).data;
    g.work.x = kt_to_host(pass, n, tokens, pass->model->config.hidden_size);
    return g;
}

/** Waits for the host's copies and sorts them. */
static kt_status fetch(struct kt_pass *pass, struct gate *g)
{
    struct kt_routing *r = &g->work.routing;
    void *memory =
        kt_arena_take(kt_host_arena(pass), (int64_t)kt_routing_bytes(r->tokens, 1, 1), 1, 1);
    KT_TRY(kt_host_wait(pass));
    if (kt_pass_measures(pass))
        return KT_OK;
    memset(g->ids, 0, (size_t)r->tokens * sizeof *g->ids);
    r->ids = g->ids;
    r->weights = g->weights;
    kt_routing_sort(r, memory);
    return KT_OK;
}

kt_status kt_shared_forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                            const struct kt_products *products, struct kt_view y)
{
    if (!layer->mlp.gate)
        return KT_OK;
    if (!layer->shared_gate) {
        kt_mlp_forward(pass, &layer->mlp, n, products, y);
        return KT_OK;
    }
    struct kt_marks marks = kt_pass_marks(pass);
    struct gate g = weigh(pass, layer, n, products);
    KT_TRY(fetch(pass, &g));
    KT_TRY(kt_experts_forward(pass, &g.work, y));
    kt_pass_release_marks(pass, marks);
    return KT_OK;
}

static kt_status gated_backward(struct kt_pass *pass, const struct kt_layer *layer,
                                struct kt_view n, const struct kt_products *products,
                                struct kt_view dy, struct kt_view dn)
{
    int64_t tokens = pass->tokens;
    struct kt_marks marks = kt_pass_marks(pass);
    struct gate g = weigh(pass, layer, n, products);
    struct kt_view dlogits = kt_take(pass, tokens, 1);
    g.work.dy = kt_to_host(pass, dy, tokens, pass->model->config.hidden_size);
    KT_TRY(fetch(pass, &g));
    KT_TRY(kt_experts_backward(pass, &g.work, dn, &g.router.dweights));
    g.router.dlogits = dlogits.data;
    kt_run_router_backward(&pass->stage->run, &g.router);
    kt_linear_backward(pass, layer->shared_gate, tokens, n, dlogits, true, dn);
    kt_pass_release_marks(pass, marks);
    return KT_OK;
}

kt_status kt_shared_backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                             const struct kt_products *products, struct kt_view dy,
                             struct kt_view dn)
{
    if (layer->mlp.gate && !layer->shared_gate) {
        kt_mlp_backward(pass, &layer->mlp, n, products, dy, dn);
        return KT_OK;
    }
    kt_zero(pass, pass->tokens, pass->model->config.hidden_size, dn);
    return layer->mlp.gate ? gated_backward(pass, layer, n, products, dy, dn) : KT_OK;
}
