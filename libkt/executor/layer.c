/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "executor/attention.h"

kt_status kt_pass_tick(const struct kt_pass *pass, const char *what, int64_t done)
{
    if (pass->kind == KT_PASS_MEASURE)
        return KT_OK;
    if (pass->kind == KT_PASS_REPORTING)
        kt_progress(pass->ctx, what, (uint64_t)done,
                    (uint64_t)pass->model->config.num_hidden_layers);
    return kt_check_cancel(pass->ctx);
}

kt_status kt_zero(const struct kt_pass *pass, int64_t tokens, int64_t dim, float *x)
{
    return pass->device->ops->add(pass->device, tokens, dim, 1, pass->zeros, 0, 0, x, dim);
}

static kt_status norm(struct kt_pass *pass, const float *weight, const float *x, float *y)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t hidden = config->hidden_size;
    return pass->device->ops->rmsnorm_forward(pass->device, pass->tokens, hidden,
                                              config->rms_norm_eps, weight, x, hidden, y, hidden);
}

/** dx += gradient of norm */
static kt_status norm_backward(struct kt_pass *pass, const float *weight, const float *x,
                               const float *dy, float *dx)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t hidden = config->hidden_size;
    return pass->device->ops->rmsnorm_backward(pass->device, pass->tokens, hidden,
                                               config->rms_norm_eps, weight, x, hidden, dy, hidden,
                                               1, dx, hidden);
}

static int mlp_has_lora(const struct kt_pass *pass, const struct kt_mlp *mlp)
{
    return mlp->gate && (kt_pass_lora(pass, mlp->gate) || kt_pass_lora(pass, mlp->up) ||
                         kt_pass_lora(pass, mlp->down));
}

int kt_layer_has_lora(const struct kt_pass *pass, const struct kt_layer *layer)
{
    if (kt_attention_of(pass->model)->has_lora(pass, layer) || mlp_has_lora(pass, &layer->mlp))
        return 1;
    if (layer->router_linear && kt_pass_lora(pass, layer->router_linear))
        return 1;
    if (layer->shared_gate && kt_pass_lora(pass, layer->shared_gate))
        return 1;
    int32_t experts = layer->is_moe ? pass->model->config.n_routed_experts : 0;
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        for (int32_t e = 0; e < experts; e++)
            if (kt_pass_lora(pass, &layer->experts[k][e]))
                return 1;
    return 0;
}

static kt_status attend(struct kt_pass *pass, const struct kt_layer *layer,
                        const struct kt_cache_slice *cache, const float *n, float *x)
{
    const struct kt_attention_ops *attention = kt_attention_of(pass->model);
    union kt_attention_state state = {0};
    uint64_t mark = pass->arena.used;
    if (cache)
        KT_TRY(attention->forward_cached(pass, layer, n, cache, x));
    else
        KT_TRY(attention->forward(pass, layer, n, &state, x));
    pass->arena.used = mark;
    return KT_OK;
}

/** x += the feed-forward half of its normed n */
static kt_status feed_forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                              const struct kt_products *products, float *x)
{
    return layer->is_moe ? kt_moe_forward(pass, layer, n, products, x)
                         : kt_mlp_forward(pass, &layer->mlp, n, products, x);
}

/** Room for the products of a layer, on the arena. */
static kt_status take_products(struct kt_pass *pass, const struct kt_layer *layer,
                               struct kt_products *products)
{
    const struct kt_model_config *config = &pass->model->config;
    *products = (struct kt_products){0};
    int64_t inner = layer->mlp.intermediate_size;
    if (layer->shared_gate) {
        products->shared = kt_arena_floats(&pass->arena, 2 * pass->tokens, inner);
    } else if (layer->mlp.gate) {
        products->gate = kt_arena_floats(&pass->arena, pass->tokens, inner);
        products->up = kt_arena_floats(&pass->arena, pass->tokens, inner);
    }
    if (layer->is_moe)
        products->routed = kt_arena_floats(&pass->arena, 2 * pass->tokens * config->router.topk,
                                           config->moe_intermediate_size);
    return kt_arena_check(pass->ctx, &pass->arena);
}

/** The attention half from the layer's input x; what it puts on the arena stays there. */
static kt_status attend_keeping(struct kt_pass *pass, const struct kt_layer *layer, const float *x,
                                struct kt_kept *kept)
{
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    *kept = (struct kt_kept){.n = kt_arena_floats(&pass->arena, tokens, hidden),
                             .middle = kt_arena_floats(&pass->arena, tokens, hidden)};
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(norm(pass, layer->input_norm, x, kept->n));
    KT_TRY(pass->device->ops->add(pass->device, tokens, hidden, 1, x, hidden, 0, kept->middle,
                                  hidden));
    return kt_attention_of(pass->model)->forward(pass, layer, kept->n, &kept->state, kept->middle);
}

kt_status kt_layer_forward_keeping(struct kt_pass *pass, const struct kt_layer *layer,
                                   struct kt_kept *kept, float *x)
{
    int64_t hidden = pass->model->config.hidden_size;
    KT_TRY(attend_keeping(pass, layer, x, kept));
    KT_TRY(take_products(pass, layer, &kept->products));
    uint64_t mark = pass->arena.used;
    float *n = kt_arena_floats(&pass->arena, pass->tokens, hidden);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(norm(pass, layer->post_attention_norm, kept->middle, n));
    KT_TRY(pass->device->ops->add(pass->device, pass->tokens, hidden, 1, kept->middle, hidden, 0, x,
                                  hidden));
    KT_TRY(feed_forward(pass, layer, n, &kept->products, x));
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_layer_forward(struct kt_pass *pass, const struct kt_layer *layer,
                           const struct kt_cache_slice *cache, float *x)
{
    uint64_t mark = pass->arena.used;
    float *n = kt_arena_floats(&pass->arena, pass->tokens, pass->model->config.hidden_size);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(norm(pass, layer->input_norm, x, n));
    KT_TRY(attend(pass, layer, cache, n, x));
    KT_TRY(norm(pass, layer->post_attention_norm, x, n));
    KT_TRY(feed_forward(pass, layer, n, &(struct kt_products){0}, x));
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_layer_backward(struct kt_pass *pass, const struct kt_layer *layer,
                            struct kt_kept *kept, const float *x, float *dy, int need_dx)
{
    const struct kt_attention_ops *attention = kt_attention_of(pass->model);
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    uint64_t mark = pass->arena.used;
    struct kt_kept recomputed;
    if (!kept) {
        KT_TRY(attend_keeping(pass, layer, x, &recomputed));
        kept = &recomputed;
    }
    float *n2 = kt_arena_floats(&pass->arena, tokens, hidden);
    float *dn = kt_arena_floats(&pass->arena, tokens, hidden);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(norm(pass, layer->post_attention_norm, kept->middle, n2));
    if (layer->is_moe)
        KT_TRY(kt_moe_backward(pass, layer, n2, &kept->products, dy, dn));
    else
        KT_TRY(kt_mlp_backward(pass, &layer->mlp, n2, &kept->products, dy, dn));
    if (need_dx || attention->has_lora(pass, layer)) {
        KT_TRY(norm_backward(pass, layer->post_attention_norm, kept->middle, dn, dy));
        KT_TRY(attention->backward(pass, layer, kept->n, &kept->state, dy, need_dx ? dn : NULL));
    }
    if (need_dx)
        KT_TRY(norm_backward(pass, layer->input_norm, x, dn, dy));
    pass->arena.used = mark;
    return KT_OK;
}
