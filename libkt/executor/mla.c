/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/mla.h"

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

static void project_query(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                          struct kt_mla_state *s)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t rank = config->q_lora_rank, tokens = pass->tokens;
    if (!rank) {
        kt_linear_forward(pass, layer->q_proj, tokens, n, false, s->q);
        return;
    }
    kt_linear_forward(pass, layer->q_a, tokens, n, false, s->q_a);
    kt_norm(pass, tokens, rank, config->latent_norm_eps, layer->q_a_norm, s->q_a, s->q_latent);
    kt_linear_forward(pass, layer->q_b, tokens, s->q_latent, false, s->q);
}

void kt_mla_project(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t rank = pass->model->config.q_lora_rank;
    if (rank) {
        s->q_a = kt_take_activations(pass, pass->tokens, rank);
        s->q_latent = kt_take_activations(pass, pass->tokens, rank);
    }
    s->q = kt_take_activations(pass, pass->tokens, d.q_width);
    s->kv_a = kt_take_activations(pass, pass->tokens, d.row);
    project_query(pass, layer, n, s);
    kt_rotate(pass, kt_view_at(s->q, 0, d.nope), d.qk, d.heads, false);
    kt_linear_forward(pass, layer->kv_a, pass->tokens, n, false, s->kv_a);
    kt_rotate(pass, kt_view_at(s->kv_a, 0, d.latent), 0, 1, false);
}

struct kt_attention_args kt_mla_expanded(const struct kt_pass *pass, struct kt_view q,
                                         struct kt_view kv, struct kt_view rotary_key,
                                         struct kt_view o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    return (struct kt_attention_args){.num_heads = (int32_t)d.heads,
                                      .num_kv_heads = (int32_t)d.heads,
                                      .qk_dim = (int32_t)d.qk,
                                      .shared_dim = (int32_t)d.rope,
                                      .v_dim = (int32_t)d.v,
                                      .scale = pass->model->config.softmax_scale,
                                      .compute = pass->compute,
                                      .queries = kt_pass_queries(pass),
                                      .keys = kt_pass_queries(pass),
                                      .q = q,
                                      .k = kv,
                                      .k_shared = rotary_key,
                                      .v = kt_view_at(kv, 0, d.nope),
                                      .o = o,
                                      .q_head_stride = d.qk,
                                      .k_head_stride = d.kv,
                                      .v_head_stride = d.kv,
                                      .o_head_stride = d.v};
}

static struct kt_attention_args attention(const struct kt_pass *pass, const struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct kt_attention_args a =
        kt_mla_expanded(pass, s->q, s->kv, kt_view_at(s->kv_a, 0, d.latent), s->o);
    a.lse = s->lse;
    return a;
}

static void forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    union kt_attention_state *state, struct kt_view y)
{
    struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t tokens = pass->tokens;
    kt_mla_project(pass, layer, n, s);
    s->latent = kt_take_activations(pass, tokens, d.latent);
    s->kv = kt_take_activations(pass, tokens, d.kv_width);
    s->o = kt_take_activations(pass, tokens, d.heads * d.v);
    s->lse = kt_take(pass, d.heads, tokens).data;
    kt_norm(pass, tokens, d.latent, pass->model->config.latent_norm_eps, layer->kv_a_norm, s->kv_a,
            s->latent);
    kt_linear_forward(pass, layer->kv_b, tokens, s->latent, false, s->kv);
    struct kt_attention_args a = attention(pass, s);
    kt_run_attention_forward(&pass->stage->run, &a);
    kt_attend_padding(pass, &a);
    kt_linear_forward(pass, layer->o, tokens, s->o, true, y);
}

/** dn += through the query's projections */
static void backward_query(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           struct kt_mla_state *s, struct kt_view dq, struct kt_view dn)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t tokens = pass->tokens, rank = config->q_lora_rank;
    if (!rank) {
        kt_linear_backward(pass, layer->q_proj, tokens, n, dq, true, dn);
        return;
    }
    struct kt_view dq_a = kt_take_activations(pass, tokens, rank), dq_latent = s->q_latent;
    kt_linear_backward(pass, layer->q_b, tokens, s->q_latent, dq, false, dq_latent);
    kt_norm_backward(pass, tokens, rank, config->latent_norm_eps, layer->q_a_norm, s->q_a,
                     dq_latent, false, dq_a);
    kt_linear_backward(pass, layer->q_a, tokens, n, dq_a, true, dn);
}

/** dn = through the projections of keys and values; dkv_a holds d(rotated key) in its last columns
 */
static void backward_key_value(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                               struct kt_mla_state *s, struct kt_view dkv, struct kt_view dkv_a,
                               struct kt_view dn)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t tokens = pass->tokens;
    struct kt_view dlatent = s->latent;
    kt_linear_backward(pass, layer->kv_b, tokens, s->latent, dkv, false, dlatent);
    kt_norm_backward(pass, tokens, config->kv_lora_rank, config->latent_norm_eps, layer->kv_a_norm,
                     s->kv_a, dlatent, false, dkv_a);
    kt_linear_backward(pass, layer->kv_a, tokens, n, dkv_a, false, dn);
}

static void backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     union kt_attention_state *state, struct kt_view dy, struct kt_view dn)
{
    struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t tokens = pass->tokens;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_attention_args a = attention(pass, s);
    a.d_o = kt_take_activations(pass, tokens, d.heads * d.v);
    a.dq = kt_take_activations(pass, tokens, d.q_width);
    a.dk = kt_take_activations(pass, tokens, d.kv_width);
    a.dv = kt_view_at(a.dk, 0, d.nope);
    struct kt_view dkv_a = kt_take_activations(pass, tokens, d.row);
    a.dk_shared = kt_view_at(dkv_a, 0, d.latent);
    kt_linear_backward(pass, layer->o, tokens, s->o, dy, false, a.d_o);
    kt_run_attention_backward(&pass->stage->run, &a);
    kt_rotate(pass, kt_view_at(a.dq, 0, d.nope), d.qk, d.heads, true);
    kt_rotate(pass, a.dk_shared, 0, 1, true);
    backward_key_value(pass, layer, n, s, a.dk, dkv_a, dn);
    backward_query(pass, layer, n, s, a.dq, dn);
    kt_pass_release(pass, mark);
}

static bool has_lora(const struct kt_pass *pass, const struct kt_layer *layer)
{
    const struct kt_linear *linears[] = {layer->q_proj, layer->q_a,  layer->q_b,
                                         layer->kv_a,   layer->kv_b, layer->o};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        if (linears[i] && kt_pass_lora(pass, linears[i]))
            return true;
    return false;
}

static int64_t cache_width(const struct kt_model_config *config)
{
    return kt_mla_shape_of(config).row;
}

const struct kt_attention_ops kt_attention_mla = {
    .forward = forward,
    .backward = backward,
    .has_lora = has_lora,
    .cache_width = cache_width,
    .forward_cached = kt_mla_forward_cached,
};
