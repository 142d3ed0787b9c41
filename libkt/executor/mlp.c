/* SPDX-License-Identifier: Apache-2.0 */
#include "core/memory.h"
#include "executor/pass.h"

/** Tokens that go through an MLP together, and their products. */
struct part {
    int64_t tokens;
    struct kt_view n;
    struct kt_products products; /**< what the caller keeps, or others on the arena */
};

typedef void (*part_fn)(struct kt_pass *pass, const struct kt_mlp *mlp, const struct part *part,
                        bool kept, struct kt_view dy, struct kt_view y);

static void gate_and_up(struct kt_pass *pass, const struct kt_mlp *mlp, const struct part *p)
{
    struct kt_linear_call calls[] = {{.linear = mlp->gate, .y = p->products.gate},
                                     {.linear = mlp->up, .y = p->products.up}};
    for (int i = 0; i < 2; i++) {
        calls[i].tokens = p->tokens;
        calls[i].x = p->n;
        calls[i].row_tokens = pass->row_tokens;
    }
    kt_linears_forward(pass, 2, calls);
}

static struct kt_glu_args glu(const struct kt_pass *pass, const struct kt_mlp *mlp,
                              const struct part *p)
{
    return (struct kt_glu_args){.activation = pass->model->config.activation,
                                .tokens = p->tokens,
                                .dim = mlp->intermediate_size,
                                .gate = p->products.gate,
                                .up = p->products.up};
}

static void forward_part(struct kt_pass *pass, const struct kt_mlp *mlp, const struct part *p,
                         bool kept, struct kt_view dy, struct kt_view y)
{
    struct kt_glu_args args = glu(pass, mlp, p);
    (void)dy;
    args.h = kept ? kt_take_activations(pass, p->tokens, mlp->intermediate_size) : p->products.gate;
    gate_and_up(pass, mlp, p);
    kt_run_glu_forward(&pass->stage->run, &args);
    kt_linear_forward(pass, mlp->down, p->tokens, args.h, true, y);
}

static void backward_part(struct kt_pass *pass, const struct kt_mlp *mlp, const struct part *p,
                          bool kept, struct kt_view dy, struct kt_view dn)
{
    struct kt_view h = kt_take_activations(pass, p->tokens, mlp->intermediate_size);
    struct kt_glu_args args = glu(pass, mlp, p);
    args.h = args.dh = h;
    args.dgate = p->products.gate;
    args.dup = p->products.up;
    if (!kept)
        gate_and_up(pass, mlp, p);
    if (kt_pass_lora(pass, mlp->down))
        kt_run_glu_forward(&pass->stage->run, &args);
    kt_linear_backward(pass, mlp->down, p->tokens, h, dy, false, h);
    kt_run_glu_backward(&pass->stage->run, &args);
    kt_linear_backward(pass, mlp->gate, p->tokens, p->n, args.dgate, false, dn);
    kt_linear_backward(pass, mlp->up, p->tokens, p->n, args.dup, true, dn);
}

/** All tokens together, or the pass's pieces one after another; none are kept of pieces. */
static void run(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                const struct kt_products *products, struct kt_view dy, struct kt_view y, part_fn fn)
{
    int64_t most = (pass->tokens + pass->pieces - 1) / pass->pieces;
    uint64_t mark = kt_pass_mark(pass);
    for (int64_t begin = 0; begin < pass->tokens; begin += most) {
        struct part p = {.tokens = kt_min_i64(most, pass->tokens - begin),
                         .n = kt_view_at(n, begin, 0),
                         .products = *products};
        if (!products->gate.data) {
            p.products.gate = kt_take_activations(pass, p.tokens, mlp->intermediate_size);
            p.products.up = kt_take_activations(pass, p.tokens, mlp->intermediate_size);
        }
        if (p.tokens < pass->tokens)
            pass->row_tokens = pass->stage->feed.tokens + begin;
        fn(pass, mlp, &p, products->gate.data, kt_view_at(dy, begin, 0), kt_view_at(y, begin, 0));
        kt_pass_release(pass, mark);
    }
    pass->row_tokens = NULL;
}

void kt_mlp_forward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                    const struct kt_products *kept, struct kt_view y)
{
    run(pass, mlp, n, kept, y, y, forward_part);
}

void kt_mlp_backward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                     const struct kt_products *kept, struct kt_view dy, struct kt_view dn)
{
    run(pass, mlp, n, kept, dy, dn, backward_part);
}
