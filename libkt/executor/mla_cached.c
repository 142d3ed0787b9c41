/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "executor/mla.h"

/** Appends the new tokens' normed latents and rotated keys. */
static kt_status append(struct kt_pass *pass, const struct kt_layer *layer,
                        const struct kt_mla_state *s, const struct kt_cache_slice *cache)
{
    const struct kt_device_ops *ops = pass->device->ops;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    float *rows = cache->rows + cache->past * d.row;
    KT_TRY(ops->rmsnorm_forward(pass->device, pass->tokens, d.latent,
                                pass->model->config.latent_norm_eps, layer->kv_a_norm, s->kv_a,
                                d.row, rows, d.row));
    return ops->add(pass->device, pass->tokens, d.rope, 1, s->kv_a + d.latent, d.row, 0,
                    rows + d.latent, d.row);
}

/** Keys and values of all rows by kv_b, then ordinary attention, a few heads at a time: no more of
 * them than make a row of keys and values as wide as the hidden state. */
static kt_status attend_expanded(struct kt_pass *pass, const struct kt_layer *layer, const float *q,
                                 const struct kt_cache_slice *cache, float *o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t keys = cache->past + pass->tokens;
    int64_t group = kt_min_i64(kt_max_i64(pass->model->config.hidden_size / d.kv, 1), d.heads);
    int32_t cu_keys[2] = {0, (int32_t)keys};
    float *kv = kt_arena_floats(&pass->arena, keys, group * d.kv);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    for (int64_t h = 0; h < d.heads; h += group) {
        int64_t heads = kt_min_i64(group, d.heads - h), width = heads * d.kv;
        KT_TRY(kt_linear_rows_forward(pass, layer->kv_b, h * d.kv, width, keys, cache->rows, d.row,
                                      0, kv, width));
        struct kt_attention a =
            kt_mla_expanded(pass, q + h * d.qk, kv, cache->rows + d.latent, o + h * d.v);
        a.num_heads = a.num_kv_heads = (int32_t)heads;
        a.k_stride = a.v_stride = width;
        a.cu_seqlens_k = cu_keys;
        KT_TRY(pass->device->ops->attention_forward(pass->device, &a));
    }
    return KT_OK;
}

/** Which form multiplies less: the absorbed one pays for wider heads at each query-key pair, the
 * expanded one for kv_b over the rows that are in the cache already. */
static int absorbed_is_cheaper(const struct kt_mla_shape *d, int64_t past, int64_t tokens)
{
    double pairs = (double)tokens * ((double)past + (double)tokens / 2);
    return pairs * (double)(2 * d->latent - d->kv) < (double)past * (double)(d->latent * d->kv);
}

kt_status kt_mla_forward_cached(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                                const struct kt_cache_slice *cache, float *y)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    uint64_t mark = pass->arena.used;
    struct kt_mla_state s = {0};
    KT_TRY(kt_mla_project(pass, layer, n, &s));
    s.o = kt_arena_floats(&pass->arena, pass->tokens, d.heads * d.v);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(append(pass, layer, &s, cache));
    if (absorbed_is_cheaper(&d, cache->past, pass->tokens))
        KT_TRY(kt_mla_absorbed(pass, layer, s.q, cache, s.o));
    else
        KT_TRY(attend_expanded(pass, layer, s.q, cache, s.o));
    KT_TRY(kt_linear_forward(pass, layer->o, pass->tokens, s.o, d.heads * d.v, 1, y,
                             pass->model->config.hidden_size));
    pass->arena.used = mark;
    return KT_OK;
}
