/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/mla.h"

#include "core/memory.h"

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

/** Heads [begin, begin + count), which go through attention together. */
struct group {
    int64_t begin, count;
    struct kt_view q, kv;
};

static bool in_groups(const struct kt_pass *pass)
{
    return kt_heads_at_once(pass, pass->model->config.num_attention_heads) <
           pass->model->config.num_attention_heads;
}

/** Memory for queries, or keys and values, of as many heads as go together, `width` each. */
static struct kt_view take_heads(struct kt_pass *pass, int64_t width)
{
    int64_t heads = kt_heads_at_once(pass, pass->model->config.num_attention_heads);
    return kt_take_activations(pass, pass->tokens, heads * width);
}

/** The group that begins at a head. */
static struct group group_at(const struct kt_pass *pass, int64_t begin, struct kt_view q,
                             struct kt_view kv)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct group g = {.begin = begin, .q = q, .kv = kv};
    g.count = kt_min_i64(kt_heads_at_once(pass, d.heads), d.heads - begin);
    g.q.ld = g.count * d.qk;
    g.kv.ld = g.count * d.kv;
    return g;
}

/** Fills q_a, q_latent and kv_a (its rotary key rotated). */
static void compress(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     struct kt_mla_state *s)
{
    const struct kt_model_config *config = &pass->model->config;
    struct kt_mla_shape d = kt_mla_shape_of(config);
    int64_t rank = config->q_lora_rank, tokens = pass->tokens;
    if (rank) {
        s->q_a = kt_take_activations(pass, tokens, rank);
        s->q_latent = kt_take_activations(pass, tokens, rank);
        kt_linear_forward(pass, layer->q_a, tokens, n, false, s->q_a);
        kt_norm(pass, tokens, rank, config->latent_norm_eps, layer->q_a_norm, s->q_a, s->q_latent);
    }
    s->kv_a = kt_take_activations(pass, tokens, d.row);
    kt_linear_forward(pass, layer->kv_a, tokens, n, false, s->kv_a);
    kt_rotate(pass, kt_view_at(s->kv_a, 0, d.latent), 0, 1, false);
}

static void project_query(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                          const struct kt_mla_state *s, const struct group *g)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    bool compressed = pass->model->config.q_lora_rank;
    kt_linear_rows_forward(pass, compressed ? layer->q_b : layer->q_proj, g->begin * d.qk, g->q.ld,
                           pass->tokens, compressed ? s->q_latent : n, false, g->q);
    kt_rotate(pass, kt_view_at(g->q, 0, d.nope), d.qk, g->count, false);
}

void kt_mla_project(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    compress(pass, layer, n, s);
    s->q = kt_take_activations(pass, pass->tokens, d.q_width);
    struct group all = {.count = d.heads, .q = s->q};
    project_query(pass, layer, n, s, &all);
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

/** Queries, keys and values of a group. */
static void expand(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                   const struct kt_mla_state *s, const struct group *g)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    project_query(pass, layer, n, s, g);
    kt_linear_rows_forward(pass, layer->kv_b, g->begin * d.kv, g->kv.ld, pass->tokens, s->latent,
                           false, g->kv);
}

static struct kt_attention_args attention(const struct kt_pass *pass, const struct kt_mla_state *s,
                                          const struct group *g)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct kt_attention_args a = kt_mla_expanded(
        pass, g->q, g->kv, kt_view_at(s->kv_a, 0, d.latent), kt_view_at(s->o, 0, g->begin * d.v));
    a.num_heads = a.num_kv_heads = (int32_t)g->count;
    a.lse = kt_lse_at(pass, s->lse, g->begin);
    return a;
}

/** All heads, a group after another; queries, keys and values of groups are given up again. */
static void attend(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                   const struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view q = s->q.data ? s->q : take_heads(pass, d.qk);
    struct kt_view kv = s->kv.data ? s->kv : take_heads(pass, d.kv);
    for (int64_t h = 0; h < d.heads; h += kt_heads_at_once(pass, d.heads)) {
        struct group g = group_at(pass, h, q, kv);
        expand(pass, layer, n, s, &g);
        struct kt_attention_args a = attention(pass, s, &g);
        kt_run_attention_forward(&pass->stage->run, &a);
        kt_attend_padding(pass, &a);
    }
    kt_pass_release(pass, mark);
}

static void forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    union kt_attention_state *state, struct kt_view y)
{
    struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t tokens = pass->tokens;
    compress(pass, layer, n, s);
    s->latent = kt_take_activations(pass, tokens, d.latent);
    s->q = s->kv = (struct kt_view){0};
    if (!in_groups(pass)) {
        s->q = take_heads(pass, d.qk);
        s->kv = take_heads(pass, d.kv);
    }
    s->o = kt_take_activations(pass, tokens, d.heads * d.v);
    s->lse = kt_take(pass, d.heads, tokens).data;
    kt_norm(pass, tokens, d.latent, pass->model->config.latent_norm_eps, layer->kv_a_norm, s->kv_a,
            s->latent);
    attend(pass, layer, n, s);
    kt_linear_forward(pass, layer->o, tokens, s->o, true, y);
}

/** Gradients. Groups add to q_latent, latent and kv_a, which are float32 then. */
struct gradients {
    struct kt_view o;
    struct kt_view q, kv;    /**< of a group */
    struct kt_view q_latent; /**< where the query is compressed */
    struct kt_view latent;
    struct kt_view kv_a; /**< its last columns are the rotated key's */
};

