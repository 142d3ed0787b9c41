/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pass.h"

#include "core/context.h"

const struct kt_lora_pair *kt_pass_lora(const struct kt_pass *pass, const struct kt_linear *linear)
{
    int attachable = pass->lora && linear->index >= 0;
    const struct kt_lora_pair *pair = attachable ? &pass->lora->slots[linear->index] : NULL;
    return pair && pair->a ? pair : NULL;
}

static kt_compute compute_of(const struct kt_pass *pass, const struct kt_linear *linear)
{
    return linear->role == KT_ROLE_ROUTER ? KT_COMPUTE_F32 : pass->compute;
}

static uint64_t dropout_key(const struct kt_pass *pass, const struct kt_lora_pair *pair)
{
    return pair->dropout_key + (uint64_t)pass->dropout_row * 0x9e3779b97f4a7c15u;
}

/** The input LoRA sees: x itself, or a masked copy on the arena. */
static kt_status masked_input(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t tokens,
                              int64_t dim, const float **x, int64_t *ldx)
{
    if (!pass->training || pair->dropout <= 0)
        return KT_OK;
    float *masked = kt_arena_floats(&pass->arena, tokens, dim);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(pass->device->ops->dropout(pass->device, pair->dropout, dropout_key(pass, pair), tokens,
                                      dim, *x, *ldx, 0, masked, dim));
    *x = masked;
    *ldx = dim;
    return KT_OK;
}

/** u [tokens, rank] = x A^T */
static kt_status project_down(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t tokens,
                              int64_t dim, const float *x, int64_t ldx, float *u)
{
    struct kt_gemm g = {.trans_b = 1,
                        .m = tokens,
                        .n = pair->rank,
                        .k = dim,
                        .alpha = 1,
                        .a = x,
                        .lda = ldx,
                        .b = pair->a,
                        .ldb = dim,
                        .c = u,
                        .ldc = pair->rank};
    return pass->device->ops->gemm(pass->device, &g);
}

/** y += the rows of LoRA that begin at `begin` and belong to w. */
static kt_status lora_forward(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t begin,
                              const struct kt_weight *w, int64_t tokens, const float *x,
                              int64_t ldx, float *y, int64_t ldy)
{
    uint64_t mark = pass->arena.used;
    float *u = kt_arena_floats(&pass->arena, tokens, pair->rank);
    KT_TRY(masked_input(pass, pair, tokens, w->cols, &x, &ldx));
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(project_down(pass, pair, tokens, w->cols, x, ldx, u));
    struct kt_gemm g = {.trans_b = 1,
                        .m = tokens,
                        .n = w->rows,
                        .k = pair->rank,
                        .alpha = pair->scale,
                        .a = u,
                        .lda = pair->rank,
                        .b = pair->b + begin * pair->rank,
                        .ldb = pair->rank,
                        .accumulate = 1,
                        .c = y,
                        .ldc = ldy};
    KT_TRY(pass->device->ops->gemm(pass->device, &g));
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_linear_rows_forward(struct kt_pass *pass, const struct kt_linear *linear,
                                 int64_t begin, int64_t count, int64_t tokens, const float *x,
                                 int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    const struct kt_device_ops *ops = pass->device->ops;
    const struct kt_lora_pair *pair = kt_pass_lora(pass, linear);
    struct kt_weight w = kt_weight_rows(&linear->weight, begin, count);
    KT_TRY(ops->linear_forward(pass->device, &w, compute_of(pass, linear), tokens, x, ldx,
                               accumulate, y, ldy));
    if (linear->bias)
        KT_TRY(ops->add(pass->device, tokens, count, 1, linear->bias + begin, 0, 1, y, ldy));
    return pair ? lora_forward(pass, pair, begin, &w, tokens, x, ldx, y, ldy) : KT_OK;
}

kt_status kt_linear_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                            const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    return kt_linear_rows_forward(pass, linear, 0, linear->weight.rows, tokens, x, ldx, accumulate,
                                  y, ldy);
}

