/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/mla.h"

#include "core/context.h"

struct kt_mla_shape kt_mla_shape_of(const struct kt_model_config *config)
{
    struct kt_mla_shape s = {.heads = config->num_attention_heads,
                             .nope = config->qk_nope_head_dim,
                             .rope = config->qk_rope_head_dim,
                             .v = config->v_head_dim,
                             .latent = config->kv_lora_rank};
    s.qk = s.nope + s.rope;
    s.kv = s.nope + s.v;
    s.q_width = s.heads * s.qk;
    s.kv_width = s.heads * s.kv;
    s.row = s.latent + s.rope;
    return s;
}

static kt_status project_query(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                               const struct kt_mla_shape *d, struct kt_mla_state *s)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t hidden = config->hidden_size, rank = config->q_lora_rank, tokens = pass->tokens;
    if (!rank)
        return kt_linear_forward(pass, layer->q_proj, tokens, n, hidden, 0, s->q, d->q_width);
    KT_TRY(kt_linear_forward(pass, layer->q_a, tokens, n, hidden, 0, s->q_a, rank));
    KT_TRY(pass->device->ops->rmsnorm_forward(pass->device, tokens, rank, config->latent_norm_eps,
                                              layer->q_a_norm, s->q_a, rank, s->q_latent, rank));
    return kt_linear_forward(pass, layer->q_b, tokens, s->q_latent, rank, 0, s->q, d->q_width);
}

kt_status kt_mla_project(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t hidden = pass->model->config.hidden_size, rank = pass->model->config.q_lora_rank;
    if (rank) {
        s->q_a = kt_arena_floats(&pass->arena, pass->tokens, rank);
        s->q_latent = kt_arena_floats(&pass->arena, pass->tokens, rank);
    }
    s->q = kt_arena_floats(&pass->arena, pass->tokens, d.q_width);
    s->kv_a = kt_arena_floats(&pass->arena, pass->tokens, d.row);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(project_query(pass, layer, n, &d, s));
    KT_TRY(kt_rotate(pass, s->q + d.nope, d.q_width, d.qk, d.heads, 0));
    KT_TRY(kt_linear_forward(pass, layer->kv_a, pass->tokens, n, hidden, 0, s->kv_a, d.row));
    return kt_rotate(pass, s->kv_a + d.latent, d.row, 0, 1, 0);
}

struct kt_attention kt_mla_expanded(const struct kt_pass *pass, const float *q, const float *kv,
                                    const float *rotary_key, float *o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    return (struct kt_attention){.num_heads = (int32_t)d.heads,
                                 .num_kv_heads = (int32_t)d.heads,
                                 .qk_dim = (int32_t)d.qk,
                                 .shared_dim = (int32_t)d.rope,
                                 .v_dim = (int32_t)d.v,
                                 .scale = pass->model->config.softmax_scale,
                                 .num_sequences = pass->num_sequences,
                                 .cu_seqlens_q = pass->cu_seqlens,
                                 .cu_seqlens_k = pass->cu_seqlens,
                                 .compute = pass->compute,
                                 .q = q,
                                 .q_stride = d.q_width,
                                 .q_head_stride = d.qk,
                                 .k = kv,
                                 .k_stride = d.kv_width,
                                 .k_head_stride = d.kv,
                                 .k_shared = rotary_key,
                                 .k_shared_stride = d.row,
                                 .v = kv + d.nope,
                                 .v_stride = d.kv_width,
                                 .v_head_stride = d.kv,
                                 .o = o,
                                 .o_stride = d.heads * d.v,
                                 .o_head_stride = d.v};
}

static kt_status forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         union kt_attention_state *state, float *y)
{
    struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    const struct kt_device_ops *ops = pass->device->ops;
    int64_t tokens = pass->tokens;
    KT_TRY(kt_mla_project(pass, layer, n, s));
    s->latent = kt_arena_floats(&pass->arena, tokens, d.latent);
    s->kv = kt_arena_floats(&pass->arena, tokens, d.kv_width);
    s->o = kt_arena_floats(&pass->arena, tokens, d.heads * d.v);
    s->lse = kt_arena_floats(&pass->arena, d.heads, tokens);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(ops->rmsnorm_forward(pass->device, tokens, d.latent, pass->model->config.latent_norm_eps,
                                layer->kv_a_norm, s->kv_a, d.row, s->latent, d.latent));
    KT_TRY(kt_linear_forward(pass, layer->kv_b, tokens, s->latent, d.latent, 0, s->kv, d.kv_width));
    struct kt_attention a = kt_mla_expanded(pass, s->q, s->kv, s->kv_a + d.latent, s->o);
    a.lse = s->lse;
    KT_TRY(ops->attention_forward(pass->device, &a));
    KT_TRY(kt_attend_padding(pass, &a));
    return kt_linear_forward(pass, layer->o, tokens, s->o, d.heads * d.v, 1, y,
                             pass->model->config.hidden_size);
}

