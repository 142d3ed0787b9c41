/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pass.h"

const struct kt_lora_pair *kt_pass_lora(const struct kt_pass *pass, const struct kt_linear *linear)
{
    return kt_adapter_has(pass->lora, linear) ? &pass->lora->slots[linear->index] : NULL;
}

void kt_pass_mark_grad(const struct kt_pass *pass, const struct kt_lora_pair *pair)
{
    if (!kt_pass_measures(pass))
        *pair->has_grad = 1;
}

static kt_compute compute_of(const struct kt_pass *pass, const struct kt_linear *linear)
{
    return linear->role == KT_ROLE_ROUTER ? KT_COMPUTE_F32 : pass->compute;
}

static struct kt_view matrix(const struct kt_pass *pass, const float *data, int64_t ld)
{
    return kt_view_f32(kt_site_lora(pass->stage->site, pass->lora, data), ld);
}

static struct kt_view gradient(const struct kt_pass *pass, float *grad, int64_t ld)
{
    return kt_view_f32(kt_site_grad(pass->stage->site, pass->lora, grad), ld);
}

static void drop(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t tokens, int64_t dim,
                 struct kt_view x, bool accumulate, struct kt_view y)
{
    struct kt_dropout_args args = {.tokens = tokens,
                                   .dim = dim,
                                   .p = pair->dropout,
                                   .key = pair->dropout_key +
                                          (uint64_t)pass->dropout_row * 0x9e3779b97f4a7c15u,
                                   .index = pass->row_tokens,
                                   .x = x,
                                   .y = y,
                                   .accumulate = accumulate};
    kt_run_dropout(&pass->stage->run, &args);
}

/** The input LoRA sees: x itself, or a masked copy on the arena. */
static struct kt_view masked_input(struct kt_pass *pass, const struct kt_lora_pair *pair,
                                   int64_t tokens, int64_t dim, struct kt_view x)
{
    if (!pass->training || pair->dropout <= 0)
        return x;
    struct kt_view masked = kt_take_as(pass, x.dtype, tokens, dim);
    drop(pass, pair, tokens, dim, x, false, masked);
    return masked;
}

/** u [tokens, rank] = x A^T */
static struct kt_gemm_args to_rank(const struct kt_pass *pass, const struct kt_lora_pair *pair,
                                   int64_t tokens, int64_t dim, struct kt_view x, struct kt_view u)
{
    return (struct kt_gemm_args){.trans_b = true,
                                 .m = tokens,
                                 .n = pair->rank,
                                 .k = dim,
                                 .alpha = 1,
                                 .a = x,
                                 .b = matrix(pass, pair->a, dim),
                                 .c = u};
}

/** y += scale * u B^T of `count` rows of B from `begin` on */
static struct kt_gemm_args from_rank(const struct kt_pass *pass, const struct kt_lora_pair *pair,
                                     int64_t tokens, int64_t begin, int64_t count, struct kt_view u,
                                     struct kt_view y)
{
    return (struct kt_gemm_args){.trans_b = true,
                                 .m = tokens,
                                 .n = count,
                                 .k = pair->rank,
                                 .alpha = pair->scale,
                                 .a = u,
                                 .b = matrix(pass, pair->b + begin * pair->rank, pair->rank),
                                 .c = y,
                                 .accumulate = true};
}

static void project_down(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t tokens,
                         int64_t dim, struct kt_view x, struct kt_view u)
{
    struct kt_gemm_args g = to_rank(pass, pair, tokens, dim, x, u);
    kt_run_gemm(&pass->stage->run, &g);
}

/** y += the rows of LoRA that begin at `begin` and belong to w. */
static void lora_forward(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t begin,
                         const struct kt_weight *w, int64_t tokens, struct kt_view x,
                         struct kt_view y)
{
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view u = kt_take(pass, tokens, pair->rank);
    x = masked_input(pass, pair, tokens, w->cols, x);
    project_down(pass, pair, tokens, w->cols, x, u);
    struct kt_gemm_args g = from_rank(pass, pair, tokens, begin, w->rows, u, y);
    kt_run_gemm(&pass->stage->run, &g);
    kt_pass_release(pass, mark);
}

static void add_bias(struct kt_pass *pass, const struct kt_linear *linear, int64_t begin,
                     int64_t count, int64_t tokens, struct kt_view y)
{
    if (linear->bias)
        kt_add(pass, tokens, count, kt_view_f32(kt_pass_vector(pass, linear->bias + begin), 0),
               true, y);
}

