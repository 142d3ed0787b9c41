/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "executor/pass.h"

struct routing {
    struct kt_router router;
    float *logits;  /**< [tokens, num_experts] */
    int32_t *ids;   /**< [tokens, topk] */
    float *weights; /**< [tokens, topk] */
};

static struct kt_linear router_of(const struct kt_layer *layer)
{
    return layer->router_linear
               ? *layer->router_linear
               : (struct kt_linear){.role = KT_ROLE_ROUTER, .index = -1, .weight = layer->router};
}

static kt_status route(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                       struct routing *r)
{
    struct kt_linear linear = router_of(layer);
    r->router = pass->model->config.router;
    r->router.correction_bias = layer->correction_bias;
    int64_t experts = r->router.num_experts;
    r->logits = kt_arena_floats(&pass->arena, pass->tokens, experts);
    r->ids = kt_arena_ints(&pass->arena, pass->tokens, r->router.topk);
    r->weights = kt_arena_floats(&pass->arena, pass->tokens, r->router.topk);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_forward(pass, &linear, pass->tokens, n, layer->router.cols, 0, r->logits,
                             experts));
    return pass->device->ops->router_forward(pass->device, &r->router, pass->tokens, r->logits,
                                             r->ids, r->weights);
}

static int any_lora(const struct kt_pass *pass, const struct kt_linear *linears, int32_t count)
{
    for (int32_t e = 0; e < count; e++)
        if (kt_pass_lora(pass, &linears[e]))
            return 1;
    return 0;
}

static struct kt_expert_layer expert_layer(const struct kt_pass *pass, const struct kt_layer *layer)
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

static struct kt_expert_batch expert_batch(const struct kt_pass *pass, const struct routing *r,
                                           const float *n, float *products)
{
    return (struct kt_expert_batch){.compute = pass->compute,
                                    .training = pass->training,
                                    .tokens = pass->tokens,
                                    .topk = r->router.topk,
                                    .topk_ids = r->ids,
                                    .topk_weights = r->weights,
                                    .x = n,
                                    .kept = products};
}

struct kt_experts *kt_pass_experts(const struct kt_pass *pass, const struct kt_layer *layer)
{
    return pass->kind == KT_PASS_MEASURE ? &kt_null_experts
                                         : pass->experts[layer - pass->model->layers];
}

/** An expert that padding chose has a gradient, of zeros if no other token chose it. */
static void mark_padding(const struct kt_pass *pass, const struct kt_layer *layer,
                         const struct routing *r)
{
    int64_t topk = r->router.topk, real = pass->tokens - pass->padding;
    for (int64_t i = real * topk; pass->kind != KT_PASS_MEASURE && i < pass->tokens * topk; i++) {
        for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
            const struct kt_lora_pair *pair = kt_pass_lora(pass, &layer->experts[k][r->ids[i]]);
            if (pair)
                *pair->has_grad = 1;
        }
    }
}

kt_status kt_moe_forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         const struct kt_products *products, float *y)
{
    struct kt_experts *experts = kt_pass_experts(pass, layer);
    struct kt_expert_layer weights = expert_layer(pass, layer);
    uint64_t mark = pass->arena.used;
    struct routing r;
    KT_TRY(route(pass, layer, n, &r));
    mark_padding(pass, layer, &r);
    struct kt_expert_batch batch = expert_batch(pass, &r, n, products->routed);
    KT_TRY(experts->ops->forward(experts, &weights, &batch, y));
    pass->arena.used = mark;
    return kt_shared_forward(pass, layer, n, products, y);
}

kt_status kt_moe_backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                          const struct kt_products *products, const float *dy, float *dn)
{
    const struct kt_device_ops *ops = pass->device->ops;
    struct kt_experts *experts = kt_pass_experts(pass, layer);
    struct kt_expert_layer weights = expert_layer(pass, layer);
    int64_t hidden = layer->router.cols, num_experts = weights.num_experts;
    uint64_t mark = pass->arena.used;
    struct routing r;
    struct kt_linear router = router_of(layer);
    KT_TRY(kt_shared_backward(pass, layer, n, products, dy, dn));
    KT_TRY(route(pass, layer, n, &r));
    float *dweights = kt_arena_floats(&pass->arena, pass->tokens, r.router.topk);
    float *dlogits = kt_arena_floats(&pass->arena, pass->tokens, num_experts);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    struct kt_expert_batch batch = expert_batch(pass, &r, n, products->routed);
    KT_TRY(experts->ops->backward(experts, &weights, &batch, dy, dn, dweights));
    KT_TRY(ops->router_backward(pass->device, &r.router, pass->tokens, r.logits, r.ids, dweights,
                                dlogits));
    KT_TRY(kt_linear_backward(pass, &router, pass->tokens, n, hidden, dlogits, num_experts, 1, dn,
                              hidden));
    pass->arena.used = mark;
    return KT_OK;
}
