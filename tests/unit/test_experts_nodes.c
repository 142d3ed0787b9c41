/* SPDX-License-Identifier: Apache-2.0 */
/* The experts backend "cpu" on machines with several nodes: each begins with the columns that
 * it owns, in every phase. That bits stay the same is in test_experts.c. */
#include "backends/experts_cpu/experts.h"
#include "compare.h"
#include "expert_call.h"
#include "node_spy.h"
#include "main.h"

enum { FEATURES = 1024 };

/* A layer of one expert, as wide inside as outside, in float32, which is read where it lies. */
static struct kt_weight weights[KT_EXPERT_LINEARS];

enum phase { GATE_UP, DOWN, ACTIVATION, DX };

static struct kt_kernels real;

/* -1 when the factor is not of this weight. */
static int64_t element_in(int which, const struct kt_matrix *b)
{
    uintptr_t first = (uintptr_t)weights[which].data, at = (uintptr_t)b->data;
    uint64_t index = (at - first) / sizeof(float);
    return at >= first && index < (uint64_t)FEATURES * FEATURES ? (int64_t)index : -1;
}

/* Rows of gate make h, rows of down make y. */
static void spied_dot(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                      const struct kt_matrix *b, float alpha, bool accumulate, float *c,
                      int64_t ldc)
{
    if (element_in(KT_EXPERT_GATE, b) >= 0)
        spy_note(GATE_UP, element_in(KT_EXPERT_GATE, b) / FEATURES);
    if (element_in(KT_EXPERT_DOWN, b) >= 0)
        spy_note(DOWN, element_in(KT_EXPERT_DOWN, b) / FEATURES);
    real.f32.dot(rows, cols, k, a, lda, b, alpha, accumulate, c, ldc);
}

/* Columns of down make dh, columns of gate make dx. */
static void spied_outer(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                        const struct kt_matrix *b, bool accumulate, float *c, int64_t ldc)
{
    if (element_in(KT_EXPERT_DOWN, b) >= 0)
        spy_note(ACTIVATION, element_in(KT_EXPERT_DOWN, b) % FEATURES);
    if (element_in(KT_EXPERT_GATE, b) >= 0)
        spy_note(DX, element_in(KT_EXPERT_GATE, b) % FEATURES);
    real.f32.outer(rows, cols, k, a, lda, b, accumulate, c, ldc);
}

START_TEST(a_node_begins_with_the_columns_that_it_owns)
{
    static float x[FEATURES], y[FEATURES], dy[FEATURES], dx[FEATURES], dtw[1];
    struct kt_experts *experts;
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = SPIED;
    kt_context *ctx = machine_context(&options, 2);
    ck_assert_int_eq(kt_experts_open(ctx, "cpu", &experts), KT_OK);
    struct kt_expert_layer layer = {
        .num_experts = 1, .hidden_size = FEATURES, .intermediate_size = FEATURES};
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        weights[which] = (struct kt_weight){.data = test_random((uint64_t)which, 1 << 20),
                                            .dtype = KT_DTYPE_F32,
                                            .rows = FEATURES,
                                            .cols = FEATURES};
        layer.weights[which] = &weights[which];
    }
    static const int32_t ids[1] = {0};
    static const float topk_weights[1] = {1};
    struct kt_routing routing = test_route(1, 1, 1, ids, topk_weights);
    struct kt_expert_call call = {.layer = &layer,
                                  .routing = &routing,
                                  .compute = KT_COMPUTE_F32,
                                  .x = kt_view_f32(x, FEATURES)};
    spy_on(ctx->pool);
    struct kt_kernels *kernels = &((struct kt_experts_cpu *)experts)->kernels;
    real = *kernels;
    kernels->f32.dot = spied_dot;
    kernels->f32.outer = spied_outer;
    test_forward(experts, call, y);
    test_backward(experts, call, dy, dx, dtw);
    for (int phase = GATE_UP; phase <= DX; phase++)
        spy_check_homes(ctx->pool, phase, FEATURES);
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        free((void *)weights[which].data);
    test_unroute(&routing);
    kt_experts_close(experts);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("nodes", .timeout = 60),
        TEST(a_node_begins_with_the_columns_that_it_owns),
    };
    return RUN_TESTS("experts_nodes", tests);
}
