/* SPDX-License-Identifier: Apache-2.0 */
/* Norms, gated units, the loss and routers of a device against their formulas in double precision,
 * and every backward against central differences of that formula. */
#include "device_fixture.h"
#include "main.h"

struct rows_case {
    int64_t tokens, dim;
    double *x, *up, *weight, *dy; /* the loss is <dy, y> */
    const struct kt_router *router;
    const int32_t *ids;
};

static double rmsnorm_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *x = c->x + t * c->dim;
        double squares = 0;
        for (int64_t i = 0; i < c->dim; i++)
            squares += x[i] * x[i];
        for (int64_t i = 0; i < c->dim; i++)
            loss +=
                c->dy[t * c->dim + i] * x[i] / sqrt(squares / (double)c->dim + 1e-6) * c->weight[i];
    }
    return loss;
}

START_TEST(rmsnorm_and_its_gradient)
{
    struct device_test s = device_setting(_i);
    for (int64_t dim = 1; dim < 70; dim += 17) {
        int64_t tokens = 19, n = tokens * dim;
        float *x = test_random(1, n), *dy = test_random(2, n), *weight = test_random(3, dim);
        float *y = malloc((size_t)n * 4), *dx = test_random(4, n);
        struct rows_case c = {.tokens = tokens,
                              .dim = dim,
                              .x = test_widen(n, x),
                              .weight = test_widen(dim, weight),
                              .dy = test_widen(n, dy)};
        double *want = malloc((size_t)n * 8), loss = 0;
        struct kt_norm_args a = {.tokens = tokens,
                                 .dim = dim,
                                 .eps = 1e-6f,
                                 .weight = device_floats(&s, dim, weight),
                                 .x = kt_view_f32(device_floats(&s, n, x), dim),
                                 .y = kt_view_f32(device_floats(&s, n, NULL), dim)};
        device_run(&s, KT_OP_NORM_FORWARD, &a);
        device_get(&s, n, a.y.data, y);
        a.dy = kt_view_f32(device_floats(&s, n, dy), dim);
        a.y = kt_view_f32(device_floats(&s, n, dx), dim);
        for (int64_t i = 0; i < n; i++)
            loss += (double)y[i] * dy[i];
        ck_assert_double_lt(fabs(loss - rmsnorm_loss(&c)), 1e-5);
        test_differentiate(rmsnorm_loss, &c, n, c.x, want);
        for (int accumulate = 1; accumulate >= 0; accumulate--) {
            double *sum = test_widen(n, dx);
            for (int64_t i = 0; i < n; i++)
                sum[i] = (accumulate ? sum[i] : 0) + want[i];
            a.accumulate = accumulate;
            device_run(&s, KT_OP_NORM_BACKWARD, &a);
            device_get(&s, n, a.y.data, dx);
            if (dim > 1) /* of one feature the gradient is all but 0 */
                ck_assert_double_lt(test_error(n, dx, sum), 1e-5);
            free(sum);
        }
        device_free_blocks(&s);
        free(x), free(dy), free(weight), free(y), free(dx), free(want);
        free(c.x), free(c.weight), free(c.dy);
    }
    device_close(&s);
}
END_TEST

static double glu_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t i = 0; i < c->tokens * c->dim; i++)
        loss += c->dy[i] * c->x[i] / (1 + exp(-c->x[i])) * c->up[i];
    return loss;
}

START_TEST(glu_and_its_gradient)
{
    struct device_test s = device_setting(_i);
    int64_t tokens = 3, dim = 111, n = tokens * dim;
    float *gate = test_random(1, n), *up = test_random(2, n), *dh = test_random(3, n);
    float *h = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++)
        gate[i] *= 12;
    struct rows_case c = {.tokens = tokens,
                          .dim = dim,
                          .x = test_widen(n, gate),
                          .up = test_widen(n, up),
                          .dy = test_widen(n, dh)};
    double *want_gate = malloc((size_t)n * 8), *want_up = malloc((size_t)n * 8), loss = 0;
    test_differentiate(glu_loss, &c, n, c.x, want_gate);
    test_differentiate(glu_loss, &c, n, c.up, want_up);
    struct kt_glu_args a = {.activation = KT_ACTIVATION_SILU,
                            .tokens = tokens,
                            .dim = dim,
                            .gate = kt_view_f32(device_floats(&s, n, gate), dim),
                            .up = kt_view_f32(device_floats(&s, n, up), dim),
                            .h = kt_view_f32(device_floats(&s, n, NULL), dim),
                            .dh = kt_view_f32(device_floats(&s, n, dh), dim)};
    a.dgate = a.gate, a.dup = a.up;
    device_run(&s, KT_OP_GLU_FORWARD, &a);
    device_get(&s, n, a.h.data, h);
    for (int64_t i = 0; i < n; i++)
        loss += (double)h[i] * dh[i];
    ck_assert_double_lt(fabs(loss / glu_loss(&c) - 1), 1e-5);
    device_run(&s, KT_OP_GLU_BACKWARD, &a);
    ck_assert_double_lt(test_error(n, device_get(&s, n, a.dgate.data, gate), want_gate), 1e-5);
    ck_assert_double_lt(test_error(n, device_get(&s, n, a.dup.data, up), want_up), 1e-5);
    free(gate), free(up), free(dh), free(h), free(want_gate), free(want_up);
    free(c.x), free(c.up), free(c.dy);
    device_close(&s);
}
END_TEST

