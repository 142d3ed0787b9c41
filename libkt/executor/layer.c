/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "executor/attention.h"

/** y = norm of x, over hidden_size features */
static void norm(struct kt_pass *pass, const float *weight, struct kt_view x, struct kt_view y)
{
    const struct kt_model_config *config = &pass->model->config;
    kt_norm(pass, pass->tokens, config->hidden_size, config->rms_norm_eps, weight, x, y);
}

/** dx += gradient of norm */
static void norm_backward(struct kt_pass *pass, const float *weight, struct kt_view x,
                          struct kt_view dy, struct kt_view dx)
{
    const struct kt_model_config *config = &pass->model->config;
    kt_norm_backward(pass, pass->tokens, config->hidden_size, config->rms_norm_eps, weight, x, dy,
                     true, dx);
}

static void attend(struct kt_pass *pass, const struct kt_layer *layer,
                   const struct kt_cache_slice *cache, struct kt_view n, struct kt_view x)
{
    const struct kt_attention_ops *attention = kt_attention_of(pass->model);
    union kt_attention_state state = {0};
    uint64_t mark = kt_pass_mark(pass);
    if (cache)
        attention->forward_cached(pass, layer, n, cache, x);
    else
        attention->forward(pass, layer, n, &state, x);
    kt_pass_release(pass, mark);
}

/** x += the feed-forward half of its normed n */
static kt_status feed_forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                              const struct kt_products *products, struct kt_view x)
{
    if (layer->is_moe)
        return kt_moe_forward(pass, layer, n, products, x);
    kt_mlp_forward(pass, &layer->mlp, n, products, x);
    return KT_OK;
}

/** Room for the normed input of the feed-forward half. A router reads it as it is, since rounding
 * would choose other experts here and there; so do the host's experts. */
static struct kt_view take_input(struct kt_pass *pass, const struct kt_layer *layer)
{
    int64_t hidden = pass->model->config.hidden_size;
    return layer->is_moe ? kt_take(pass, pass->tokens, hidden)
                         : kt_take_activations(pass, pass->tokens, hidden);
}

/** Room for the products of a layer, on the arenas. */
static struct kt_products take_products(struct kt_pass *pass, const struct kt_layer *layer)
{
    const struct kt_model_config *config = &pass->model->config;
    struct kt_products products = {0};
    int64_t inner = layer->mlp.intermediate_size;
    if (layer->shared_gate) {
        products.shared = kt_host_take(pass, 2 * pass->tokens, inner).data;
    } else if (layer->mlp.gate) {
        products.gate = kt_take_activations(pass, pass->tokens, inner);
        products.up = kt_take_activations(pass, pass->tokens, inner);
    }
    if (layer->is_moe && kt_experts_where(pass, layer) == KT_EXPERTS_HOST)
        products.routed = kt_host_take(pass, 2 * pass->tokens * config->router.topk,
                                       config->moe_intermediate_size)
                              .data;
    return products;
}

/** The attention half from the layer's input x; what it puts on the arena stays there. */
static struct kt_kept attend_keeping(struct kt_pass *pass, const struct kt_layer *layer,
                                     struct kt_view x)
{
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    struct kt_kept kept = {.n = kt_take_activations(pass, tokens, hidden),
                           .middle = kt_take(pass, tokens, hidden)};
    norm(pass, layer->input_norm, x, kept.n);
    kt_add(pass, tokens, hidden, x, false, kept.middle);
    kt_attention_of(pass->model)->forward(pass, layer, kept.n, &kept.state, kept.middle);
    return kept;
}

kt_status kt_layer_forward_keeping(struct kt_pass *pass, const struct kt_layer *layer,
                                   struct kt_kept *kept, struct kt_view x)
{
    *kept = attend_keeping(pass, layer, x);
    kept->products = take_products(pass, layer);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view n = take_input(pass, layer);
    norm(pass, layer->post_attention_norm, kept->middle, n);
    kt_add(pass, pass->tokens, pass->model->config.hidden_size, kept->middle, false, x);
    KT_TRY(feed_forward(pass, layer, n, &kept->products, x));
    kt_pass_release(pass, mark);
    return KT_OK;
}

kt_status kt_layer_forward(struct kt_pass *pass, const struct kt_layer *layer,
                           const struct kt_cache_slice *cache, struct kt_view x)
{
    uint64_t mark = kt_pass_mark(pass);
    int64_t hidden = pass->model->config.hidden_size;
    struct kt_view n = kt_take_activations(pass, pass->tokens, hidden);
    norm(pass, layer->input_norm, x, n);
    attend(pass, layer, cache, n, x);
    kt_pass_release(pass, mark);
    n = take_input(pass, layer);
    norm(pass, layer->post_attention_norm, x, n);
    KT_TRY(feed_forward(pass, layer, n, &(struct kt_products){0}, x));
    kt_pass_release(pass, mark);
    return KT_OK;
}

kt_status kt_layer_backward(struct kt_pass *pass, const struct kt_layer *layer,
                            struct kt_kept *kept, struct kt_view x, struct kt_view dy, bool need_dx)
{
    const struct kt_attention_ops *attention = kt_attention_of(pass->model);
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_kept recomputed;
    if (!kept) {
        recomputed = attend_keeping(pass, layer, x);
        kept = &recomputed;
    }
    uint64_t half = kt_pass_mark(pass);
    struct kt_view n2 = take_input(pass, layer);
    struct kt_view dn = kt_take(pass, tokens, hidden);
    norm(pass, layer->post_attention_norm, kept->middle, n2);
    if (layer->is_moe)
        KT_TRY(kt_moe_backward(pass, layer, n2, &kept->products, dy, dn));
    else
        kt_mlp_backward(pass, &layer->mlp, n2, &kept->products, dy, dn);
    if (need_dx || attention->has_lora(pass, layer)) {
        norm_backward(pass, layer->post_attention_norm, kept->middle, dn, dy);
        kt_pass_release(pass, half);
        dn = need_dx ? kept->middle : (struct kt_view){0}; /* nobody reads it any more */
        attention->backward(pass, layer, kept->n, &kept->state, dy, dn);
    }
    if (need_dx)
        norm_backward(pass, layer->input_norm, x, dn, dy);
    kt_pass_release(pass, mark);
    return KT_OK;
}
