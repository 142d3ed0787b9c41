/* SPDX-License-Identifier: Apache-2.0 */
/* A whole MoE block against a twin in double: forward by its formula, backward by central
 * differences, so also through the router's weights. */
#include "compare.h"
#include "main.h"
#include "backends/registry.h"
#include "executor/executor.h"

enum {
    TOKENS = 5,
    HIDDEN = 6,
    INNER = 4,
    EXPERTS = 6,
    GROUPS = 3,
    TOPK = 2,
    WEIGHTS = HIDDEN * INNER
};

/** Everything twice: as the library takes it, and in double. */
struct block {
    struct kt_router router;
    float bias[EXPERTS];
    float *w[3][EXPERTS + 1]; /**< gate, up, down of each expert, then of the shared one */
    float *gate;              /**< the router's weights [EXPERTS, HIDDEN] */
    double *x, *dy;
};

static struct block new_block(int sigmoid)
{
    struct block b = {.gate = test_random(1, EXPERTS * HIDDEN)};
    b.router = (struct kt_router){.scoring = sigmoid ? KT_SCORING_SIGMOID : KT_SCORING_SOFTMAX,
                                  .group_score = sigmoid ? KT_GROUP_TOP2_SUM : KT_GROUP_MAX,
                                  .num_experts = EXPERTS,
                                  .topk = TOPK,
                                  .n_group = GROUPS,
                                  .topk_group = 2,
                                  .norm_topk_prob = sigmoid,
                                  .routed_scaling_factor = 2.5f};
    test_fill(2, EXPERTS, b.bias);
    for (int k = 0; k < 3; k++)
        for (int e = 0; e <= EXPERTS; e++)
            b.w[k][e] = test_random((uint64_t)(10 + k * 16 + e), WEIGHTS);
    float *x = test_random(3, TOKENS * HIDDEN), *dy = test_random(4, TOKENS * HIDDEN);
    b.x = test_widen(TOKENS * HIDDEN, x);
    b.dy = test_widen(TOKENS * HIDDEN, dy);
    free(x);
    free(dy);
    return b;
}

static void delete_block(struct block *b)
{
    for (int k = 0; k < 3; k++)
        for (int e = 0; e <= EXPERTS; e++)
            free(b->w[k][e]);
    free(b->gate);
    free(b->x);
    free(b->dy);
}

/** y += weight * E_e(x) */
static void expert(const struct block *b, int e, double weight, const double *x, double *y)
{
    double h[INNER];
    for (int i = 0; i < INNER; i++) {
        double gate = 0, up = 0;
        for (int j = 0; j < HIDDEN; j++) {
            gate += b->w[0][e][i * HIDDEN + j] * x[j];
            up += b->w[1][e][i * HIDDEN + j] * x[j];
        }
        h[i] = gate / (1 + exp(-gate)) * up;
    }
    for (int j = 0; j < HIDDEN; j++)
        for (int i = 0; i < INNER; i++)
            y[j] += weight * b->w[2][e][j * INNER + i] * h[i];
}

static void scores_of(const struct block *b, const double *x, double *scores)
{
    double sum = 0;
    for (int e = 0; e < EXPERTS; e++) {
        double logit = 0;
        for (int j = 0; j < HIDDEN; j++)
            logit += b->gate[e * HIDDEN + j] * x[j];
        scores[e] = b->router.scoring == KT_SCORING_SIGMOID ? 1 / (1 + exp(-logit)) : exp(logit);
        sum += scores[e];
    }
    for (int e = 0; e < EXPERTS && b->router.scoring == KT_SCORING_SOFTMAX; e++)
        scores[e] /= sum;
}

/** Groups of two: their sum is the sum of the two best. */
static double group_score(const struct block *b, const double *choice, int group)
{
    double one = choice[2 * group], two = choice[2 * group + 1];
    return b->router.group_score == KT_GROUP_MAX ? fmax(one, two) : one + two;
}

static void choose(const struct block *b, const double *scores, int chosen[TOPK])
{
    double choice[EXPERTS];
    int worst = 0;
    for (int e = 0; e < EXPERTS; e++)
        choice[e] = scores[e] + (b->router.scoring == KT_SCORING_SIGMOID ? b->bias[e] : 0);
    for (int g = 1; g < GROUPS; g++)
        if (group_score(b, choice, g) < group_score(b, choice, worst))
            worst = g;
    choice[2 * worst] = choice[2 * worst + 1] = -1e9;
    for (int k = 0; k < TOPK; k++) {
        int best = 0;
        for (int e = 1; e < EXPERTS; e++)
            if (choice[e] > choice[best])
                best = e;
        chosen[k] = best;
        choice[best] = -1e9;
    }
}

static void forward(const struct block *b, double *y)
{
    for (int t = 0; t < TOKENS; t++) {
        const double *x = b->x + t * HIDDEN;
        double scores[EXPERTS], sum = 0;
        int chosen[TOPK];
        scores_of(b, x, scores);
        choose(b, scores, chosen);
        for (int k = 0; k < TOPK; k++)
            sum += scores[chosen[k]];
        for (int j = 0; j < HIDDEN; j++)
            y[t * HIDDEN + j] = 0;
        for (int k = 0; k < TOPK; k++)
            expert(b, chosen[k],
                   scores[chosen[k]] / (b->router.norm_topk_prob ? sum : 1) *
                       b->router.routed_scaling_factor,
                   x, y + t * HIDDEN);
        expert(b, EXPERTS, 1, x, y + t * HIDDEN);
    }
}