static double cross_entropy_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        double sum = 0;
        for (int64_t i = 0; i < c->dim; i++)
            sum += exp(c->x[t * c->dim + i]);
        if (c->ids[t] >= 0)
            loss += c->dy[t] * (c->x[t * c->dim + c->ids[t]] - log(sum));
    }
    return loss;
}

START_TEST(cross_entropy_and_its_gradient)
{
    struct device_test s = device_setting(_i);
    int64_t tokens = 4, vocab = 133, n = tokens * vocab;
    int32_t targets[] = {0, 132, -100, 50};
    float *logits = test_random(1, n), *dlogprobs = test_random(2, tokens), logprobs[4], again[4];
    for (int64_t i = 0; i < n; i++)
        logits[i] *= 20;
    struct rows_case c = {.tokens = tokens,
                          .dim = vocab,
                          .x = test_widen(n, logits),
                          .dy = test_widen(tokens, dlogprobs),
                          .ids = targets};
    double *want = malloc((size_t)n * 8), loss = 0;
    test_differentiate(cross_entropy_loss, &c, n, c.x, want);
    struct kt_cross_entropy_args a = {.tokens = tokens,
                                      .vocab = vocab,
                                      .logits = kt_view_f32(device_floats(&s, n, logits), vocab),
                                      .targets = device_ints(&s, tokens, targets),
                                      .logprobs = device_floats(&s, tokens, NULL)};
    device_run(&s, KT_OP_CROSS_ENTROPY, &a);
    device_get(&s, tokens, a.logprobs, logprobs);
    a.dlogprobs = device_floats(&s, tokens, dlogprobs);
    device_run(&s, KT_OP_CROSS_ENTROPY, &a);
    device_get(&s, tokens, a.logprobs, again);
    device_get(&s, n, a.logits.data, logits);
    for (int64_t t = 0; t < tokens; t++) {
        ck_assert_float_eq_tol(logprobs[t], again[t], 1e-5f);
        loss += (double)logprobs[t] * dlogprobs[t];
    }
    ck_assert(logprobs[2] == 0);
    ck_assert_double_lt(fabs(loss / cross_entropy_loss(&c) - 1), 1e-6);
    ck_assert_double_lt(test_error(n, logits, want), 1e-5);
    free(logits), free(dlogprobs), free(want), free(c.x), free(c.dy);
    device_close(&s);
}
END_TEST

static const struct kt_router routers[] = {
    {KT_SCORING_SOFTMAX, KT_GROUP_NONE, 16, 4, 1, 1, 0, 1.0f, NULL},
    {KT_SCORING_SOFTMAX, KT_GROUP_MAX, 16, 3, 4, 2, 0, 16.0f, NULL},
    {KT_SCORING_SOFTMAX, KT_GROUP_NONE, 16, 2, 1, 1, 1, 1.0f, NULL},
    {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 16, 4, 4, 2, 1, 2.5f, NULL},
};

static double router_loss(void *arg)
{
    const struct rows_case *c = arg;
    const struct kt_router *r = c->router;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *x = c->x + t * c->dim;
        double total = 0, chosen = 0;
        for (int32_t e = 0; e < r->num_experts; e++)
            total += exp(x[e]);
        for (int pass = 0; pass < 2; pass++) {
            for (int32_t j = 0; j < r->topk; j++) {
                double s = x[c->ids[t * r->topk + j]];
                s = r->scoring == KT_SCORING_SIGMOID ? 1 / (1 + exp(-s)) : exp(s) / total;
                if (pass == 0)
                    chosen += s;
                else
                    loss += c->dy[t * r->topk + j] * s / (r->norm_topk_prob ? chosen : 1) *
                            (double)r->routed_scaling_factor;
            }
        }
    }
    return loss;
}

