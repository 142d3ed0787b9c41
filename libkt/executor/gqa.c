/* SPDX-License-Identifier: Apache-2.0 */
/* Grouped-query attention (arXiv 2305.13245): groups of query heads share a key and value head.
 * Optionally each head's query and key pass a norm, and a query sees a window of keys alone. */
#include "core/context.h"
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

static kt_status norm_heads(struct kt_pass *pass, int64_t heads, const float *weight,
                            const float *x, float *y)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t dim = config->head_dim;
    if (!weight)
        return KT_OK;
    return pass->device->ops->rmsnorm_forward(pass->device, pass->tokens * heads, dim,
                                              config->rms_norm_eps, weight, x, dim, y, dim);
}

/** *x = rotated norm of linear(n), *raw = what went into the norm */
static kt_status project(struct kt_pass *pass, const struct kt_linear *linear, const float *weight,
                         int64_t heads, const float *n, float **raw, float **x)
{
    int64_t dim = pass->model->config.head_dim, width = heads * dim;
    *raw = *x = kt_arena_floats(&pass->arena, pass->tokens, width);
    if (weight)
        *x = kt_arena_floats(&pass->arena, pass->tokens, width);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_forward(pass, linear, pass->tokens, n, pass->model->config.hidden_size, 0,
                             *raw, width));
    KT_TRY(norm_heads(pass, heads, weight, *raw, *x));
    return kt_rotate(pass, *x, width, dim, heads, 0);
}

static struct kt_attention attention(const struct kt_pass *pass, const struct kt_layer *layer,
                                     const struct kt_gqa_state *s)
{
    struct shape d = shape_of(&pass->model->config);
    return (struct kt_attention){.num_heads = (int32_t)d.heads,
                                 .num_kv_heads = (int32_t)d.kv_heads,
                                 .qk_dim = (int32_t)d.dim,
                                 .v_dim = (int32_t)d.dim,
                                 .window = layer->window,
                                 .scale = pass->model->config.softmax_scale,
                                 .num_sequences = pass->num_sequences,
                                 .cu_seqlens_q = pass->cu_seqlens,
                                 .cu_seqlens_k = pass->cu_seqlens,
                                 .compute = pass->compute,
                                 .q = s->q,
                                 .q_stride = d.q,
                                 .q_head_stride = d.dim,
                                 .k = s->k,
                                 .k_stride = d.kv,
                                 .k_head_stride = d.dim,
                                 .v = s->v,
                                 .v_stride = d.kv,
                                 .v_head_stride = d.dim,
                                 .o = s->o,
                                 .o_stride = d.q,
                                 .o_head_stride = d.dim,
                                 .lse = s->lse};
}

static kt_status forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         union kt_attention_state *state, float *y)
{
    struct kt_gqa_state *s = &state->gqa;
    struct shape d = shape_of(&pass->model->config);
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    KT_TRY(project(pass, layer->q_proj, layer->q_norm, d.heads, n, &s->q_raw, &s->q));
    KT_TRY(project(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, &s->k_raw, &s->k));
    s->v = kt_arena_floats(&pass->arena, tokens, d.kv);
    s->o = kt_arena_floats(&pass->arena, tokens, d.q);
    s->lse = kt_arena_floats(&pass->arena, d.heads, tokens);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_forward(pass, layer->v_proj, tokens, n, hidden, 0, s->v, d.kv));
    struct kt_attention a = attention(pass, layer, s);
    KT_TRY(pass->device->ops->attention_forward(pass->device, &a));
    KT_TRY(kt_attend_padding(pass, &a));
    return kt_linear_forward(pass, layer->o, tokens, s->o, d.q, 1, y, hidden);
}

/** dn (+)= through a projection, from dx, the gradient of its rotated norm; `spare` is memory of
 * dx's size */
static kt_status project_backward(struct kt_pass *pass, const struct kt_linear *linear,
                                  const float *weight, int64_t heads, const float *n,
                                  const float *raw, float *dx, float *spare, int accumulate,
                                  float *dn)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t dim = config->head_dim, width = heads * dim, hidden = config->hidden_size;
    KT_TRY(kt_rotate(pass, dx, width, dim, heads, 1));
    if (weight) {
        KT_TRY(pass->device->ops->rmsnorm_backward(pass->device, pass->tokens * heads, dim,
                                                   config->rms_norm_eps, weight, raw, dim, dx, dim,
                                                   0, spare, dim));
        dx = spare;
    }
    return kt_linear_backward(pass, linear, pass->tokens, n, hidden, dx, width, accumulate, dn,
                              hidden);
}