void kt_linear_rows_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t begin,
                            int64_t count, int64_t tokens, struct kt_view x, bool accumulate,
                            struct kt_view y)
{
    const struct kt_lora_pair *pair = kt_pass_lora(pass, linear);
    struct kt_weight whole = kt_pass_weight(pass, &linear->weight);
    struct kt_linear_args args = {.weight = kt_weight_rows(&whole, begin, count),
                                  .compute = compute_of(pass, linear),
                                  .tokens = tokens,
                                  .x = x,
                                  .y = y,
                                  .accumulate = accumulate};
    kt_run_linear_forward(&pass->stage->run, &args);
    add_bias(pass, linear, begin, count, tokens, y);
    if (pair)
        lora_forward(pass, pair, begin, &args.weight, tokens, x, y);
}

/** The products of LoRA of several linears, those with A together and those with B. */
static void lora_of_calls(struct kt_pass *pass, int32_t count, const struct kt_linear_call *calls)
{
    const struct kt_runner *run = &pass->stage->run;
    struct kt_gemm_args down[KT_LINEARS_TOGETHER], up[KT_LINEARS_TOGETHER];
    uint64_t mark = kt_pass_mark(pass);
    const int32_t *row_tokens = pass->row_tokens;
    int32_t num = 0;
    for (int32_t i = 0; i < count; i++) {
        const struct kt_linear_call *call = &calls[i];
        const struct kt_lora_pair *pair = kt_pass_lora(pass, call->linear);
        const struct kt_weight *w = &call->linear->weight;
        if (!pair)
            continue;
        struct kt_view u = kt_take(pass, call->tokens, pair->rank);
        pass->row_tokens = call->row_tokens;
        struct kt_view x = masked_input(pass, pair, call->tokens, w->cols, call->x);
        down[num] = to_rank(pass, pair, call->tokens, w->cols, x, u);
        up[num++] = from_rank(pass, pair, call->tokens, 0, w->rows, u, call->y);
    }
    pass->row_tokens = row_tokens;
    if (num > 0) {
        kt_run_all(run, KT_OP_GEMM, num, down);
        kt_run_all(run, KT_OP_GEMM, num, up);
    }
    kt_pass_release(pass, mark);
}

void kt_linears_forward(struct kt_pass *pass, int32_t count, const struct kt_linear_call *calls)
{
    struct kt_linear_args args[KT_LINEARS_TOGETHER];
    for (int32_t i = 0; i < count; i++)
        args[i] = (struct kt_linear_args){.weight = kt_pass_weight(pass, &calls[i].linear->weight),
                                          .compute = compute_of(pass, calls[i].linear),
                                          .tokens = calls[i].tokens,
                                          .x = calls[i].x,
                                          .y = calls[i].y};
    if (count > 0)
        kt_run_all(&pass->stage->run, KT_OP_LINEAR_FORWARD, count, args);
    for (int32_t i = 0; i < count; i++)
        add_bias(pass, calls[i].linear, 0, calls[i].linear->weight.rows, calls[i].tokens,
                 calls[i].y);
    lora_of_calls(pass, count, calls);
}

void kt_linear_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                       struct kt_view x, bool accumulate, struct kt_view y)
{
    kt_linear_rows_forward(pass, linear, 0, linear->weight.rows, tokens, x, accumulate, y);
}

/** du [tokens, rank] = scale * dy B; dB += scale * dy^T u; dA += du^T x. Of B the rows that begin
 * at `begin` and belong to w. */