START_TEST(router_and_its_gradient)
{
    for (size_t which = 0; which < sizeof routers / sizeof *routers; which++) {
        struct device_test s = device_open(device_name(_i), 2, 0);
        struct kt_router r = routers[which];
        int64_t tokens = 21, n = tokens * r.num_experts, k = tokens * r.topk;
        float *bias = test_random(9, r.num_experts), *logits = test_random(1, n);
        float *weights = malloc((size_t)k * 4), *dw = test_random(2, k);
        float *dlogits = malloc((size_t)n * 4);
        int32_t *ids = malloc((size_t)k * 4);
        if (r.scoring == KT_SCORING_SIGMOID)
            r.correction_bias = device_floats(&s, r.num_experts, bias);
        struct kt_router_args a = {.router = r,
                                   .tokens = tokens,
                                   .logits = device_floats(&s, n, logits),
                                   .ids = device_ints(&s, k, NULL),
                                   .weights = device_floats(&s, k, NULL),
                                   .dweights = device_floats(&s, k, dw),
                                   .dlogits = device_random(&s, 3, n)};
        device_run(&s, KT_OP_ROUTER_FORWARD, &a);
        device_get(&s, k, a.weights, weights);
        device_get_bytes(&s, (uint64_t)k * sizeof *ids, a.ids, ids);
        struct rows_case c = {.tokens = tokens,
                              .dim = r.num_experts,
                              .x = test_widen(n, logits),
                              .dy = test_widen(k, dw),
                              .ids = ids,
                              .router = &r};
        double *want = malloc((size_t)n * 8), loss = 0;
        for (int64_t i = 0; i < k; i++)
            loss += (double)weights[i] * dw[i];
        ck_assert_double_lt(fabs(loss - router_loss(&c)), 1e-4);
        test_differentiate(router_loss, &c, n, c.x, want);
        device_run(&s, KT_OP_ROUTER_BACKWARD, &a);
        ck_assert_double_lt(test_error(n, device_get(&s, n, a.dlogits, dlogits), want), 1e-5);
        free(bias), free(logits), free(weights), free(dw), free(dlogits), free(ids);
        free(want), free(c.x), free(c.dy);
        device_close(&s);
    }
}
END_TEST

START_TEST(router_chooses_by_bias_and_group_but_weighs_by_score)
{
    struct device_test s = device_open(device_name(_i), 1, 0);
    /* groups {0,1}, {2,3}, {4,5}; sums of two: .9, 1.3, 1.1; the first group is left out */
    float logits[] = {2.1972246f, -20, 0.40546511f, 0.84729786f, -0.40546511f, 0.84729786f};
    float bias[] = {0, 0, 0, 0, 0, 0.05f}, weights[2];
    int32_t ids[2];
    struct kt_router_args a = {
        {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 6, 2, 3, 2, 1, 2.0f, device_floats(&s, 6, bias)},
        .tokens = 1,
        .logits = device_floats(&s, 6, logits),
        .ids = device_ints(&s, 2, NULL),
        .weights = device_floats(&s, 2, NULL)};
    device_run(&s, KT_OP_ROUTER_FORWARD, &a);
    device_get_bytes(&s, sizeof ids, a.ids, ids);
    device_get(&s, 2, a.weights, weights);
    ck_assert_int_eq(ids[0], 5); /* 0.7 + bias */
    ck_assert_int_eq(ids[1], 3);
    ck_assert_float_eq_tol(weights[0], 1.0f, 1e-6f);
    ck_assert_float_eq_tol(weights[1], 1.0f, 1e-6f);
    logits[0] = NAN;
    a.logits = device_floats(&s, 6, logits);
    device_run(&s, KT_OP_ROUTER_FORWARD, &a);
    device_get_bytes(&s, sizeof ids, a.ids, ids);
    for (int j = 0; j < 2; j++)
        ck_assert(ids[j] >= 0 && ids[j] < 6);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_rows", .timeout = 120),
        LOOP(rmsnorm_and_its_gradient, num_device_runs()),
        LOOP(glu_and_its_gradient, num_device_runs()),
        LOOP(cross_entropy_and_its_gradient, num_device_runs()),
        LOOP(router_and_its_gradient, num_devices()),
        LOOP(router_chooses_by_bias_and_group_but_weighs_by_score, num_devices()),
    };
    return RUN_TESTS("device_rows", tests);
}
