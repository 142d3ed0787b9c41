/* SPDX-License-Identifier: Apache-2.0 */
/* Routing of tokens to experts: softmax or sigmoid scores, groups, top-k. */
#include "backends/cpu/cpu.h"

#include "core/memory.h"

enum { TOKENS_A_TASK = 16 };

struct routing {
    const struct kt_row_kernels *row;
    const struct kt_router *r;
    const float *logits;
    int32_t *ids;
    float *weights;
    const float *dweights;
    float *dlogits;
    float *threads; /* of each: scores [num_experts], choice [num_experts], group [n_group] */
};

static const float normalizer_floor = 1e-20f;

/* n_group is at most num_experts; a line more keeps threads apart */
static int64_t scratch_floats(int64_t num_experts)
{
    return 3 * num_experts + 16;
}

uint64_t kt_cpu_router_scratch(const struct kt_cpu_device *cpu, const struct kt_router_args *a)
{
    return (uint64_t)kt_pool_num_threads(cpu->pool) *
           (uint64_t)scratch_floats(a->router.num_experts) * sizeof(float);
}

static void score(const struct routing *g, const float *logits, float *scores)
{
    int32_t n = g->r->num_experts;
    if (g->r->scoring == KT_SCORING_SIGMOID) {
        g->row->sigmoid(n, logits, scores);
        return;
    }
    float sum = g->row->exp_sum(n, 1.0f, g->row->max(n, logits), logits, scores);
    g->row->scale_add(n, 1.0f / sum, scores, false, scores);
}

/* Index of the greatest value, the lowest of equals; taken ones hold -infinity. A NaN is never
 * greater, so that an index is valid whatever the values are. */
static int32_t take_best(float *values, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (values[i] > values[best])
            best = i;
    return best;
}

static float group_value(const struct kt_router *r, const float *choice, int32_t size)
{
    float first = -__builtin_inff(), second = -__builtin_inff();
    for (int32_t i = 0; i < size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return r->group_score == KT_GROUP_MAX || size < 2 ? first : first + second;
}

/* Experts outside the best topk_group groups count as 0 (as transformers has it). */
static void limit_groups(const struct kt_router *r, float *choice, float *groups)
{
    int32_t size = r->num_experts / r->n_group;
    for (int32_t i = 0; i < r->n_group; i++)
        groups[i] = group_value(r, choice + i * size, size);
    for (int32_t kept = 0; kept < r->topk_group; kept++)
        groups[take_best(groups, r->n_group)] = -__builtin_inff();
    for (int32_t i = 0; i < r->n_group; i++)
        for (int32_t j = 0; j < size && groups[i] != -__builtin_inff(); j++)
            choice[i * size + j] = 0;
}

static float weight_factor(const struct kt_router *r, const float *scores, const int32_t *ids)
{
    float sum = 0;
    if (!r->norm_topk_prob)
        return r->routed_scaling_factor;
    for (int32_t j = 0; j < r->topk; j++)
        sum += scores[ids[j]];
    return r->routed_scaling_factor / (sum + normalizer_floor);
}

static void route_token(const struct routing *g, int64_t t, float *scores)
{
    const struct kt_router *r = g->r;
    int32_t *ids = g->ids + t * r->topk;
    float *choice = scores + r->num_experts, *groups = choice + r->num_experts;
    score(g, g->logits + t * r->num_experts, scores);
    for (int32_t e = 0; e < r->num_experts; e++)
        choice[e] = scores[e] + (r->correction_bias ? r->correction_bias[e] : 0);
    if (r->group_score != KT_GROUP_NONE && r->topk_group < r->n_group)
        limit_groups(r, choice, groups);
    for (int32_t j = 0; j < r->topk; j++) {
        ids[j] = take_best(choice, r->num_experts);
        choice[ids[j]] = -__builtin_inff();
    }
    float factor = weight_factor(r, scores, ids);
    for (int32_t j = 0; j < r->topk; j++)
        g->weights[t * r->topk + j] = scores[ids[j]] * factor;
}

static void route(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct routing *g = arg;
    for (int64_t t = begin; t < end; t++)
        route_token(g, t, g->threads + thread * scratch_floats(g->r->num_experts));
}

/* With w_j = f s_j / (S + floor), S = sum of the chosen s: ds_j = (f dw_j - sum_i dw_i w_i) / S. */
static void route_token_backward(const struct routing *g, int64_t t, float *scores)
{
    const struct kt_router *r = g->r;
    const int32_t *ids = g->ids + t * r->topk;
    const float *dw = g->dweights + t * r->topk;
    float *dlogits = g->dlogits + t * r->num_experts;
    score(g, g->logits + t * r->num_experts, scores);
    float factor = weight_factor(r, scores, ids), shared = 0, weighted = 0;
    if (r->norm_topk_prob) {
        for (int32_t j = 0; j < r->topk; j++)
            shared += dw[j] * scores[ids[j]] * factor;
        shared *= factor / r->routed_scaling_factor;
    }
    for (int32_t e = 0; e < r->num_experts; e++)
        dlogits[e] = 0;
    for (int32_t j = 0; j < r->topk; j++) {
        float ds = dw[j] * factor - shared, s = scores[ids[j]];
        weighted += ds * s;
        dlogits[ids[j]] += r->scoring == KT_SCORING_SIGMOID ? ds * s * (1.0f - s) : ds * s;
    }
    if (r->scoring == KT_SCORING_SOFTMAX)
        g->row->scale_add(r->num_experts, -weighted, scores, true, dlogits);
}

static void route_backward(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct routing *g = arg;
    for (int64_t t = begin; t < end; t++)
        route_token_backward(g, t, g->threads + thread * scratch_floats(g->r->num_experts));
}

static void run(struct kt_device *dev, const struct kt_router_args *a, kt_range_fn fn,
                void *scratch)
{
    struct routing g = {.row = &kt_cpu(dev)->kernels.row,
                        .r = &a->router,
                        .logits = a->logits,
                        .ids = a->ids,
                        .weights = a->weights,
                        .dweights = a->dweights,
                        .dlogits = a->dlogits,
                        .threads = scratch};
    kt_parallel_for(kt_cpu(dev)->pool, a->tokens, TOKENS_A_TASK, fn, &g);
}

void kt_cpu_router_forward(struct kt_device *dev, const void *args, void *scratch)
{
    run(dev, args, route, scratch);
}

void kt_cpu_router_backward(struct kt_device *dev, const void *args, void *scratch)
{
    run(dev, args, route_backward, scratch);
}