/** du [tokens, rank] = scale * dy B; dB += scale * dy^T u; dA += du^T x */
static kt_status lora_gradients(struct kt_pass *pass, const struct kt_lora_pair *pair,
                                const struct kt_weight *w, int64_t tokens, const float *x,
                                int64_t ldx, const float *dy, int64_t lddy, float *du)
{
    const struct kt_device_ops *ops = pass->device->ops;
    uint64_t mark = pass->arena.used;
    float *u = kt_arena_floats(&pass->arena, tokens, pair->rank);
    KT_TRY(masked_input(pass, pair, tokens, w->cols, &x, &ldx));
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(project_down(pass, pair, tokens, w->cols, x, ldx, u));
    struct kt_gemm db = {.trans_a = 1,
                         .m = w->rows,
                         .n = pair->rank,
                         .k = tokens,
                         .alpha = pair->scale,
                         .a = dy,
                         .lda = lddy,
                         .b = u,
                         .ldb = pair->rank,
                         .accumulate = 1,
                         .c = pair->db,
                         .ldc = pair->rank};
    KT_TRY(ops->gemm(pass->device, &db));
    struct kt_gemm to_rank = {.m = tokens,
                              .n = pair->rank,
                              .k = w->rows,
                              .alpha = pair->scale,
                              .a = dy,
                              .lda = lddy,
                              .b = pair->b,
                              .ldb = pair->rank,
                              .c = du,
                              .ldc = pair->rank};
    KT_TRY(ops->gemm(pass->device, &to_rank));
    struct kt_gemm da = {.trans_a = 1,
                         .m = pair->rank,
                         .n = w->cols,
                         .k = tokens,
                         .alpha = 1,
                         .a = du,
                         .lda = pair->rank,
                         .b = x,
                         .ldb = ldx,
                         .accumulate = 1,
                         .c = pair->da,
                         .ldc = w->cols};
    KT_TRY(ops->gemm(pass->device, &da));
    if (tokens > 0 && pass->kind != KT_PASS_MEASURE)
        *pair->has_grad = 1;
    pass->arena.used = mark;
    return KT_OK;
}

/** dx += dropout(du A) */
static kt_status lora_input_gradient(struct kt_pass *pass, const struct kt_lora_pair *pair,
                                     const struct kt_weight *w, int64_t tokens, const float *du,
                                     float *dx, int64_t lddx)
{
    const struct kt_device_ops *ops = pass->device->ops;
    uint64_t mark = pass->arena.used;
    struct kt_gemm g = {.m = tokens,
                        .n = w->cols,
                        .k = pair->rank,
                        .alpha = 1,
                        .a = du,
                        .lda = pair->rank,
                        .b = pair->a,
                        .ldb = w->cols,
                        .accumulate = 1,
                        .c = dx,
                        .ldc = lddx};
    if (!pass->training || pair->dropout <= 0)
        return ops->gemm(pass->device, &g);
    g.accumulate = 0;
    g.c = kt_arena_floats(&pass->arena, tokens, w->cols);
    g.ldc = w->cols;
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(ops->gemm(pass->device, &g));
    KT_TRY(ops->dropout(pass->device, pair->dropout, dropout_key(pass, pair), tokens, w->cols, g.c,
                        g.ldc, 1, dx, lddx));
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_linear_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                             const float *x, int64_t ldx, const float *dy, int64_t lddy,
                             int accumulate, float *dx, int64_t lddx)
{
    const struct kt_lora_pair *pair = kt_pass_lora(pass, linear);
    const struct kt_weight *w = &linear->weight;
    uint64_t mark = pass->arena.used;
    float *du = pair ? kt_arena_floats(&pass->arena, tokens, pair->rank) : NULL;
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    if (pair)
        KT_TRY(lora_gradients(pass, pair, w, tokens, x, ldx, dy, lddy, du));
    if (dx)
        KT_TRY(pass->device->ops->linear_backward(pass->device, w, compute_of(pass, linear), tokens,
                                                  dy, lddy, accumulate, dx, lddx));
    if (pair && dx)
        KT_TRY(lora_input_gradient(pass, pair, w, tokens, du, dx, lddx));
    pass->arena.used = mark;
    return KT_OK;
}
