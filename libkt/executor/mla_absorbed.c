/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "executor/mla.h"

/** What both directions through kv_b need. Rows of a token's heads follow one another, so that a
 * product with LoRA's A takes all heads of all tokens at once. */
struct absorbed {
    struct kt_pass *pass;
    struct kt_mla_shape d;
    const struct kt_linear *kv_b;
    const struct kt_lora_pair *pair;
    int64_t rank, rows; /**< rows = tokens * heads */
    float *q;           /**< [rows, latent + rope] */
    float *o;           /**< [rows, latent] */
    float *u;           /**< [rows, rank] */
};

/** u = scale * q B_h of a head's key rows */
static kt_status query_to_rank(const struct absorbed *s, int64_t head, const float *q)
{
    const struct kt_device_ops *ops = s->pass->device->ops;
    struct kt_gemm g = {.m = s->pass->tokens,
                        .n = s->rank,
                        .k = s->d.nope,
                        .alpha = s->pair->scale,
                        .a = q,
                        .lda = s->d.q_width,
                        .b = s->pair->b + head * s->d.kv * s->rank,
                        .ldb = s->rank,
                        .c = s->u + head * s->rank,
                        .ldc = s->d.heads * s->rank};
    return ops->gemm(s->pass->device, &g);
}

/** s->q = [q K_h | rotated part of q] */
static kt_status query_to_latent(const struct absorbed *s, const float *q)
{
    const struct kt_device_ops *ops = s->pass->device->ops;
    struct kt_device *device = s->pass->device;
    const struct kt_mla_shape *d = &s->d;
    for (int64_t h = 0; h < d->heads; h++) {
        struct kt_weight k = kt_weight_rows(&s->kv_b->weight, h * d->kv, d->nope);
        const float *q_head = q + h * d->qk;
        KT_TRY(ops->linear_backward(device, &k, s->pass->compute, s->pass->tokens, q_head,
                                    d->q_width, 0, s->q + h * d->row, d->heads * d->row));
        if (s->pair)
            KT_TRY(query_to_rank(s, h, q_head));
    }
    if (s->pair) {
        struct kt_gemm g = {.m = s->rows,
                            .n = d->latent,
                            .k = s->rank,
                            .alpha = 1,
                            .a = s->u,
                            .lda = s->rank,
                            .b = s->pair->a,
                            .ldb = d->latent,
                            .accumulate = 1,
                            .c = s->q,
                            .ldc = d->row};
        KT_TRY(ops->gemm(device, &g));
    }
    return ops->add(device, s->rows, d->rope, 1, q + d->nope, d->qk, 0, s->q + d->latent, d->row);
}

/** o += scale * B_h u of a head's value rows */
static kt_status rank_to_value(const struct absorbed *s, int64_t head, float *o)
{
    const struct kt_device_ops *ops = s->pass->device->ops;
    struct kt_gemm g = {.trans_b = 1,
                        .m = s->pass->tokens,
                        .n = s->d.v,
                        .k = s->rank,
                        .alpha = s->pair->scale,
                        .a = s->u + head * s->rank,
                        .lda = s->d.heads * s->rank,
                        .b = s->pair->b + (head * s->d.kv + s->d.nope) * s->rank,
                        .ldb = s->rank,
                        .accumulate = 1,
                        .c = o,
                        .ldc = s->d.heads * s->d.v};
    return ops->gemm(s->pass->device, &g);
}

/** o [tokens, heads, v] = V_h s->o */
static kt_status latent_to_value(const struct absorbed *s, float *o)
{
    const struct kt_device_ops *ops = s->pass->device->ops;
    struct kt_device *device = s->pass->device;
    const struct kt_mla_shape *d = &s->d;
    if (s->pair) {
        struct kt_gemm g = {.trans_b = 1,
                            .m = s->rows,
                            .n = s->rank,
                            .k = d->latent,
                            .alpha = 1,
                            .a = s->o,
                            .lda = d->latent,
                            .b = s->pair->a,
                            .ldb = d->latent,
                            .c = s->u,
                            .ldc = s->rank};
        KT_TRY(ops->gemm(device, &g));
    }
    for (int64_t h = 0; h < d->heads; h++) {
        struct kt_weight v = kt_weight_rows(&s->kv_b->weight, h * d->kv + d->nope, d->v);
        float *o_head = o + h * d->v;
        KT_TRY(ops->linear_forward(device, &v, s->pass->compute, s->pass->tokens,
                                   s->o + h * d->latent, d->heads * d->latent, 0, o_head,
                                   d->heads * d->v));
        if (s->pair)
            KT_TRY(rank_to_value(s, h, o_head));
    }
    return KT_OK;
}

kt_status kt_mla_absorbed(struct kt_pass *pass, const struct kt_layer *layer, const float *q,
                          const struct kt_cache_slice *cache, float *o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    struct absorbed s = {.pass = pass,
                         .d = d,
                         .kv_b = layer->kv_b,
                         .pair = kt_pass_lora(pass, layer->kv_b),
                         .rows = pass->tokens * d.heads};
    int32_t cu_keys[2] = {0, (int32_t)(cache->past + pass->tokens)};
    s.rank = s.pair ? s.pair->rank : 0;
    s.q = kt_arena_floats(&pass->arena, s.rows, d.row);
    s.o = kt_arena_floats(&pass->arena, s.rows, d.latent);
    s.u = kt_arena_floats(&pass->arena, s.rows, s.rank);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(query_to_latent(&s, q));
    struct kt_attention a = kt_mla_expanded(pass, s.q, cache->rows, NULL, s.o);
    a.cu_seqlens_k = cu_keys;
    a.num_kv_heads = 1;
    a.qk_dim = (int32_t)d.row;
    a.shared_dim = 0;
    a.v_dim = (int32_t)d.latent;
    a.q_stride = d.heads * d.row;
    a.q_head_stride = d.row;
    a.v = cache->rows;
    a.k_stride = a.v_stride = d.row;
    a.k_head_stride = a.v_head_stride = 0;
    a.o_stride = d.heads * d.latent;
    a.o_head_stride = d.latent;
    KT_TRY(pass->device->ops->attention_forward(pass->device, &a));
    return latent_to_value(&s, o);
}
