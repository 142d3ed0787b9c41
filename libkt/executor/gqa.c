/* SPDX-License-Identifier: Apache-2.0 */
/* Grouped-query attention (arXiv 2305.13245): groups of query heads share a key and value head.
 * Optionally each head's query and key pass a norm, and a query sees a window of keys alone. */
#include "executor/attention.h"

struct shape {
    int64_t heads, kv_heads, dim;
    int64_t q, kv; /**< features of all heads */
};

static struct shape shape_of(const struct kt_model_config *config)
{
    struct shape d = {.heads = config->num_attention_heads,
                      .kv_heads = config->num_key_value_heads,
                      .dim = config->head_dim};
    d.q = d.heads * d.dim;
    d.kv = d.kv_heads * d.dim;
    return d;
}

/** The heads of all tokens one below another. */
static struct kt_view by_head(struct kt_view x, int64_t dim)
{
    x.ld = dim;
    return x;
}

/** *x = rotated norm of linear(n), *raw = what went into the norm */
static void project(struct kt_pass *pass, const struct kt_linear *linear, const float *weight,
                    int64_t heads, struct kt_view n, struct kt_view *raw, struct kt_view *x)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t dim = config->head_dim, width = heads * dim;
    *raw = *x = kt_take_activations(pass, pass->tokens, width);
    if (weight)
        *x = kt_take_activations(pass, pass->tokens, width);
    kt_linear_forward(pass, linear, pass->tokens, n, false, *raw);
    if (weight)
        kt_norm(pass, pass->tokens * heads, dim, config->rms_norm_eps, weight, by_head(*raw, dim),
                by_head(*x, dim));
    kt_rotate(pass, *x, dim, heads, false);
}

static struct kt_attention_args attention(const struct kt_pass *pass, const struct kt_layer *layer,
                                          const struct kt_gqa_state *s)
{
    struct shape d = shape_of(&pass->model->config);
    return (struct kt_attention_args){.num_heads = (int32_t)d.heads,
                                      .num_kv_heads = (int32_t)d.kv_heads,
                                      .qk_dim = (int32_t)d.dim,
                                      .v_dim = (int32_t)d.dim,
                                      .window = layer->window,
                                      .scale = pass->model->config.softmax_scale,
                                      .compute = pass->compute,
                                      .queries = kt_pass_queries(pass),
                                      .keys = kt_pass_queries(pass),
                                      .q = s->q,
                                      .k = s->k,
                                      .v = s->v,
                                      .o = s->o,
                                      .q_head_stride = d.dim,
                                      .k_head_stride = d.dim,
                                      .v_head_stride = d.dim,
                                      .o_head_stride = d.dim,
                                      .lse = s->lse};
}

static void forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    union kt_attention_state *state, struct kt_view y)
{
    struct kt_gqa_state *s = &state->gqa;
    struct shape d = shape_of(&pass->model->config);
    int64_t tokens = pass->tokens;
    project(pass, layer->q_proj, layer->q_norm, d.heads, n, &s->q_raw, &s->q);
    project(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, &s->k_raw, &s->k);
    s->v = kt_take_activations(pass, tokens, d.kv);
    s->o = kt_take_activations(pass, tokens, d.q);
    s->lse = kt_take(pass, d.heads, tokens).data;
    kt_linear_forward(pass, layer->v_proj, tokens, n, false, s->v);
    struct kt_attention_args a = attention(pass, layer, s);
    kt_run_attention_forward(&pass->stage->run, &a);
    kt_attend_padding(pass, &a);
    kt_linear_forward(pass, layer->o, tokens, s->o, true, y);
}

/** dn (+)= through a projection, from dx, the gradient of its rotated norm; `spare` is memory of
 * dx's size */
static void project_backward(struct kt_pass *pass, const struct kt_linear *linear,
                             const float *weight, int64_t heads, struct kt_view n,
                             struct kt_view raw, struct kt_view dx, struct kt_view spare,
                             bool accumulate, struct kt_view dn)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t dim = config->head_dim;
    kt_rotate(pass, dx, dim, heads, true);
    if (weight) {
        kt_norm_backward(pass, pass->tokens * heads, dim, config->rms_norm_eps, weight,
                         by_head(raw, dim), by_head(dx, dim), false, by_head(spare, dim));
        dx = spare;
    }
    kt_linear_backward(pass, linear, pass->tokens, n, dx, accumulate, dn);
}

static void backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     union kt_attention_state *state, struct kt_view dy, struct kt_view dn)
{
    struct kt_gqa_state *s = &state->gqa;
    struct shape d = shape_of(&pass->model->config);
    int64_t tokens = pass->tokens;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_attention_args a = attention(pass, layer, s);
    a.d_o = kt_take_activations(pass, tokens, d.q);
    a.dq = kt_take_activations(pass, tokens, d.q);
    a.dk = kt_take_activations(pass, tokens, d.kv);
    a.dv = kt_take_activations(pass, tokens, d.kv);
    kt_linear_backward(pass, layer->o, tokens, s->o, dy, false, a.d_o);
    kt_run_attention_backward(&pass->stage->run, &a);
    project_backward(pass, layer->q_proj, layer->q_norm, d.heads, n, s->q_raw, a.dq, s->q, false,
                     dn);
    project_backward(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, s->k_raw, a.dk, s->k, true,
                     dn);
    kt_linear_backward(pass, layer->v_proj, tokens, n, a.dv, true, dn);
    kt_pass_release(pass, mark);
}

static bool has_lora(const struct kt_pass *pass, const struct kt_layer *layer)
{
    return kt_pass_lora(pass, layer->q_proj) || kt_pass_lora(pass, layer->k_proj) ||
           kt_pass_lora(pass, layer->v_proj) || kt_pass_lora(pass, layer->o);
}

/** A row of the cache is the rotated key and the value of a token. */
static int64_t cache_width(const struct kt_model_config *config)
{
    return 2 * shape_of(config).kv;
}

static void forward_cached(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct kt_cache_slice *cache, struct kt_view y)
{
    struct shape d = shape_of(&pass->model->config);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view added = kt_view_at(cache->rows, cache->past, 0);
    struct kt_gqa_state s = {0};
    project(pass, layer->q_proj, layer->q_norm, d.heads, n, &s.q_raw, &s.q);
    project(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, &s.k_raw, &s.k);
    s.o = kt_take_activations(pass, pass->tokens, d.q);
    kt_add(pass, pass->tokens, d.kv, s.k, false, added);
    kt_linear_forward(pass, layer->v_proj, pass->tokens, n, false, kt_view_at(added, 0, d.kv));
    struct kt_attention_args a = attention(pass, layer, &s);
    a.keys = kt_pass_keys(pass);
    a.k = cache->rows;
    a.v = kt_view_at(cache->rows, 0, d.kv);
    kt_run_attention_forward(&pass->stage->run, &a);
    kt_linear_forward(pass, layer->o, pass->tokens, s.o, true, y);
    kt_pass_release(pass, mark);
}

const struct kt_attention_ops kt_attention_gqa = {
    .forward = forward,
    .backward = backward,
    .has_lora = has_lora,
    .cache_width = cache_width,
    .forward_cached = forward_cached,
};
