/* SPDX-License-Identifier: Apache-2.0 */
/* The expert backends: reference against its formula and central differences in double, the others
 * against reference. */
#include "backend/experts.h"
#include "compare.h"
#include "core/dtype.h"

enum { EXPERTS = 5, HIDDEN = 6, INTER = 7, TOKENS = 9, TOPK = 2, RANK = 3 };

struct layer_case {
    double *w[3][EXPERTS], *a[3][EXPERTS], *b[3][EXPERTS];
    double *x, *weights, *dy, *masks; /* masks [3][TOKENS][max(HIDDEN, INTER)] */
    const int32_t *ids;
    int32_t hidden, inter, tokens, topk, rank;
};

static int32_t out_of(const struct layer_case *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->hidden : c->inter;
}

static int32_t in_of(const struct layer_case *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->inter : c->hidden;
}

static void apply(const struct layer_case *c, int which, int32_t e, int64_t t, const double *in,
                  double *out)
{
    int32_t rows = out_of(c, which), cols = in_of(c, which);
    const double *mask = c->masks + (which * c->tokens + t) * 16;
    for (int32_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int32_t i = 0; i < cols; i++)
            out[r] += c->w[which][e][r * cols + i] * in[i];
        for (int32_t q = 0; q < c->rank; q++)
            for (int32_t i = 0; i < cols; i++)
                out[r] += 1.5 * c->b[which][e][r * c->rank + q] * c->a[which][e][q * cols + i] *
                          mask[i] * in[i];
    }
}

static double experts_loss(void *arg)
{
    const struct layer_case *c = arg;
    double loss = 0, gate[16], up[16], out[16];
    for (int64_t t = 0; t < c->tokens; t++)
        for (int32_t j = 0; j < c->topk; j++) {
            int32_t e = c->ids[t * c->topk + j];
            apply(c, KT_EXPERT_GATE, e, t, c->x + t * c->hidden, gate);
            apply(c, KT_EXPERT_UP, e, t, c->x + t * c->hidden, up);
            for (int32_t i = 0; i < c->inter; i++)
                gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            apply(c, KT_EXPERT_DOWN, e, t, gate, out);
            for (int32_t i = 0; i < c->hidden; i++)
                loss += c->weights[t * c->topk + j] * out[i] * c->dy[t * c->hidden + i];
        }
    return loss;
}

