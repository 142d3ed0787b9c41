/* SPDX-License-Identifier: Apache-2.0 */
/* What kt_executor_reserve promises: no step of the size, nor a smaller one, allocates anything. */
#include "core/random.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const cases[] = {"v3", "v3pad", "qwen2moe", "dynamic", "llama", "mixtral"};
static const char *const placements[][3] = {{"cpu"}, {"cpu-far"}, {"cpu-far", "cpu:1"}};
/* of kept activations: all that there are, a layer's or two, none */
static const uint64_t limits[] = {768 << 20, 300 << 10, 0};
enum {
    CASES = sizeof cases / sizeof *cases,
    PLACEMENTS = sizeof placements / sizeof *placements,
    LIMITS = sizeof limits / sizeof *limits,
    TOKENS = 150,
    STEPS = SANITIZED ? 8 : 24
};

static uint32_t draw(uint64_t *drawn, uint32_t below)
{
    uint32_t words[4];
    kt_philox(7, 0, (*drawn)++, words);
    return words[0] % below;
}

/** At most TOKENS tokens and padding, in sequences of any length. */
static void fill(const struct golden_case *c, uint64_t *drawn)
{
    int32_t ids[TOKENS], vocab = c->model->config.vocab_size;
    uint32_t left = 1 + draw(drawn, TOKENS), longest = 1 + draw(drawn, left);
    if (draw(drawn, 4) == 0)
        left = TOKENS;
    ck_assert_ok(c->ctx, kt_batch_clear(c->batch));
    while (left) {
        uint32_t length = 1 + draw(drawn, longest < left ? longest : left);
        for (uint32_t i = 0; i < length; i++)
            ids[i] = (int32_t)draw(drawn, (uint32_t)vocab);
        ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids, ids, length));
        left -= length;
        uint32_t padding = draw(drawn, 3) ? 0 : draw(drawn, left + 1);
        ck_assert_ok(c->ctx, kt_batch_add_padding(c->batch, 0, padding));
        left -= padding;
    }
}

/** A step in any mode; in TRAIN a batch needs a target. */
static void run(const struct golden_case *c, kt_executor *ex, uint64_t *drawn)
{
    static float gradient[TOKENS], logits[TOKENS * 1024];
    static const int32_t modes[] = {KT_FORWARD_EVAL, KT_FORWARD_TRAIN, KT_FORWARD_CUSTOM};
    uint32_t which = draw(drawn, 4);
    ck_assert_int_le(c->model->config.vocab_size, 1024);
    if (which == 3) {
        ck_assert_ok(c->ctx, kt_executor_logits(ex, c->batch, logits));
        return;
    }
    int32_t mode = kt_batch_num_targets(c->batch) ? modes[which] : KT_FORWARD_CUSTOM;
    ck_assert_ok(c->ctx, kt_executor_forward(ex, c->batch, mode, NULL));
    if (mode != KT_FORWARD_EVAL)
        ck_assert_ok(c->ctx, kt_executor_backward(ex, mode == KT_FORWARD_CUSTOM ? gradient : NULL));
}

/** Everything that grows, counted by the context or not. */
struct memory {
    uint64_t used;
    const void *blocks[8];
};

static struct memory memory_of(const struct golden_case *c, const kt_executor *ex)
{
    return (struct memory){kt_context_memory_used(c->ctx),
                           {ex->inputs[0].memory, ex->workspace.activations[0].memory,
                            ex->workspace.feeds[0].memory, ex->workspace.host_feed.memory,
                            ex->positions, ex->logprobs, ex->rotary.cos, ex->step.targets.ids}};
}

static void run_steps(const struct golden_case *c, kt_executor *ex)
{
    uint64_t drawn = 0;
    struct memory before = memory_of(c, ex);
    for (int i = 0; i < STEPS; i++) {
        fill(c, &drawn);
        run(c, ex, &drawn);
        struct memory after = memory_of(c, ex);
        ck_assert_msg(memcmp(&before, &after, sizeof before) == 0, "step %d", i);
    }
}