/** dn += through the query's projections */
static kt_status backward_query(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                                struct kt_mla_state *s, const float *dq, float *dn)
{
    const struct kt_model_config *config = &pass->model->config;
    struct kt_mla_shape d = kt_mla_shape_of(config);
    int64_t tokens = pass->tokens, hidden = config->hidden_size, rank = config->q_lora_rank;
    if (!rank)
        return kt_linear_backward(pass, layer->q_proj, tokens, n, hidden, dq, d.q_width, 1, dn,
                                  hidden);
    float *dq_a = kt_arena_floats(&pass->arena, tokens, rank), *dq_latent = s->q_latent;
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_backward(pass, layer->q_b, tokens, s->q_latent, rank, dq, d.q_width, 0,
                              dq_latent, rank));
    KT_TRY(pass->device->ops->rmsnorm_backward(pass->device, tokens, rank, config->latent_norm_eps,
                                               layer->q_a_norm, s->q_a, rank, dq_latent, rank, 0,
                                               dq_a, rank));
    return kt_linear_backward(pass, layer->q_a, tokens, n, hidden, dq_a, rank, 1, dn, hidden);
}

/** dn = through the projections of keys and values; dkv_a holds d(rotated key) in its last columns
 */
static kt_status backward_key_value(struct kt_pass *pass, const struct kt_layer *layer,
                                    const float *n, struct kt_mla_state *s, const float *dkv,
                                    float *dkv_a, float *dn)
{
    const struct kt_model_config *config = &pass->model->config;
    struct kt_mla_shape d = kt_mla_shape_of(config);
    int64_t tokens = pass->tokens, hidden = config->hidden_size;
    float *dlatent = s->latent;
    KT_TRY(kt_linear_backward(pass, layer->kv_b, tokens, s->latent, d.latent, dkv, d.kv_width, 0,
                              dlatent, d.latent));
    KT_TRY(pass->device->ops->rmsnorm_backward(pass->device, tokens, d.latent,
                                               config->latent_norm_eps, layer->kv_a_norm, s->kv_a,
                                               d.row, dlatent, d.latent, 0, dkv_a, d.row));
    return kt_linear_backward(pass, layer->kv_a, tokens, n, hidden, dkv_a, d.row, 0, dn, hidden);
}

static kt_status backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                          union kt_attention_state *state, const float *dy, float *dn)
{
    struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t tokens = pass->tokens, o_width = d.heads * d.v;
    uint64_t mark = pass->arena.used;
    float *d_o = kt_arena_floats(&pass->arena, tokens, o_width);
    float *dq = kt_arena_floats(&pass->arena, tokens, d.q_width);
    float *dkv = kt_arena_floats(&pass->arena, tokens, d.kv_width);
    float *dkv_a = kt_arena_floats(&pass->arena, tokens, d.row);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_backward(pass, layer->o, tokens, s->o, o_width, dy,
                              pass->model->config.hidden_size, 0, d_o, o_width));
    struct kt_attention a = kt_mla_expanded(pass, s->q, s->kv, s->kv_a + d.latent, s->o);
    a.lse = s->lse;
    struct kt_attention_grad g = {
        .d_o = d_o, .dq = dq, .dk = dkv, .dk_shared = dkv_a + d.latent, .dv = dkv + d.nope};
    KT_TRY(pass->device->ops->attention_backward(pass->device, &a, &g));
    KT_TRY(kt_rotate(pass, dq + d.nope, d.q_width, d.qk, d.heads, 1));
    KT_TRY(kt_rotate(pass, dkv_a + d.latent, d.row, 0, 1, 1));
    KT_TRY(backward_key_value(pass, layer, n, s, dkv, dkv_a, dn));
    KT_TRY(backward_query(pass, layer, n, s, dq, dn));
    pass->arena.used = mark;
    return KT_OK;
}

static int has_lora(const struct kt_pass *pass, const struct kt_layer *layer)
{
    const struct kt_linear *linears[] = {layer->q_proj, layer->q_a,  layer->q_b,
                                         layer->kv_a,   layer->kv_b, layer->o};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        if (linears[i] && kt_pass_lora(pass, linears[i]))
            return 1;
    return 0;
}

static int64_t cache_width(const struct kt_model_config *config)
{
    return kt_mla_shape_of(config).row;
}

static int32_t head_dim(const struct kt_model_config *config)
{
    struct kt_mla_shape d = kt_mla_shape_of(config);
    return (int32_t)(d.qk > d.v ? d.qk : d.v);
}

const struct kt_attention_ops kt_attention_mla = {
    .forward = forward,
    .backward = backward,
    .has_lora = has_lora,
    .cache_width = cache_width,
    .head_dim = head_dim,
    .forward_cached = kt_mla_forward_cached,
};