static void lora_gradients(struct kt_pass *pass, const struct kt_lora_pair *pair, int64_t begin,
                           const struct kt_weight *w, int64_t tokens, struct kt_view x,
                           struct kt_view dy, struct kt_view du)
{
    const struct kt_runner *run = &pass->stage->run;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view u = kt_take(pass, tokens, pair->rank);
    x = masked_input(pass, pair, tokens, w->cols, x);
    project_down(pass, pair, tokens, w->cols, x, u);
    struct kt_gemm_args db = {.trans_a = true,
                              .m = w->rows,
                              .n = pair->rank,
                              .k = tokens,
                              .alpha = pair->scale,
                              .a = dy,
                              .b = u,
                              .c = gradient(pass, pair->db + begin * pair->rank, pair->rank),
                              .accumulate = true};
    kt_run_gemm(run, &db);
    struct kt_gemm_args gradient_of_u = {.m = tokens,
                                         .n = pair->rank,
                                         .k = w->rows,
                                         .alpha = pair->scale,
                                         .a = dy,
                                         .b =
                                             matrix(pass, pair->b + begin * pair->rank, pair->rank),
                                         .c = du};
    kt_run_gemm(run, &gradient_of_u);
    struct kt_gemm_args da = {.trans_a = true,
                              .m = pair->rank,
                              .n = w->cols,
                              .k = tokens,
                              .alpha = 1,
                              .a = du,
                              .b = x,
                              .c = gradient(pass, pair->da, w->cols),
                              .accumulate = true};
    kt_run_gemm(run, &da);
    if (tokens > 0)
        kt_pass_mark_grad(pass, pair);
    kt_pass_release(pass, mark);
}

/** dx += dropout(du A) */
static void lora_input_gradient(struct kt_pass *pass, const struct kt_lora_pair *pair,
                                const struct kt_weight *w, int64_t tokens, struct kt_view du,
                                struct kt_view dx)
{
    uint64_t mark = kt_pass_mark(pass);
    struct kt_gemm_args g = {.m = tokens,
                             .n = w->cols,
                             .k = pair->rank,
                             .alpha = 1,
                             .a = du,
                             .b = matrix(pass, pair->a, w->cols),
                             .c = dx,
                             .accumulate = true};
    bool drops = pass->training && pair->dropout > 0;
    if (drops) {
        g.accumulate = false;
        g.c = kt_take(pass, tokens, w->cols);
    }
    kt_run_gemm(&pass->stage->run, &g);
    if (drops)
        drop(pass, pair, tokens, w->cols, g.c, true, dx);
    kt_pass_release(pass, mark);
}

void kt_linear_rows_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t begin,
                             int64_t count, int64_t tokens, struct kt_view x, struct kt_view dy,
                             bool accumulate, struct kt_view dx)
{
    const struct kt_lora_pair *pair = kt_pass_lora(pass, linear);
    struct kt_weight w = kt_weight_rows(&linear->weight, begin, count);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view du = pair ? kt_take(pass, tokens, pair->rank) : (struct kt_view){0};
    if (pair)
        lora_gradients(pass, pair, begin, &w, tokens, x, dy, du);
    if (dx.data) {
        struct kt_weight whole = kt_pass_weight(pass, &linear->weight);
        struct kt_linear_args args = {.weight = kt_weight_rows(&whole, begin, count),
                                      .compute = compute_of(pass, linear),
                                      .tokens = tokens,
                                      .x = dy,
                                      .y = dx,
                                      .accumulate = accumulate};
        kt_run_linear_backward(&pass->stage->run, &args);
    }
    if (pair && dx.data)
        lora_input_gradient(pass, pair, &w, tokens, du, dx);
    kt_pass_release(pass, mark);
}

void kt_linear_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                        struct kt_view x, struct kt_view dy, bool accumulate, struct kt_view dx)
{
    kt_linear_rows_backward(pass, linear, 0, linear->weight.rows, tokens, x, dy, accumulate, dx);
}

void kt_linears_backward(struct kt_pass *pass, int32_t count, const struct kt_linear_call *calls,
                         bool accumulate)
{
    struct kt_linear_args args[KT_LINEARS_TOGETHER];
    const int32_t *row_tokens = pass->row_tokens;
    int32_t num = 0;
    for (int32_t i = 0; i < count; i++) {
        const struct kt_linear_call *call = &calls[i];
        pass->row_tokens = call->row_tokens;
        if (kt_pass_lora(pass, call->linear))
            kt_linear_backward(pass, call->linear, call->tokens, call->x, call->y, accumulate,
                               call->dx);
        else
            args[num++] =
                (struct kt_linear_args){.weight = kt_pass_weight(pass, &call->linear->weight),
                                        .compute = compute_of(pass, call->linear),
                                        .tokens = call->tokens,
                                        .x = call->y,
                                        .y = call->dx,
                                        .accumulate = accumulate};
    }
    pass->row_tokens = row_tokens;
    if (num > 0)
        kt_run_all(&pass->stage->run, KT_OP_LINEAR_BACKWARD, num, args);
}
