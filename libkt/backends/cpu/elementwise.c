/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that touch each element once. */
#include "backends/cpu/cpu.h"

#include "core/random.h"

enum { ROWS_A_TASK = 16, ELEMENTS_A_TASK = 1 << 14 };

struct rows {
    const struct kt_row_kernels *row;
    int64_t dim;
    float alpha;
    const float *x;
    int64_t ldx;
    int accumulate;
    float *y;
    int64_t ldy;
    uint64_t key;
    kt_decode_fn decode;
    const struct kt_weight *table;
    const int32_t *ids;
};

static void add_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *r = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        r->row->scale_add(r->dim, r->alpha, r->x + t * r->ldx, r->accumulate, r->y + t * r->ldy);
}

kt_status kt_cpu_add(struct kt_device *dev, int64_t tokens, int64_t dim, float alpha,
                     const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    struct rows r = {.row = &kt_cpu(dev)->kernels.row,
                     .dim = dim,
                     .alpha = alpha,
                     .x = x,
                     .ldx = ldx,
                     .accumulate = accumulate,
                     .y = y,
                     .ldy = ldy};
    kt_parallel_for(dev->ctx->pool, tokens, ROWS_A_TASK, add_rows, &r);
    return KT_OK;
}

static void drop_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *r = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        kt_dropout_row(r->alpha, r->key, t, 0, r->dim, r->x + t * r->ldx, r->accumulate,
                       r->y + t * r->ldy);
}

kt_status kt_cpu_dropout(struct kt_device *dev, float p, uint64_t key, int64_t tokens, int64_t dim,
                         const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    struct rows r = {.alpha = p,
                     .key = key,
                     .dim = dim,
                     .x = x,
                     .ldx = ldx,
                     .accumulate = accumulate,
                     .y = y,
                     .ldy = ldy};
    kt_parallel_for(dev->ctx->pool, tokens, ROWS_A_TASK, drop_rows, &r);
    return KT_OK;
}

static void embed_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *r = arg;
    int64_t cols = r->table->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        r->decode(r->table, r->ids[t], 0, 1, cols, 0, r->y + t * r->ldy, cols);
}

kt_status kt_cpu_embedding(struct kt_device *dev, const struct kt_weight *table, int64_t tokens,
                           const int32_t *ids, float *x, int64_t ldx)
{
    struct rows r = {.decode = kt_cpu(dev)->kernels.decode[KT_DECODE_F32],
                     .table = table,
                     .ids = ids,
                     .y = x,
                     .ldy = ldx};
    kt_parallel_for(dev->ctx->pool, tokens, ROWS_A_TASK, embed_rows, &r);
    return KT_OK;
}

struct elements {
    const struct kt_row_kernels *row;
    const float *gate, *up, *dh;
    float *out, *dup;
    uint16_t *packed;
    const uint16_t *from;
};

static void glu(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    (void)thread;
    e->row->silu_mul(end - begin, e->gate + begin, e->up + begin, e->out + begin);
}

static void glu_gradient(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    (void)thread;
    e->row->silu_mul_backward(end - begin, 1.0f, e->gate + begin, e->up + begin, e->dh + begin,
                              e->out + begin, e->dup + begin);
}

static void pack(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    (void)thread;
    e->row->to_bf16(end - begin, e->gate + begin, e->packed + begin);
}

static void unpack(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    (void)thread;
    e->row->widen(end - begin, KT_DTYPE_BF16, e->from + begin, e->out + begin);
}

static kt_status for_elements(struct kt_device *dev, int64_t n, kt_range_fn fn, struct elements *e)
{
    e->row = &kt_cpu(dev)->kernels.row;
    kt_parallel_for(dev->ctx->pool, n, ELEMENTS_A_TASK, fn, e);
    return KT_OK;
}

kt_status kt_cpu_glu_forward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                             int64_t dim, const float *gate, const float *up, float *h)
{
    struct elements e = {.gate = gate, .up = up, .out = h};
    (void)act;
    return for_elements(dev, tokens * dim, glu, &e);
}

kt_status kt_cpu_glu_backward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                              int64_t dim, const float *gate, const float *up, const float *dh,
                              float *dgate, float *dup)
{
    struct elements e = {.gate = gate, .up = up, .dh = dh, .out = dgate, .dup = dup};
    (void)act;
    return for_elements(dev, tokens * dim, glu_gradient, &e);
}

kt_status kt_cpu_pack_bf16(struct kt_device *dev, int64_t n, const float *x, uint16_t *packed)
{
    struct elements e = {.gate = x, .packed = packed};
    return for_elements(dev, n, pack, &e);
}

kt_status kt_cpu_unpack_bf16(struct kt_device *dev, int64_t n, const uint16_t *packed, float *x)
{
    struct elements e = {.from = packed, .out = x};
    return for_elements(dev, n, unpack, &e);
}