START_TEST(no_step_of_the_size_or_a_smaller_one_allocates)
{
    kt_compute compute = _i % 2 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    struct golden_case c = golden_open(cases[_i / 2 % CASES], 2, compute);
    kt_executor *ex = golden_place(&c, placements[_i / 2 / CASES % PLACEMENTS], compute);
    ex->kept_bytes = limits[_i / 2 / CASES / PLACEMENTS];
    ck_assert_ok(c.ctx, kt_executor_reserve(ex, TOKENS));
    run_steps(&c, ex);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** The smallest limit within which TOKENS can be reserved, as a failure says it. */
static uint64_t smallest_limit(const struct golden_case *c, const char *const devices[3])
{
    kt_executor *ex = golden_place_within(c, devices, KT_COMPUTE_F32, 1ull << 40);
    ex->sites[0].device->limit = ex->sites[0].device->allocated + 1;
    ck_assert_int_eq(kt_executor_reserve(ex, TOKENS), KT_ERROR_OUT_OF_MEMORY);
    const char *needs = strstr(kt_last_error(c->ctx), " needs ");
    ck_assert_msg(needs, "%s", kt_last_error(c->ctx));
    kt_executor_free(ex);
    return strtoull(needs + strlen(" needs "), NULL, 10);
}

/** Where steps are done in pieces, or smaller ones could be done in fewer. */
START_TEST(nor_does_one_within_a_limit)
{
    static const char *const far_alone[3] = {"cpu-far"};
    struct golden_case c = golden_open(cases[_i % CASES], 2, KT_COMPUTE_F32);
    uint64_t least = smallest_limit(&c, far_alone), part = (uint64_t)(_i / CASES);
    kt_executor *ex =
        golden_place_within(&c, far_alone, KT_COMPUTE_F32, least + part * (least / 10));
    ck_assert_ok(c.ctx, kt_executor_reserve(ex, TOKENS));
    run_steps(&c, ex);
    ck_assert_uint_le(ex->sites[0].device->allocated, ex->sites[0].device->limit);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** It leaves calls over few tokens to another backend. */
START_TEST(an_experts_backend_with_a_fallback_allocates_nothing_either)
{
    struct golden_case c = golden_open_on("v3bf16", "amx-emulated", 2, KT_COMPUTE_BF16);
    ck_assert_ok(c.ctx, kt_executor_reserve(c.executor, TOKENS));
    run_steps(&c, c.executor);
    golden_close(&c);
}
END_TEST

/** What is kept depends on what was reserved, and is the same bits. */
START_TEST(a_reserved_step_is_the_step)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[0], KT_COMPUTE_F32);
    uint64_t drawn = 0;
    fill(&c, &drawn);
    double loss = golden_step(&c, ex);
    ex->kept_bytes = limits[1];
    ck_assert_ok(c.ctx, kt_executor_reserve(ex, TOKENS));
    ck_assert_double_eq(golden_step(&c, ex), loss);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** A failure promises nothing and breaks nothing. */
START_TEST(what_cannot_be_reserved_is_an_error)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    double loss = golden_step(&c, c.executor);
    c.ctx->options.memory_limit = kt_context_memory_used(c.ctx) + (1 << 20);
    ck_assert_int_eq(kt_executor_reserve(c.executor, INT32_MAX), KT_ERROR_OUT_OF_MEMORY);
    ck_assert_int_eq(kt_executor_reserve(c.executor, 5000), KT_ERROR_OUT_OF_MEMORY);
    ck_assert_int_eq(c.executor->reserved_tokens, 0);
    c.ctx->options.memory_limit = 0;
    ck_assert_double_eq(golden_step(&c, c.executor), loss);
    golden_close(&c);
}
END_TEST

/** A batch of so many tokens does not fit; the one of the case does, and so does what was reserved.
 */
START_TEST(a_step_that_was_too_large_leaves_no_less_room)
{
    static const size_t sizes[] = {300, 1000, 5000};
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    double loss = golden_step(&c, c.executor);
    uint64_t fits = kt_context_memory_used(c.ctx), drawn = 0;
    kt_batch *large;
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &large));
    c.ctx->options.memory_limit = fits;
    for (int i = 0; i < 3; i++) {
        int32_t ids[50];
        for (int k = 0; k < 50; k++)
            ids[k] = (int32_t)draw(&drawn, (uint32_t)c.model->config.vocab_size);
        ck_assert_ok(c.ctx, kt_batch_clear(large));
        while (kt_batch_num_tokens(large) < sizes[i])
            ck_assert_ok(c.ctx, kt_batch_add(large, ids, ids, 50));
        ck_assert_int_eq(kt_executor_forward(c.executor, large, KT_FORWARD_TRAIN, NULL),
                         KT_ERROR_OUT_OF_MEMORY);
        ck_assert_double_eq(golden_step(&c, c.executor), loss);
        ck_assert_int_eq(kt_executor_reserve(c.executor, sizes[i]), KT_ERROR_OUT_OF_MEMORY);
        ck_assert_double_eq(golden_step(&c, c.executor), loss);
    }
    c.ctx->options.memory_limit = 0;
    ck_assert_ok(c.ctx, kt_executor_reserve(c.executor, TOKENS));
    c.ctx->options.memory_limit = kt_context_memory_used(c.ctx);
    ck_assert_int_eq(kt_executor_forward(c.executor, large, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_int_eq(c.executor->reserved_tokens, TOKENS);
    run_steps(&c, c.executor);
    kt_batch_free(large);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("reserve", .timeout = 120),
        LOOP(no_step_of_the_size_or_a_smaller_one_allocates, 2 * CASES * PLACEMENTS * LIMITS),
        LOOP(nor_does_one_within_a_limit, 4 * CASES),
        TEST(an_experts_backend_with_a_fallback_allocates_nothing_either),
        TEST(a_reserved_step_is_the_step),
        TEST(what_cannot_be_reserved_is_an_error),
        TEST(a_step_that_was_too_large_leaves_no_less_room),
    };
    return RUN_TESTS("reserve", tests);
}
