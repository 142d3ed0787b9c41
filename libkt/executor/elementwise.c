/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pass.h"

void kt_add(struct kt_pass *pass, int64_t tokens, int64_t dim, struct kt_view x, bool accumulate,
            struct kt_view y)
{
    struct kt_rows_args args = {
        .tokens = tokens, .dim = dim, .alpha = 1, .x = x, .y = y, .accumulate = accumulate};
    kt_run_add(&pass->stage->run, &args);
}

void kt_zero(struct kt_pass *pass, int64_t tokens, int64_t dim, struct kt_view x)
{
    struct kt_rows_args args = {.tokens = tokens, .dim = dim, .y = x};
    kt_run_zero(&pass->stage->run, &args);
}

void kt_norm(struct kt_pass *pass, int64_t tokens, int64_t dim, float eps, const float *weight,
             struct kt_view x, struct kt_view y)
{
    struct kt_norm_args args = {.tokens = tokens,
                                .dim = dim,
                                .eps = eps,
                                .weight = kt_pass_vector(pass, weight),
                                .x = x,
                                .y = y};
    kt_run_norm_forward(&pass->stage->run, &args);
}

void kt_norm_backward(struct kt_pass *pass, int64_t tokens, int64_t dim, float eps,
                      const float *weight, struct kt_view x, struct kt_view dy, bool accumulate,
                      struct kt_view dx)
{
    struct kt_norm_args args = {.tokens = tokens,
                                .dim = dim,
                                .eps = eps,
                                .weight = kt_pass_vector(pass, weight),
                                .x = x,
                                .dy = dy,
                                .y = dx,
                                .accumulate = accumulate};
    kt_run_norm_backward(&pass->stage->run, &args);
}
