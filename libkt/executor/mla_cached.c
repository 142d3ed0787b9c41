/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
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

/** Keys and values of all rows by kv_b, then ordinary attention. */
static kt_status attend_expanded(struct kt_pass *pass, const struct kt_layer *layer, const float *q,
                                 const struct kt_cache_slice *cache, float *o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    int64_t keys = cache->past + pass->tokens;
    int32_t cu_keys[2] = {0, (int32_t)keys};
    float *kv = kt_arena_floats(&pass->arena, keys, d.kv_width);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_linear_forward(pass, layer->kv_b, keys, cache->rows, d.row, 0, kv, d.kv_width));
    struct kt_attention a = kt_mla_expanded(pass, q, kv, cache->rows + d.latent, o);
    a.cu_seqlens_k = cu_keys;
    return pass->device->ops->attention_forward(pass->device, &a);
}

/** A head's rows [begin, begin + count) of kv_b, LoRA's B included. */
struct head_rows {
    struct kt_weight w;
    const struct kt_lora_pair *pair;
    const float *b; /**< [count, rank] */
};

static struct head_rows rows_of(const struct kt_pass *pass, const struct kt_linear *kv_b,
                                int64_t begin, int64_t count)
{
    struct head_rows r = {.w = kt_weight_rows(&kv_b->weight, begin, count),
                          .pair = kt_pass_lora(pass, kv_b)};
    if (r.pair)
        r.b = r.pair->b + begin * r.pair->rank;
    return r;
}

/** latent-space query of one head: out [tokens, latent] = q K, K the head's key rows */
static kt_status query_to_latent(struct kt_pass *pass, const struct head_rows *k, const float *q,
                                 int64_t ldq, float *u, float *out, int64_t ldo)
{
    const struct kt_device_ops *ops = pass->device->ops;
    KT_TRY(ops->linear_backward(pass->device, &k->w, pass->compute, pass->tokens, q, ldq, 0, out,
                                ldo));
    if (!k->pair)
        return KT_OK;
    int64_t rank = k->pair->rank;
    struct kt_gemm to_rank = {.m = pass->tokens,
                              .n = rank,
                              .k = k->w.rows,
                              .alpha = k->pair->scale,
                              .a = q,
                              .lda = ldq,
                              .b = k->b,
                              .ldb = rank,
                              .c = u,
                              .ldc = rank};
    KT_TRY(ops->gemm(pass->device, &to_rank));
    struct kt_gemm to_latent = {.m = pass->tokens,
                                .n = k->w.cols,
                                .k = rank,
                                .alpha = 1,
                                .a = u,
                                .lda = rank,
                                .b = k->pair->a,
                                .ldb = k->w.cols,
                                .accumulate = 1,
                                .c = out,
                                .ldc = ldo};
    return ops->gemm(pass->device, &to_latent);
}

/** out [tokens, v] = V x, V the head's value rows */
static kt_status latent_to_value(struct kt_pass *pass, const struct head_rows *v, const float *x,
                                 int64_t ldx, float *u, float *out, int64_t ldo)
{
    const struct kt_device_ops *ops = pass->device->ops;
    KT_TRY(
        ops->linear_forward(pass->device, &v->w, pass->compute, pass->tokens, x, ldx, 0, out, ldo));
    if (!v->pair)
        return KT_OK;
    int64_t rank = v->pair->rank;
    struct kt_gemm to_rank = {.trans_b = 1,
                              .m = pass->tokens,
                              .n = rank,
                              .k = v->w.cols,
                              .alpha = 1,
                              .a = x,
                              .lda = ldx,
                              .b = v->pair->a,
                              .ldb = v->w.cols,
                              .c = u,
                              .ldc = rank};
    KT_TRY(ops->gemm(pass->device, &to_rank));
    struct kt_gemm to_value = {.trans_b = 1,
                               .m = pass->tokens,
                               .n = v->w.rows,
                               .k = rank,
                               .alpha = v->pair->scale,
                               .a = u,
                               .lda = rank,
                               .b = v->b,
                               .ldb = rank,
                               .accumulate = 1,
                               .c = out,
                               .ldc = ldo};
    return ops->gemm(pass->device, &to_value);
}

/** Attention in the space of the latents, which all heads share: q K_h replaces q, and V_h maps the
 * weighted sum of latents to the head's output. No key or value is expanded. */
static kt_status attend_absorbed(struct kt_pass *pass, const struct kt_layer *layer, const float *q,
                                 const struct kt_cache_slice *cache, float *o)
{
    const struct kt_device_ops *ops = pass->device->ops;
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    const struct kt_lora_pair *pair = kt_pass_lora(pass, layer->kv_b);
    int32_t cu_keys[2] = {0, (int32_t)(cache->past + pass->tokens)};
    int64_t tokens = pass->tokens, q_width = d.heads * d.row, o_width = d.heads * d.latent;
    float *ql = kt_arena_floats(&pass->arena, tokens, q_width);
    float *ol = kt_arena_floats(&pass->arena, tokens, o_width);
    float *u = kt_arena_floats(&pass->arena, tokens, pair ? pair->rank : 0);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    for (int64_t h = 0; h < d.heads; h++) {
        struct head_rows k = rows_of(pass, layer->kv_b, h * d.kv, d.nope);
        KT_TRY(query_to_latent(pass, &k, q + h * d.qk, d.q_width, u, ql + h * d.row, q_width));
        KT_TRY(ops->add(pass->device, tokens, d.rope, 1, q + h * d.qk + d.nope, d.q_width, 0,
                        ql + h * d.row + d.latent, q_width));
    }
    struct kt_attention a = kt_mla_expanded(pass, ql, cache->rows, NULL, ol);
    a.cu_seqlens_k = cu_keys;
    a.num_kv_heads = 1;
    a.qk_dim = (int32_t)d.row;
    a.shared_dim = 0;
    a.v_dim = (int32_t)d.latent;
    a.q_stride = q_width;
    a.q_head_stride = d.row;
    a.v = cache->rows;
    a.k_stride = a.v_stride = d.row;
    a.k_head_stride = a.v_head_stride = 0;
    a.o_stride = o_width;
    a.o_head_stride = d.latent;
    KT_TRY(ops->attention_forward(pass->device, &a));
    for (int64_t h = 0; h < d.heads; h++) {
        struct head_rows v = rows_of(pass, layer->kv_b, h * d.kv + d.nope, d.v);
        KT_TRY(
            latent_to_value(pass, &v, ol + h * d.latent, o_width, u, o + h * d.v, d.heads * d.v));
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
        KT_TRY(attend_absorbed(pass, layer, s.q, cache, s.o));
    else
        KT_TRY(attend_expanded(pass, layer, s.q, cache, s.o));
    KT_TRY(kt_linear_forward(pass, layer->o, pass->tokens, s.o, d.heads * d.v, 1, y,
                             pass->model->config.hidden_size));
    pass->arena.used = mark;
    return KT_OK;
}
