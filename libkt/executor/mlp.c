/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "executor/pass.h"

/** The products that the caller keeps, or others on the arena. */
static kt_status take_products(struct kt_pass *pass, const struct kt_mlp *mlp,
                               const struct kt_products *kept, struct kt_products *products)
{
    *products = *kept;
    if (kept->gate)
        return KT_OK;
    products->gate = kt_arena_floats(&pass->arena, pass->tokens, mlp->intermediate_size);
    products->up = kt_arena_floats(&pass->arena, pass->tokens, mlp->intermediate_size);
    return kt_arena_check(pass->ctx, &pass->arena);
}

static kt_status gate_and_up(struct kt_pass *pass, const struct kt_mlp *mlp, const float *n,
                             const struct kt_products *products)
{
    int64_t inner = mlp->intermediate_size, hidden = mlp->gate->weight.cols;
    KT_TRY(kt_linear_forward(pass, mlp->gate, pass->tokens, n, hidden, 0, products->gate, inner));
    return kt_linear_forward(pass, mlp->up, pass->tokens, n, hidden, 0, products->up, inner);
}

kt_status kt_mlp_forward(struct kt_pass *pass, const struct kt_mlp *mlp, const float *n,
                         const struct kt_products *kept, float *y)
{
    int64_t inner = mlp->intermediate_size, hidden = mlp->gate->weight.cols;
    uint64_t mark = pass->arena.used;
    struct kt_products products;
    KT_TRY(take_products(pass, mlp, kept, &products));
    float *h = kept->gate ? kt_arena_floats(&pass->arena, pass->tokens, inner) : products.gate;
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(gate_and_up(pass, mlp, n, &products));
    KT_TRY(pass->device->ops->glu_forward(pass->device, pass->model->config.activation,
                                          pass->tokens, inner, products.gate, products.up, h));
    KT_TRY(kt_linear_forward(pass, mlp->down, pass->tokens, h, inner, 1, y, hidden));
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_mlp_backward(struct kt_pass *pass, const struct kt_mlp *mlp, const float *n,
                          const struct kt_products *kept, const float *dy, float *dn)
{
    const struct kt_device_ops *ops = pass->device->ops;
    enum kt_activation act = pass->model->config.activation;
    int64_t inner = mlp->intermediate_size, hidden = mlp->gate->weight.cols;
    int64_t tokens = pass->tokens;
    uint64_t mark = pass->arena.used;
    struct kt_products products;
    KT_TRY(take_products(pass, mlp, kept, &products));
    float *h = kt_arena_floats(&pass->arena, tokens, inner);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    if (!kept->gate)
        KT_TRY(gate_and_up(pass, mlp, n, &products));
    float *gate = products.gate, *up = products.up;
    if (kt_pass_lora(pass, mlp->down))
        KT_TRY(ops->glu_forward(pass->device, act, tokens, inner, gate, up, h));
    KT_TRY(kt_linear_backward(pass, mlp->down, tokens, h, inner, dy, hidden, 0, h, inner));
    KT_TRY(ops->glu_backward(pass->device, act, tokens, inner, gate, up, h, gate, up));
    KT_TRY(kt_linear_backward(pass, mlp->gate, tokens, n, hidden, gate, inner, 0, dn, hidden));
    KT_TRY(kt_linear_backward(pass, mlp->up, tokens, n, hidden, up, inner, 1, dn, hidden));
    pass->arena.used = mark;
    return KT_OK;
}
