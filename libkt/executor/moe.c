/* SPDX-License-Identifier: Apache-2.0 */
/* A layer of routed experts. The router runs on the layer's device; its choices, made once in
 * forward, come to the host, which sorts them and has the experts computed while the device is at
 * the shared experts. */
#include "backend/trace.h"
#include "core/context.h"
#include "executor/pass.h"

/** Where the host keeps the choices of a layer. */
struct choices {
    int32_t *ids;   /**< [tokens, topk] */
    float *weights; /**< likewise */
};

static struct choices choices_of(const struct kt_pass *pass, const struct kt_layer *layer)
{
    int32_t index = (int32_t)(layer - pass->model->layers), lowest = pass->routes.lowest;
    int64_t at = (index < lowest ? 0 : index - lowest + 1) * pass->routes.stride;
    return (struct choices){pass->routes.ids + at, pass->routes.weights + at};
}

static struct kt_linear router_of(const struct kt_layer *layer)
{
    return layer->router_linear
               ? *layer->router_linear
               : (struct kt_linear){.role = KT_ROLE_ROUTER, .index = -1, .weight = layer->router};
}

/** The router's arguments, with its logits computed. */
static struct kt_router_args score(struct kt_pass *pass, const struct kt_layer *layer,
                                   struct kt_view n)
{
    struct kt_linear linear = router_of(layer);
    struct kt_router_args args = {.router = pass->model->config.router, .tokens = pass->tokens};
    struct kt_view logits = kt_take(pass, pass->tokens, args.router.num_experts);
    args.router.correction_bias = kt_pass_vector(pass, layer->correction_bias);
    args.logits = logits.data;
    kt_linear_forward(pass, &linear, pass->tokens, n, false, logits);
    return args;
}

/** Lets the tokens choose; the choices are the host's after kt_host_wait, and the weights stay on
 * the device, too. */
static const float *route(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                          const struct choices *to)
{
    struct kt_router_args args = score(pass, layer, n);
    int64_t slots = pass->tokens * args.router.topk;
    bool direct = kt_device_is_host(pass->stage->site->device);
    args.ids = direct ? to->ids : kt_take_ints(pass, pass->tokens, args.router.topk);
    args.weights = direct ? to->weights : kt_take(pass, pass->tokens, args.router.topk).data;
    kt_run_router_forward(&pass->stage->run, &args);
    kt_words_to_host(pass, to->ids, args.ids, slots);
    kt_words_to_host(pass, to->weights, args.weights, slots);
    return args.weights;
}

static struct kt_expert_work work_of(const struct kt_pass *pass, const struct kt_layer *layer,
                                     struct kt_view n, const struct choices *choices,
                                     const struct kt_products *products)
{
    const struct kt_model_config *config = &pass->model->config;
    return (struct kt_expert_work){.layer = layer,
                                   .where = kt_experts_where(pass, layer),
                                   .n = n,
                                   .experts = kt_routed_layer(pass, layer),
                                   .routing = {.tokens = pass->tokens,
                                               .topk = config->router.topk,
                                               .num_experts = config->n_routed_experts,
                                               .ids = choices->ids,
                                               .weights = choices->weights},
                                   .kept = products->routed};
}

/** Waits for what the host needs and sorts the choices. */
static kt_status sort(struct kt_pass *pass, struct kt_routing *r)
{
    int64_t bytes = (int64_t)kt_routing_bytes(r->tokens, r->topk, r->num_experts);
    void *memory = kt_arena_take(kt_host_arena(pass), bytes, 1, 1);
    KT_TRY(kt_host_wait(pass));
    if (kt_pass_measures(pass))
        return KT_OK;
    KT_TRACE_HOST(pass->ctx, "routing");
    kt_routing_sort(r, memory);
    return KT_OK;
}

/** An expert that padding chose in forward has a gradient, of zeros if no other token chose it. */
static void mark_padding(const struct kt_pass *pass, const struct kt_layer *layer,
                         const struct kt_routing *r)
{
    int64_t chosen = pass->routes.stride; /* padding's choices are behind those of tokens */
    for (int64_t i = r->tokens * r->topk; !kt_pass_measures(pass) && i < chosen; i++) {
        for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
            const struct kt_lora_pair *pair = kt_pass_lora(pass, &layer->experts[k][r->ids[i]]);
            if (pair)
                kt_pass_mark_grad(pass, pair);
        }
    }
}

kt_status kt_moe_forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                         const struct kt_products *products, struct kt_view y)
{
    struct kt_marks marks = kt_pass_marks(pass);
    struct choices choices = choices_of(pass, layer);
    struct kt_expert_work work = work_of(pass, layer, n, &choices, products);
    work.device_weights = route(pass, layer, n, &choices);
    if (work.where == KT_EXPERTS_HOST)
        work.x = kt_to_host(pass, n, pass->tokens, work.experts.hidden_size);
    KT_TRY(kt_shared_forward(pass, layer, n, products, y));
    KT_TRY(sort(pass, &work.routing));
    KT_TRY(kt_experts_forward(pass, &work, y));
    kt_pass_release_marks(pass, marks);
    return KT_OK;
}

kt_status kt_moe_backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                          const struct kt_products *products, struct kt_view dy, struct kt_view dn)
{
    struct kt_marks marks = kt_pass_marks(pass);
    struct choices choices = choices_of(pass, layer);
    struct kt_expert_work work = work_of(pass, layer, n, &choices, products);
    int64_t tokens = pass->tokens, topk = work.routing.topk;
    struct kt_linear router = router_of(layer);
    work.device_dy = dy;
    if (work.where == KT_EXPERTS_HOST) {
        work.x = kt_to_host(pass, n, tokens, work.experts.hidden_size);
        work.dy = kt_to_host(pass, dy, tokens, work.experts.hidden_size);
    }
    KT_TRY(kt_shared_backward(pass, layer, n, products, dy, dn));
    struct kt_router_args args = score(pass, layer, n);
    struct kt_view dlogits = kt_take(pass, tokens, args.router.num_experts);
    KT_TRY(sort(pass, &work.routing));
    work.device_weights = kt_words_to_device(pass, choices.weights, tokens * topk);
    args.ids = (int32_t *)(uintptr_t)kt_words_to_device(pass, choices.ids, tokens * topk);
    KT_TRY(kt_experts_backward(pass, &work, dn, &args.dweights));
    mark_padding(pass, layer, &work.routing);
    args.dlogits = dlogits.data;
    kt_run_router_backward(&pass->stage->run, &args);
    kt_linear_backward(pass, &router, tokens, n, dlogits, true, dn);
    kt_pass_release_marks(pass, marks);
    return KT_OK;
}