static kt_status backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                          union kt_attention_state *state, const float *dy, float *dn)
{
    struct kt_gqa_state *s = &state->gqa;
    struct shape d = shape_of(&pass->model->config);
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens;
    uint64_t mark = pass->arena.used;
    float *d_o = kt_arena_floats(&pass->arena, tokens, d.q);
    float *dq = kt_arena_floats(&pass->arena, tokens, d.q);
    float *dk = kt_arena_floats(&pass->arena, tokens, d.kv);
    float *dv = kt_arena_floats(&pass->arena, tokens, d.kv);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_backward(pass, layer->o, tokens, s->o, d.q, dy, hidden, 0, d_o, d.q));
    struct kt_attention a = attention(pass, layer, s);
    struct kt_attention_grad g = {.d_o = d_o, .dq = dq, .dk = dk, .dv = dv};
    KT_TRY(pass->device->ops->attention_backward(pass->device, &a, &g));
    KT_TRY(project_backward(pass, layer->q_proj, layer->q_norm, d.heads, n, s->q_raw, dq, s->q, 0,
                            dn));
    KT_TRY(project_backward(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, s->k_raw, dk, s->k,
                            1, dn));
    KT_TRY(kt_linear_backward(pass, layer->v_proj, tokens, n, hidden, dv, d.kv, 1, dn, hidden));
    pass->arena.used = mark;
    return KT_OK;
}

static int has_lora(const struct kt_pass *pass, const struct kt_layer *layer)
{
    return kt_pass_lora(pass, layer->q_proj) || kt_pass_lora(pass, layer->k_proj) ||
           kt_pass_lora(pass, layer->v_proj) || kt_pass_lora(pass, layer->o);
}

/** A row of the cache is the rotated key and the value of a token. */
static int64_t cache_width(const struct kt_model_config *config)
{
    return 2 * shape_of(config).kv;
}

static int32_t head_dim(const struct kt_model_config *config)
{
    return config->head_dim;
}

static kt_status append(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                        const float *k, float *rows)
{
    struct shape d = shape_of(&pass->model->config);
    int64_t width = 2 * d.kv;
    KT_TRY(pass->device->ops->add(pass->device, pass->tokens, d.kv, 1, k, d.kv, 0, rows, width));
    return kt_linear_forward(pass, layer->v_proj, pass->tokens, n, pass->model->config.hidden_size,
                             0, rows + d.kv, width);
}

static kt_status forward_cached(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                                const struct kt_cache_slice *cache, float *y)
{
    struct shape d = shape_of(&pass->model->config);
    int64_t width = 2 * d.kv;
    int32_t cu_keys[2] = {0, (int32_t)(cache->past + pass->tokens)};
    uint64_t mark = pass->arena.used;
    struct kt_gqa_state s = {0};
    KT_TRY(project(pass, layer->q_proj, layer->q_norm, d.heads, n, &s.q_raw, &s.q));
    KT_TRY(project(pass, layer->k_proj, layer->k_norm, d.kv_heads, n, &s.k_raw, &s.k));
    s.o = kt_arena_floats(&pass->arena, pass->tokens, d.q);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(append(pass, layer, n, s.k, cache->rows + cache->past * width));
    struct kt_attention a = attention(pass, layer, &s);
    a.cu_seqlens_k = cu_keys;
    a.k = cache->rows;
    a.v = cache->rows + d.kv;
    a.k_stride = a.v_stride = width;
    KT_TRY(pass->device->ops->attention_forward(pass->device, &a));
    KT_TRY(kt_linear_forward(pass, layer->o, pass->tokens, s.o, d.q, 1, y,
                             pass->model->config.hidden_size));
    pass->arena.used = mark;
    return KT_OK;
}

const struct kt_attention_ops kt_attention_gqa = {
    .forward = forward,
    .backward = backward,
    .has_lora = has_lora,
    .cache_width = cache_width,
    .head_dim = head_dim,
    .forward_cached = forward_cached,
};
