/* SPDX-License-Identifier: Apache-2.0 */
#include "core/memory.h"
#include "executor/mla.h"

/** What both directions through kv_b need. Rows of a token's heads follow one another, so that a
 * product with LoRA's A takes all heads of all tokens at once. */
struct absorbed {
    struct kt_pass *pass;
    struct kt_mla_shape d;
    struct kt_weight kv_b;
    const struct kt_lora_pair *pair;
    struct kt_view a, b; /**< of the pair, where the device has them */
    int64_t rank, rows;  /**< rows = tokens * heads */
    struct kt_view q;    /**< [rows, latent + rope] */
    struct kt_view o;    /**< [rows, latent] */
    struct kt_view u;    /**< [rows, rank] */
};

/** One head of [tokens * heads, width], as [tokens, width]. */
static struct kt_view head_of(const struct absorbed *s, struct kt_view x, int64_t head)
{
    struct kt_view of = kt_view_at(x, head, 0);
    of.ld = s->d.heads * x.ld;
    return of;
}

/** Heads whose operations are given to the device at one time. */
enum { TOGETHER = 16 };

/** The operations of a head. */
typedef void (*head_fn)(const struct absorbed *s, int64_t head, struct kt_view x,
                        struct kt_linear_args *linear, struct kt_gemm_args *gemm);

/** Runs the operations of every head: linears, and with LoRA a product each. */
static void run_heads(const struct absorbed *s, enum kt_op linear, head_fn fn, struct kt_view x)
{
    const struct kt_runner *run = &s->pass->stage->run;
    struct kt_linear_args linears[TOGETHER];
    struct kt_gemm_args gemms[TOGETHER];
    for (int64_t first = 0; first < s->d.heads; first += TOGETHER) {
        int32_t count = (int32_t)kt_min_i64(s->d.heads - first, TOGETHER);
        for (int32_t i = 0; i < count; i++)
            fn(s, first + i, x, &linears[i], &gemms[i]);
        kt_run_all(run, linear, count, linears);
        if (s->pair)
            kt_run_all(run, KT_OP_GEMM, count, gemms);
    }
}

/** s->q = q K_h; u = scale * q B_h of the head's key rows */
static void query_of_head(const struct absorbed *s, int64_t head, struct kt_view q,
                          struct kt_linear_args *linear, struct kt_gemm_args *gemm)
{
    const struct kt_mla_shape *d = &s->d;
    *linear = (struct kt_linear_args){.weight = kt_weight_rows(&s->kv_b, head * d->kv, d->nope),
                                      .compute = s->pass->compute,
                                      .tokens = s->pass->tokens,
                                      .x = kt_view_at(q, 0, head * d->qk),
                                      .y = head_of(s, s->q, head)};
    if (s->pair)
        *gemm = (struct kt_gemm_args){.m = s->pass->tokens,
                                      .n = s->rank,
                                      .k = d->nope,
                                      .alpha = s->pair->scale,
                                      .a = linear->x,
                                      .b = kt_view_at(s->b, head * d->kv, 0),
                                      .c = head_of(s, s->u, head)};
}

/** s->q = [q K_h | rotated part of q] */
static void query_to_latent(const struct absorbed *s, struct kt_view q)
{
    const struct kt_mla_shape *d = &s->d;
    run_heads(s, KT_OP_LINEAR_BACKWARD, query_of_head, q);
    if (s->pair) {
        struct kt_gemm_args g = {.m = s->rows,
                                 .n = d->latent,
                                 .k = s->rank,
                                 .alpha = 1,
                                 .a = s->u,
                                 .b = s->a,
                                 .c = s->q,
                                 .accumulate = true};
        kt_run_gemm(&s->pass->stage->run, &g);
    }
    q.ld = d->qk;
    kt_add(s->pass, s->rows, d->rope, kt_view_at(q, 0, d->nope), false,
           kt_view_at(s->q, 0, d->latent));
}

/** o = V_h s->o; o += scale * B_h u of the head's value rows */
static void value_of_head(const struct absorbed *s, int64_t head, struct kt_view o,
                          struct kt_linear_args *linear, struct kt_gemm_args *gemm)
{
    const struct kt_mla_shape *d = &s->d;
    int64_t row = head * d->kv + d->nope;
    *linear = (struct kt_linear_args){.weight = kt_weight_rows(&s->kv_b, row, d->v),
                                      .compute = s->pass->compute,
                                      .tokens = s->pass->tokens,
                                      .x = head_of(s, s->o, head),
                                      .y = kt_view_at(o, 0, head * d->v)};
    if (s->pair)
        *gemm = (struct kt_gemm_args){.trans_b = true,
                                      .m = s->pass->tokens,
                                      .n = d->v,
                                      .k = s->rank,
                                      .alpha = s->pair->scale,
                                      .a = head_of(s, s->u, head),
                                      .b = kt_view_at(s->b, row, 0),
                                      .c = linear->y,
                                      .accumulate = true};
}

/** o [tokens, heads, v] = V_h s->o */
static void latent_to_value(const struct absorbed *s, struct kt_view o)
{
    if (s->pair) {
        struct kt_gemm_args g = {.trans_b = true,
                                 .m = s->rows,
                                 .n = s->rank,
                                 .k = s->d.latent,
                                 .alpha = 1,
                                 .a = s->o,
                                 .b = s->a,
                                 .c = s->u};
        kt_run_gemm(&s->pass->stage->run, &g);
    }
    run_heads(s, KT_OP_LINEAR_FORWARD, value_of_head, o);
}

void kt_mla_absorbed(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view q,
                     const struct kt_cache_slice *cache, struct kt_view o)
{
    struct kt_mla_shape d = kt_mla_shape_of(&pass->model->config);
    const struct kt_site *site = pass->stage->site;
    struct absorbed s = {.pass = pass,
                         .d = d,
                         .kv_b = kt_pass_weight(pass, &layer->kv_b->weight),
                         .pair = kt_pass_lora(pass, layer->kv_b),
                         .rows = pass->tokens * d.heads};
    if (s.pair) {
        s.rank = s.pair->rank;
        s.a = kt_view_f32(kt_site_lora(site, pass->lora, s.pair->a), d.latent);
        s.b = kt_view_f32(kt_site_lora(site, pass->lora, s.pair->b), s.rank);
    }
    s.q = kt_take(pass, s.rows, d.row);
    s.o = kt_take(pass, s.rows, d.latent);
    s.u = kt_take(pass, s.rows, s.rank);
    query_to_latent(&s, q);
    struct kt_attention_args a = kt_mla_expanded(pass, s.q, cache->rows, (struct kt_view){0}, s.o);
    a.keys = kt_pass_keys(pass);
    a.num_kv_heads = 1;
    a.qk_dim = (int32_t)d.row;
    a.shared_dim = 0;
    a.v_dim = (int32_t)d.latent;
    a.q.ld = d.heads * d.row;
    a.q_head_stride = d.row;
    a.v = cache->rows;
    a.k_head_stride = a.v_head_stride = 0;
    a.o.ld = d.heads * d.latent;
    a.o_head_stride = d.latent;
    kt_run_attention_forward(&pass->stage->run, &a);
    latent_to_value(&s, o);
}