static double loss(void *arg)
{
    const struct block *b = arg;
    double y[TOKENS * HIDDEN], sum = 0;
    forward(b, y);
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        sum += y[i] * b->dy[i];
    return sum;
}

static struct kt_weight weight(const float *data, int64_t rows, int64_t cols)
{
    return (struct kt_weight){.data = data, .dtype = KT_DTYPE_F32, .rows = rows, .cols = cols};
}

/** The block as a layer of a model without anything else. */
struct toy {
    struct kt_model model;
    struct kt_layer layer;
    struct kt_linear shared[3], routed[3][EXPERTS];
    struct kt_weight experts[3][EXPERTS];
};

static void fill_toy(struct toy *toy, struct block *b)
{
    struct kt_model_config *config = &toy->model.config;
    config->num_hidden_layers = 1;
    config->hidden_size = HIDDEN;
    config->moe_intermediate_size = INNER;
    config->n_routed_experts = EXPERTS;
    config->router = b->router;
    toy->model.layers = &toy->layer;
    toy->layer.is_moe = 1;
    toy->layer.router = weight(b->gate, EXPERTS, HIDDEN);
    toy->layer.correction_bias = b->router.scoring == KT_SCORING_SIGMOID ? b->bias : NULL;
    toy->layer.mlp = (struct kt_mlp){&toy->shared[0], &toy->shared[1], &toy->shared[2], INNER};
    for (int k = 0; k < 3; k++) {
        int64_t rows = k == KT_EXPERT_DOWN ? HIDDEN : INNER, cols = HIDDEN + INNER - rows;
        toy->shared[k].weight = weight(b->w[k][EXPERTS], rows, cols);
        for (int e = 0; e < EXPERTS; e++)
            toy->experts[k][e] = toy->routed[k][e].weight = weight(b->w[k][e], rows, cols);
        toy->layer.experts[k] = toy->routed[k];
        toy->layer.expert_weights[k] = toy->experts[k];
    }
}

/** y += the block of x, and dx from dy; scratch and arenas of a measuring pass serve another. */
static void run_toy(struct kt_executor *ex, struct toy *toy, float *x, float *y, float *dy,
                    float *dx)
{
    struct kt_workspace workspace;
    struct kt_pass pass;
    struct kt_view views[] = {kt_view_f32(x, HIDDEN), kt_view_f32(y, HIDDEN),
                              kt_view_f32(dy, HIDDEN), kt_view_f32(dx, HIDDEN)};
    struct kt_products none = {0};
    kt_workspace_init(&workspace, "a toy");
    for (int run = 0; run < 2; run++) {
        kt_pass_init(&pass, ex, KT_PASS_MEASURE);
        pass.tokens = TOKENS;
        if (run)
            kt_workspace_enter(&workspace, ex, &pass, KT_PASS_QUIET, 0);
        kt_pass_begin(&pass, 0, 2);
        ck_assert_int_eq(kt_moe_forward(&pass, &toy->layer, views[0], &none, views[1]), KT_OK);
        ck_assert_int_eq(kt_moe_backward(&pass, &toy->layer, views[0], &none, views[2], views[3]),
                         KT_OK);
        if (!run)
            ck_assert_int_eq(kt_workspace_reserve(&workspace, &pass), KT_OK);
    }
    kt_workspace_free(&workspace, ex);
}

START_TEST(gradients_are_those_of_central_differences)
{
    struct block b = new_block(_i);
    static struct toy toy;
    uint8_t devices[2] = {0, 0};
    kt_context *ctx = test_context(2, 0);
    struct kt_experts *experts;
    enum kt_experts_where where = KT_EXPERTS_HOST;
    struct kt_executor ex = {.ctx = ctx,
                             .model = &toy.model,
                             .layout = {.num_devices = 1, .device = devices},
                             .experts = &experts,
                             .where = &where};
    float x[TOKENS * HIDDEN], dy[TOKENS * HIDDEN], y[TOKENS * HIDDEN] = {0}, dx[TOKENS * HIDDEN];
    double want[TOKENS * HIDDEN];
    fill_toy(&toy, &b);
    for (int i = 0; i < TOKENS * HIDDEN; i++) {
        x[i] = (float)b.x[i];
        dy[i] = (float)b.dy[i];
    }
    ck_assert_int_eq(kt_device_open(ctx, "cpu", &ex.sites[0].device), KT_OK);
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &experts), KT_OK);
    ex.host.device = ex.sites[0].device;
    ex.general = experts;
    run_toy(&ex, &toy, x, y, dy, dx);
    forward(&b, want);
    ck_assert_double_le(test_error(TOKENS * HIDDEN, y, want), 1e-6);
    test_differentiate(loss, &b, TOKENS * HIDDEN, b.x, want);
    ck_assert_double_le(test_error(TOKENS * HIDDEN, dx, want), 1e-6);
    kt_experts_close(experts);
    kt_device_close(ex.host.device);
    kt_context_free(ctx);
    delete_block(&b);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        LOOP(gradients_are_those_of_central_differences, 2),
    };
    return RUN_TESTS("moe", tests);
}
