/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pass.h"

/** The products that the caller keeps, or others on the arena. */
static struct kt_products take_products(struct kt_pass *pass, const struct kt_mlp *mlp,
                                        const struct kt_products *kept)
{
    struct kt_products products = *kept;
    if (!kept->gate.data) {
        products.gate = kt_take_activations(pass, pass->tokens, mlp->intermediate_size);
        products.up = kt_take_activations(pass, pass->tokens, mlp->intermediate_size);
    }
    return products;
}

static void gate_and_up(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                        const struct kt_products *products)
{
    const struct kt_linear_call calls[] = {
        {.linear = mlp->gate, .tokens = pass->tokens, .x = n, .y = products->gate},
        {.linear = mlp->up, .tokens = pass->tokens, .x = n, .y = products->up}};
    kt_linears_forward(pass, 2, calls);
}

static struct kt_glu_args glu(const struct kt_pass *pass, const struct kt_mlp *mlp,
                              const struct kt_products *products)
{
    return (struct kt_glu_args){.activation = pass->model->config.activation,
                                .tokens = pass->tokens,
                                .dim = mlp->intermediate_size,
                                .gate = products->gate,
                                .up = products->up};
}

void kt_mlp_forward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                    const struct kt_products *kept, struct kt_view y)
{
    uint64_t mark = kt_pass_mark(pass);
    struct kt_products products = take_products(pass, mlp, kept);
    struct kt_glu_args args = glu(pass, mlp, &products);
    args.h = kept->gate.data ? kt_take_activations(pass, pass->tokens, mlp->intermediate_size)
                             : products.gate;
    gate_and_up(pass, mlp, n, &products);
    kt_run_glu_forward(&pass->stage->run, &args);
    kt_linear_forward(pass, mlp->down, pass->tokens, args.h, true, y);
    kt_pass_release(pass, mark);
}

void kt_mlp_backward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                     const struct kt_products *kept, struct kt_view dy, struct kt_view dn)
{
    int64_t tokens = pass->tokens;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_products products = take_products(pass, mlp, kept);
    struct kt_view h = kt_take_activations(pass, tokens, mlp->intermediate_size);
    struct kt_glu_args args = glu(pass, mlp, &products);
    args.h = args.dh = h;
    args.dgate = products.gate;
    args.dup = products.up;
    if (!kept->gate.data)
        gate_and_up(pass, mlp, n, &products);
    if (kt_pass_lora(pass, mlp->down))
        kt_run_glu_forward(&pass->stage->run, &args);
    kt_linear_backward(pass, mlp->down, tokens, h, dy, false, h);
    kt_run_glu_backward(&pass->stage->run, &args);
    kt_linear_backward(pass, mlp->gate, tokens, n, products.gate, false, dn);
    kt_linear_backward(pass, mlp->up, tokens, n, products.up, true, dn);
    kt_pass_release(pass, mark);
}
