/* SPDX-License-Identifier: Apache-2.0 */
/* Grouped-query attention (arXiv 2305.13245): groups of query heads share a key and value head.
 * Optionally each head's query and key pass a norm, and a query sees a window of keys alone. */
#include "core/memory.h"
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

/** Key and value heads [begin, begin + count), and the queries that share them, which go through
 * attention together. */
struct group {
    int64_t begin, count;
    int64_t q_begin, q_count;
};

static struct group group_at(const struct kt_pass *pass, int64_t begin)
{
    struct shape d = shape_of(&pass->model->config);
    int64_t most = kt_heads_at_once(pass, d.kv_heads), share = d.heads / d.kv_heads;
    struct group g = {.begin = begin, .count = kt_min_i64(most, d.kv_heads - begin)};
    g.q_begin = begin * share;
    g.q_count = g.count * share;
    return g;
}

static bool in_groups(const struct kt_pass *pass)
{
    int32_t heads = pass->model->config.num_key_value_heads;
    return kt_heads_at_once(pass, heads) < heads;
}

/** *x = rotated norm of heads of linear(n), *raw = what went into the norm */
static void project(struct kt_pass *pass, const struct kt_linear *linear, const float *weight,
                    int64_t begin, int64_t heads, struct kt_view n, struct kt_view *raw,
                    struct kt_view *x)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t dim = config->head_dim, width = heads * dim;
    *raw = *x = kt_take_activations(pass, pass->tokens, width);
    if (weight)
        *x = kt_take_activations(pass, pass->tokens, width);
    kt_linear_rows_forward(pass, linear, begin * dim, width, pass->tokens, n, false, *raw);
    if (weight)
        kt_norm(pass, pass->tokens * heads, dim, config->rms_norm_eps, weight, by_head(*raw, dim),
                by_head(*x, dim));
    kt_rotate(pass, *x, dim, heads, false);
}

/** Queries, keys and values of a group. */
static void expand(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                   const struct group *g, struct kt_gqa_state *s)
{
    int64_t dim = pass->model->config.head_dim;
    project(pass, layer->q_proj, layer->q_norm, g->q_begin, g->q_count, n, &s->q_raw, &s->q);
    project(pass, layer->k_proj, layer->k_norm, g->begin, g->count, n, &s->k_raw, &s->k);
    s->v = kt_take_activations(pass, pass->tokens, g->count * dim);
    kt_linear_rows_forward(pass, layer->v_proj, g->begin * dim, g->count * dim, pass->tokens, n,
                           false, s->v);
}

/** Of a group, whose queries, keys and values `s` has; its outputs are those of all heads. */
static struct kt_attention_args attention(const struct kt_pass *pass, const struct kt_layer *layer,
                                          const struct group *g, const struct kt_gqa_state *s)
{
    struct shape d = shape_of(&pass->model->config);
    return (struct kt_attention_args){.num_heads = (int32_t)g->q_count,
                                      .num_kv_heads = (int32_t)g->count,
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
                                      .o = kt_view_at(s->o, 0, g->q_begin * d.dim),
                                      .q_head_stride = d.dim,
                                      .k_head_stride = d.dim,
                                      .v_head_stride = d.dim,
                                      .o_head_stride = d.dim,
                                      .lse = s->lse ? kt_lse_at(pass, s->lse, g->q_begin) : NULL};
}

/** A group of heads; what it takes for its queries, keys and values stays on the arena. */
static void attend(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                   const struct group *g, struct kt_gqa_state *s)
{
    expand(pass, layer, n, g, s);
    struct kt_attention_args a = attention(pass, layer, g, s);
    kt_run_attention_forward(&pass->stage->run, &a);
    kt_attend_padding(pass, &a);
}

static void forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    union kt_attention_state *state, struct kt_view y)
{
    struct kt_gqa_state *s = &state->gqa;
    struct shape d = shape_of(&pass->model->config);
    int64_t tokens = pass->tokens, most = kt_heads_at_once(pass, d.kv_heads);
    *s = (struct kt_gqa_state){.o = kt_take_activations(pass, tokens, d.q),
                               .lse = kt_take(pass, d.heads, tokens).data};
    for (int64_t h = 0; h < d.kv_heads; h += most) {
        struct group g = group_at(pass, h);
        uint64_t mark = kt_pass_mark(pass);
        struct kt_gqa_state of_group = *s;
        attend(pass, layer, n, &g, in_groups(pass) ? &of_group : s);
        if (in_groups(pass))
            kt_pass_release(pass, mark);
    }
    kt_linear_forward(pass, layer->o, tokens, s->o, true, y);
}

/** dn (+)= through a projection, from dx, the gradient of its heads' rotated norm; `spare` is
 * memory of dx's size */
static void project_backward(struct kt_pass *pass, const struct kt_linear *linear,
                             const float *weight, int64_t begin, int64_t heads, struct kt_view n,
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
    kt_linear_rows_backward(pass, linear, begin * dim, heads * dim, pass->tokens, n, dx, accumulate,
                            dn);
}

static void backward_group(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct group *g, const struct kt_gqa_state *s, struct kt_view d_o,
                           struct kt_view dn)
{
    int64_t tokens = pass->tokens, dim = pass->model->config.head_dim;
    struct kt_attention_args a = attention(pass, layer, g, s);
    a.d_o = kt_view_at(d_o, 0, g->q_begin * dim);
    a.dq = kt_take_activations(pass, tokens, g->q_count * dim);
    a.dk = kt_take_activations(pass, tokens, g->count * dim);
    a.dv = kt_take_activations(pass, tokens, g->count * dim);
    kt_run_attention_backward(&pass->stage->run, &a);
    project_backward(pass, layer->q_proj, layer->q_norm, g->q_begin, g->q_count, n, s->q_raw, a.dq,
                     s->q, g->begin > 0, dn);
    project_backward(pass, layer->k_proj, layer->k_norm, g->begin, g->count, n, s->k_raw, a.dk,
                     s->k, true, dn);
    kt_linear_rows_backward(pass, layer->v_proj, g->begin * dim, g->count * dim, tokens, n, a.dv,
                            true, dn);
}

static void backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     union kt_attention_state *state, struct kt_view dy, struct kt_view dn)
{
    struct shape d = shape_of(&pass->model->config);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view d_o = kt_take_activations(pass, pass->tokens, d.q);
    kt_linear_backward(pass, layer->o, pass->tokens, state->gqa.o, dy, false, d_o);
    uint64_t wide = kt_pass_mark(pass);
    for (int64_t h = 0; h < d.kv_heads; h += kt_heads_at_once(pass, d.kv_heads)) {
        struct group g = group_at(pass, h);
        struct kt_gqa_state s = state->gqa;
        if (in_groups(pass))
            expand(pass, layer, n, &g, &s);
        backward_group(pass, layer, n, &g, &s, d_o, dn);
        kt_pass_release(pass, wide);
    }
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
    struct group all = {.count = d.kv_heads, .q_count = d.heads};
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view added = kt_view_at(cache->rows, cache->past, 0);
    struct kt_gqa_state s = {0};
    project(pass, layer->q_proj, layer->q_norm, 0, d.heads, n, &s.q_raw, &s.q);
    project(pass, layer->k_proj, layer->k_norm, 0, d.kv_heads, n, &s.k_raw, &s.k);
    s.o = kt_take_activations(pass, pass->tokens, d.q);
    kt_add(pass, pass->tokens, d.kv, s.k, false, added);
    kt_linear_forward(pass, layer->v_proj, pass->tokens, n, false, kt_view_at(added, 0, d.kv));
    struct kt_attention_args a = attention(pass, layer, &all, &s);
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