/** All but those of a group. */
static struct gradients take_gradients(struct kt_pass *pass, const struct kt_mla_state *s)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t tokens = pass->tokens, rank = pass->model->config.q_lora_rank;
    struct gradients g = {.o = kt_take_activations(pass, tokens, d.heads * d.v),
                          .q_latent = s->q_latent,
                          .latent = s->latent};
    if (!in_groups(pass)) {
        g.kv_a = kt_take_activations(pass, tokens, d.row);
        return g;
    }
    g.kv_a = kt_take(pass, tokens, d.row);
    g.latent = kt_take(pass, tokens, d.latent);
    if (rank)
        g.q_latent = kt_take(pass, tokens, rank);
    return g;
}

/** dq, dk, dv and d(rotated key) of a group, by attention. */
static void attend_backward(struct kt_pass *pass, const struct kt_mla_state *s,
                            const struct group *g, const struct group *dg,
                            const struct gradients *d_of)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct kt_view sum = kt_view_at(d_of->kv_a, 0, d.latent);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_attention_args a = attention(pass, s, g);
    a.d_o = kt_view_at(d_of->o, 0, g->begin * d.v);
    a.dq = dg->q;
    a.dk = dg->kv;
    a.dv = kt_view_at(dg->kv, 0, d.nope);
    a.dk_shared = in_groups(pass) ? kt_take_activations(pass, pass->tokens, d.row) : sum;
    kt_run_attention_backward(&pass->stage->run, &a);
    kt_rotate(pass, kt_view_at(a.dq, 0, d.nope), d.qk, g->count, true);
    kt_rotate(pass, a.dk_shared, 0, 1, true);
    if (in_groups(pass))
        kt_add(pass, pass->tokens, d.rope, a.dk_shared, g->begin > 0, sum);
    kt_pass_release(pass, mark);
}

/** dn (+)= from the latents of keys and values, whose gradient is whole */
static void backward_latent(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                            const struct kt_mla_state *s, const struct gradients *d_of,
                            bool accumulate, struct kt_view dn)
{
    const struct kt_model_config *config = &pass->model->config;
    kt_norm_backward(pass, pass->tokens, config->kv_lora_rank, config->latent_norm_eps,
                     layer->kv_a_norm, s->kv_a, d_of->latent, false, d_of->kv_a);
    kt_linear_backward(pass, layer->kv_a, pass->tokens, n, d_of->kv_a, accumulate, dn);
}

/** The last group ends keys and values before it is at its queries. A query that is not compressed
 * adds to dn, each group of it. */
static void backward_group(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct kt_mla_state *s, const struct group *g,
                           const struct gradients *d_of, struct kt_view dn)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    bool compressed = pass->model->config.q_lora_rank;
    bool adds = g->begin > 0, last = g->begin + g->count == d.heads;
    struct group dg = group_at(pass, g->begin, d_of->q, d_of->kv);
    attend_backward(pass, s, g, &dg, d_of);
    kt_linear_rows_backward(pass, layer->kv_b, g->begin * d.kv, dg.kv.ld, pass->tokens, s->latent,
                            dg.kv, adds, d_of->latent);
    if (last)
        backward_latent(pass, layer, n, s, d_of, adds && !compressed, dn);
    if (compressed)
        kt_linear_rows_backward(pass, layer->q_b, g->begin * d.qk, dg.q.ld, pass->tokens,
                                s->q_latent, dg.q, adds, d_of->q_latent);
    else
        kt_linear_rows_backward(pass, layer->q_proj, g->begin * d.qk, dg.q.ld, pass->tokens, n,
                                dg.q, adds || last, dn);
}

/** dn += from the compressed query, whose gradient is whole */
static void backward_query_latent(struct kt_pass *pass, const struct kt_layer *layer,
                                  struct kt_view n, const struct kt_mla_state *s,
                                  const struct gradients *d_of, struct kt_view dn)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t rank = config->q_lora_rank, tokens = pass->tokens;
    struct kt_view dq_a = kt_take_activations(pass, tokens, rank);
    kt_norm_backward(pass, tokens, rank, config->latent_norm_eps, layer->q_a_norm, s->q_a,
                     d_of->q_latent, false, dq_a);
    kt_linear_backward(pass, layer->q_a, tokens, n, dq_a, true, dn);
}

static void backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     union kt_attention_state *state, struct kt_view dy, struct kt_view dn)
{
    const struct kt_mla_state *s = &state->mla;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    uint64_t mark = kt_pass_mark(pass);
    struct gradients d_of = take_gradients(pass, s);
    kt_linear_backward(pass, layer->o, pass->tokens, s->o, dy, false, d_of.o);
    uint64_t wide = kt_pass_mark(pass);
    d_of.q = take_heads(pass, d.qk);
    d_of.kv = take_heads(pass, d.kv);
    struct kt_view q = in_groups(pass) ? take_heads(pass, d.qk) : s->q;
    struct kt_view kv = in_groups(pass) ? take_heads(pass, d.kv) : s->kv;
    for (int64_t h = 0; h < d.heads; h += kt_heads_at_once(pass, d.heads)) {
        struct group g = group_at(pass, h, q, kv);
        if (in_groups(pass))
            expand(pass, layer, n, s, &g);
        backward_group(pass, layer, n, s, &g, &d_of, dn);
    }
    kt_pass_release(pass, wide);
    if (pass->model->config.q_lora_rank)
        backward_query_latent(pass, layer, n, s, &d_of, dn);
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
