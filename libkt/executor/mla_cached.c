/* SPDX-License-Identifier: Apache-2.0 */
#include "core/memory.h"
#include "executor/mla.h"

/** Appends the new tokens' normed latents and rotated keys. */
static void append(struct kt_pass *pass, const struct kt_layer *layer, const struct kt_mla_state *s,
                   const struct kt_cache_slice *cache)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct kt_view added = kt_view_at(cache->rows, cache->past, 0);
    kt_norm(pass, pass->tokens, d.latent, pass->model->config.latent_norm_eps, layer->kv_a_norm,
            s->kv_a, added);
    kt_add(pass, pass->tokens, d.rope, kt_view_at(s->kv_a, 0, d.latent), false,
           kt_view_at(added, 0, d.latent));
}

/** Keys and values of all rows by kv_b, then ordinary attention, a few heads at a time: no more of
 * them than make a row of keys and values as wide as the hidden state. */
static void attend_expanded(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view q,
                            const struct kt_cache_slice *cache, struct kt_view o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t keys = cache->past + pass->tokens;
    int64_t group = kt_min_i64(kt_max_i64(pass->model->config.hidden_size / d.kv, 1), d.heads);
    struct kt_view memory = kt_take_activations(pass, keys, group * d.kv);
    for (int64_t h = 0; h < d.heads; h += group) {
        int64_t heads = kt_min_i64(group, d.heads - h);
        struct kt_view kv = memory;
        kv.ld = heads * d.kv;
        kt_linear_rows_forward(pass, layer->kv_b, h * d.kv, kv.ld, keys, cache->rows, false, kv);
        struct kt_attention_args a =
            kt_mla_expanded(pass, kt_view_at(q, 0, h * d.qk), kv,
                            kt_view_at(cache->rows, 0, d.latent), kt_view_at(o, 0, h * d.v));
        a.num_heads = a.num_kv_heads = (int32_t)heads;
        a.keys = kt_pass_keys(pass);
        kt_run_attention_forward(&pass->stage->run, &a);
    }
}

/** Which form multiplies less: the absorbed one pays for wider heads at each query-key pair, the
 * expanded one for kv_b over the rows that are in the cache already. */
static bool absorbed_is_cheaper(const struct kt_mla_shape *d, int64_t past, int64_t tokens)
{
    double pairs = (double)tokens * ((double)past + (double)tokens / 2);
    return pairs * (double)(2 * d->latent - d->kv) < (double)past * (double)(d->latent * d->kv);
}

void kt_mla_forward_cached(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct kt_cache_slice *cache, struct kt_view y)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_mla_state s = {0};
    kt_mla_project(pass, layer, n, &s);
    s.o = kt_take_activations(pass, pass->tokens, d.heads * d.v);
    append(pass, layer, &s, cache);
    if (absorbed_is_cheaper(&d, cache->past, pass->tokens))
        kt_mla_absorbed(pass, layer, s.q, cache, s.o);
    else
        attend_expanded(pass, layer, s.q, cache, s.o);
    kt_linear_forward(pass, layer->o, pass->tokens, s.o, true, y);
    kt_pass_release(pass, mark);
}