START_TEST(reference_and_its_gradients)
{
    static const int32_t ids[TOKENS * TOPK] = {0, 1, 1, 3, 3, 0, 0, 3, 1,
                                               1, 3, 1, 0, 3, 1, 0, 3, 0};
    float dropout = _i ? 0.3f : 0.0f;
    kt_context *ctx = test_context(2, 0);
    struct kt_experts *experts;
    ck_assert_int_eq(kt_experts_open(ctx, "reference", &experts), KT_OK);
    struct kt_weight weights[3][EXPERTS];
    struct kt_lora_pair lora[3][EXPERTS];
    uint8_t has_grad[3][EXPERTS] = {{0}};
    struct layer_case c = {
        .ids = ids, .hidden = HIDDEN, .inter = INTER, .tokens = TOKENS, .topk = TOPK, .rank = RANK};
    struct kt_expert_layer layer = {
        .num_experts = EXPERTS, .hidden_size = HIDDEN, .intermediate_size = INTER};
    float ones[16], *masks = malloc(3 * TOKENS * 16 * sizeof *masks);
    for (int i = 0; i < 16; i++)
        ones[i] = 1;
    for (int which = 0; which < 3; which++) {
        int32_t rows = out_of(&c, which), cols = in_of(&c, which);
        layer.weights[which] = weights[which];
        layer.lora[which] = lora[which];
        for (int64_t t = 0; t < TOKENS; t++)
            kt_dropout_row(dropout, (uint64_t)which + 40, t, 16, ones, 0,
                           masks + (which * TOKENS + t) * 16);
        for (int e = 0; e < EXPERTS; e++) {
            uint64_t seed = (uint64_t)(100 * which + 10 * e);
            float *w = test_random(seed, rows * cols), *a = test_random(seed + 1, RANK * cols);
            float *b = test_random(seed + 2, rows * RANK);
            weights[which][e] = (struct kt_weight){w, KT_DTYPE_F32, rows, cols};
            lora[which][e] = (struct kt_lora_pair){RANK,
                                                   1.5f,
                                                   dropout,
                                                   (uint64_t)which + 40,
                                                   a,
                                                   b,
                                                   calloc(RANK * cols, 4),
                                                   calloc(rows * RANK, 4),
                                                   &has_grad[which][e]};
            c.w[which][e] = test_widen(rows * cols, w);
            c.a[which][e] = test_widen(RANK * cols, a);
            c.b[which][e] = test_widen(rows * RANK, b);
        }
    }
    float *x = test_random(1, TOKENS * HIDDEN), *tw = test_random(2, TOKENS * TOPK);
    float *dy = test_random(3, TOKENS * HIDDEN), *y = calloc(TOKENS * HIDDEN, 4);
    float *dx = calloc(TOKENS * HIDDEN, 4), dtw[TOKENS * TOPK];
    c.x = test_widen(TOKENS * HIDDEN, x);
    c.weights = test_widen(TOKENS * TOPK, tw);
    c.dy = test_widen(TOKENS * HIDDEN, dy);
    c.masks = test_widen(3 * TOKENS * 16, masks);
    struct kt_expert_batch batch = {KT_COMPUTE_F32, 1, TOKENS, TOPK, ids, tw, x};
    ck_assert_int_eq(experts->ops->forward(experts, &layer, &batch, y), KT_OK);
    double loss = 0, want[64];
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        loss += (double)y[i] * dy[i];
    ck_assert_double_lt(fabs(loss / experts_loss(&c) - 1), 1e-5);
    ck_assert_int_eq(experts->ops->backward(experts, &layer, &batch, dy, dx, dtw), KT_OK);
    test_differentiate(experts_loss, &c, TOKENS * HIDDEN, c.x, want);
    ck_assert_double_lt(test_error(TOKENS * HIDDEN, dx, want), 1e-5);
    test_differentiate(experts_loss, &c, TOKENS * TOPK, c.weights, want);
    ck_assert_double_lt(test_error(TOKENS * TOPK, dtw, want), 1e-5);
    for (int which = 0; which < 3; which++) {
        int32_t rows = out_of(&c, which), cols = in_of(&c, which);
        for (int e = 0; e < EXPERTS; e++) {
            struct kt_lora_pair *l = &lora[which][e];
            ck_assert_int_eq(has_grad[which][e], e == 0 || e == 1 || e == 3);
            test_differentiate(experts_loss, &c, RANK * cols, c.a[which][e], want);
            ck_assert_double_lt(test_error(RANK * cols, l->da, want), 1e-5);
            test_differentiate(experts_loss, &c, rows * RANK, c.b[which][e], want);
            ck_assert_double_lt(test_error(rows * RANK, l->db, want), 1e-5);
        }
    }
    for (int i = 0; i < 3 * EXPERTS; i++) {
        int which = i / EXPERTS, e = i % EXPERTS;
        struct kt_lora_pair *l = &lora[which][e];
        free((void *)weights[which][e].data), free((void *)l->a), free((void *)l->b);
        free(l->da), free(l->db), free(c.w[which][e]), free(c.a[which][e]), free(c.b[which][e]);
    }
    free(x), free(tw), free(dy), free(y), free(dx), free(masks);
    free(c.x), free(c.weights), free(c.dy), free(c.masks);
    kt_experts_close(experts);
    ck_assert_uint_eq(kt_context_memory_used(ctx), 0);
    kt_context_free(ctx);
}
END_TEST

START_TEST(unknown_backends_are_errors)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_experts *experts;
    ck_assert_int_eq(kt_experts_open(ctx, "quantum", &experts), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "quantum"));
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &experts), KT_OK);
    kt_experts_close(experts);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("experts");
    TCase *tc = tcase_create("experts");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, reference_and_its_gradients, 0, 2);
    tcase_add_test(tc, unknown_backends_are_errors);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
