/* SPDX-License-Identifier: Apache-2.0 */
/* Shared experts that a gate weighs are a layer of one expert that every token chooses, with the
 * sigmoid of the gate for its weight: the experts backend computes them, and d(weight) with it. */
#include "core/context.h"
#include "executor/pass.h"

struct gate {
    struct kt_router router;
    float *logits, *weights; /**< [tokens] */
    int32_t *ids;            /**< [tokens], all 0 */
};

struct kt_expert_layer kt_shared_expert_layer(const struct kt_pass *pass,
                                              const struct kt_layer *layer)
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

static kt_status weigh(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                       struct gate *g)
{
    g->router = (struct kt_router){.scoring = KT_SCORING_SIGMOID,
                                   .num_experts = 1,
                                   .topk = 1,
                                   .n_group = 1,
                                   .topk_group = 1,
                                   .routed_scaling_factor = 1};
    g->logits = kt_arena_floats(&pass->arena, pass->tokens, 1);
    g->weights = kt_arena_floats(&pass->arena, pass->tokens, 1);
    g->ids = kt_arena_ints(&pass->arena, pass->tokens, 1);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_forward(pass, layer->shared_gate, pass->tokens, n,
                             layer->shared_gate->weight.cols, 0, g->logits, 1));
    return pass->device->ops->router_forward(pass->device, &g->router, pass->tokens, g->logits,
                                             g->ids, g->weights);
}

static struct kt_expert_batch one_expert(const struct kt_pass *pass, const struct gate *g,
                                         const float *n, const struct kt_products *products)
{
    return (struct kt_expert_batch){.compute = pass->compute,
                                    .training = pass->training,
                                    .tokens = pass->tokens,
                                    .topk = 1,
                                    .topk_ids = g->ids,
                                    .topk_weights = g->weights,
                                    .x = n,
                                    .kept = products->shared};
}

kt_status kt_shared_forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                            const struct kt_products *products, float *y)
{
    struct gate g;
    uint64_t mark = pass->arena.used;
    if (!layer->mlp.gate)
        return KT_OK;
    if (!layer->shared_gate)
        return kt_mlp_forward(pass, &layer->mlp, n, products, y);
    struct kt_experts *experts = kt_pass_experts(pass, layer);
    struct kt_expert_layer shared = kt_shared_expert_layer(pass, layer);
    KT_TRY(weigh(pass, layer, n, &g));
    struct kt_expert_batch batch = one_expert(pass, &g, n, products);
    KT_TRY(experts->ops->forward(experts, &shared, &batch, y));
    pass->arena.used = mark;
    return KT_OK;
}

static kt_status gated_backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                                const struct kt_products *products, const float *dy, float *dn)
{
    struct kt_experts *experts = kt_pass_experts(pass, layer);
    struct kt_expert_layer shared = kt_shared_expert_layer(pass, layer);
    int64_t hidden = layer->shared_gate->weight.cols;
    struct gate g;
    KT_TRY(weigh(pass, layer, n, &g));
    float *dweights = kt_arena_floats(&pass->arena, pass->tokens, 1);
    float *dlogits = kt_arena_floats(&pass->arena, pass->tokens, 1);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    struct kt_expert_batch batch = one_expert(pass, &g, n, products);
    KT_TRY(experts->ops->backward(experts, &shared, &batch, dy, dn, dweights));
    KT_TRY(pass->device->ops->router_backward(pass->device, &g.router, pass->tokens, g.logits,
                                              g.ids, dweights, dlogits));
    return kt_linear_backward(pass, layer->shared_gate, pass->tokens, n, hidden, dlogits, 1, 1, dn,
                              hidden);
}

kt_status kt_shared_backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                             const struct kt_products *products, const float *dy, float *dn)
{
    uint64_t mark = pass->arena.used;
    if (layer->mlp.gate && !layer->shared_gate)
        return kt_mlp_backward(pass, &layer->mlp, n, products, dy, dn);
    KT_TRY(kt_zero(pass, pass->tokens, pass->model->config.hidden_size, dn));
    if (layer->mlp.gate)
        KT_TRY(gated_backward(pass, layer, n, products, dy, dn));
    pass->arena.used = mark;
    return KT_OK;
}
