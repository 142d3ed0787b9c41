/* SPDX-License-Identifier: Apache-2.0 */
/* Layers on other devices than "cpu" compute the same bits: losses, log-probabilities, gradients,
 * logits and generated tokens of every golden case. On "cpu-far" a host that follows an address of
 * the device faults, and a missing wait gives other numbers. */
#include <kt/generator.h>
#include <sys/resource.h>

#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

/** Layers take these devices in turn; the head has the last one. */
static const char *const placements[][3] = {
    {"cpu", "cpu:1"},
    {"cpu-far"},
    {"cpu-far", "cpu"},
    {"cpu-far:1", "cpu:1", "cpu-far:2"},
};
enum { PLACEMENTS = sizeof placements / sizeof *placements, COMPUTES = 2 };

/* ThreadSanitizer looks at the order of operations, which is the same in all cases. */
#ifdef __SANITIZE_THREAD__
enum { STRIDE = 6 };
#else
enum { STRIDE = 1 };
#endif
enum { CASES = (GOLDEN_CASES + STRIDE - 1) / STRIDE };

static void compare_steps(const struct golden_case *c, kt_executor *placed)
{
    size_t tokens = kt_batch_num_tokens(c->batch), gradients = kt_lora_num_parameters(c->lora);
    kt_executor *executors[] = {c->executor, placed};
    float *logprobs[2], *grads[2];
    double loss[2];
    for (int i = 0; i < 2; i++) {
        kt_lora_zero_grad(c->lora);
        golden_step(c, executors[i]); /* the second adds to what is there */
        loss[i] = golden_step(c, executors[i]);
        logprobs[i] = malloc(tokens * sizeof **logprobs);
        memcpy(logprobs[i], kt_executor_logprobs(executors[i]), tokens * sizeof **logprobs);
        grads[i] = golden_gradients(c->lora);
    }
    ck_assert(loss[0] == loss[1]);
    ck_assert_mem_eq(logprobs[0], logprobs[1], tokens * sizeof **logprobs);
    ck_assert_mem_eq(grads[0], grads[1], gradients * sizeof **grads);
    for (int i = 0; i < 2; i++) {
        free(logprobs[i]);
        free(grads[i]);
    }
}

START_TEST(a_step_gives_the_same_bits)
{
    const char *name = golden_cases[_i / PLACEMENTS / COMPUTES * STRIDE];
    kt_compute compute = _i / PLACEMENTS % COMPUTES ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    struct golden_case c = golden_open(name, 2, compute);
    kt_executor *placed = golden_place(&c, placements[_i % PLACEMENTS], compute);
    compare_steps(&c, placed);
    kt_executor_free(placed);
    golden_close(&c);
}
END_TEST

/** Every kept activation is recomputed where memory is limited. */
START_TEST(a_step_that_recomputes_gives_the_same_bits)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *placed = golden_place(&c, placements[_i], KT_COMPUTE_F32);
    c.ctx->options.memory_limit = 1u << 30;
    compare_steps(&c, placed);
    kt_executor_free(placed);
    golden_close(&c);
}
END_TEST

static void generate(kt_context *ctx, kt_executor *executor, const int32_t *ids, size_t length,
                     int32_t tokens[6], float *logits, int32_t vocab)
{
    kt_generator_options options;
    kt_generator *g;
    kt_generator_options_init(&options, sizeof options);
    options.temperature = 0;
    options.prefill_chunk = 5;
    ck_assert_ok(ctx, kt_generator_create(executor, &options, &g));
    ck_assert_ok(ctx, kt_generator_prompt(g, ids, length));
    for (int i = 0; i < 6; i++)
        ck_assert_ok(ctx, kt_generator_next(g, &tokens[i]));
    memcpy(logits, kt_generator_logits(g), (size_t)vocab * sizeof *logits);
    kt_generator_free(g);
}

START_TEST(generation_gives_the_same_bits)
{
    struct golden_case c = golden_open(golden_cases[_i / PLACEMENTS * STRIDE], 2, KT_COMPUTE_F32);
    kt_executor *placed = golden_place(&c, placements[_i % PLACEMENTS], KT_COMPUTE_F32);
    int32_t vocab = c.model->config.vocab_size, tokens[2][6];
    size_t bytes = (size_t)vocab * sizeof(float);
    float *logits[2] = {malloc(bytes), malloc(bytes)};
    for (int i = 0; i < 2; i++)
        generate(c.ctx, i ? placed : c.executor, kt_batch_input_ids(c.batch), 12, tokens[i],
                 logits[i], vocab);
    ck_assert_mem_eq(tokens[0], tokens[1], sizeof tokens[0]);
    ck_assert_mem_eq(logits[0], logits[1], bytes);
    free(logits[0]);
    free(logits[1]);
    kt_executor_free(placed);
    golden_close(&c);
}
END_TEST

START_TEST(logits_of_all_tokens_are_the_same_bits)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *placed = golden_place(&c, placements[_i], KT_COMPUTE_F32);
    size_t bytes = kt_batch_num_tokens(c.batch) * (size_t)c.model->config.vocab_size * 4;
    float *logits[2] = {malloc(bytes), malloc(bytes)};
    ck_assert_ok(c.ctx, kt_executor_logits(c.executor, c.batch, logits[0]));
    ck_assert_ok(c.ctx, kt_executor_logits(placed, c.batch, logits[1]));
    ck_assert_mem_eq(logits[0], logits[1], bytes);
    free(logits[0]);
    free(logits[1]);
    kt_executor_free(placed);
    golden_close(&c);
}
END_TEST

START_TEST(a_layer_in_pieces_is_an_error)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    kt_executor_options options;
    kt_executor *executor = (kt_executor *)&c;
    kt_rule *rule;
    kt_executor_options_init(&options, sizeof options);
    ck_assert_ok(c.ctx, kt_rule_create(c.ctx, &rule));
    ck_assert_ok(c.ctx, kt_rule_add(rule, "layers\\.1\\.self_attn\\.q_a", "cpu:1", NULL));
    options.rule = rule;
    ck_assert_int_eq(kt_executor_create(c.model, c.lora, &options, &executor),
                     KT_ERROR_UNSUPPORTED);
    ck_assert_ptr_null(executor);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "layers.1.self_attn.q_a"));
    kt_rule_free(rule);
    golden_close(&c);
}
END_TEST

/** A device that fails to open is no reason to compute elsewhere. Sanitizers need the addresses
 * that it is refused. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
START_TEST(a_device_that_cannot_be_opened_is_an_error)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    kt_executor_options options;
    kt_executor *executor = (kt_executor *)&c;
    kt_rule *rule;
    kt_executor_options_init(&options, sizeof options);
    ck_assert_ok(c.ctx, kt_rule_create(c.ctx, &rule));
    ck_assert_ok(c.ctx, kt_rule_add(rule, ".", "cpu-far", NULL));
    options.rule = rule;
    struct rlimit before, little = {1u << 30, RLIM_INFINITY};
    ck_assert_int_eq(getrlimit(RLIMIT_AS, &before), 0);
    little.rlim_max = before.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &little), 0);
    ck_assert_int_eq(kt_executor_create(c.model, c.lora, &options, &executor),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &before), 0);
    ck_assert_ptr_null(executor);
    kt_rule_free(rule);
    golden_close(&c);
}
END_TEST
#endif

int main(void)
{
    const struct test tests[] = {
        GROUP("placement", .timeout = 120),
        LOOP(a_step_gives_the_same_bits, CASES * COMPUTES * PLACEMENTS),
        LOOP(a_step_that_recomputes_gives_the_same_bits, PLACEMENTS),
        LOOP(generation_gives_the_same_bits, CASES * PLACEMENTS),
        LOOP(logits_of_all_tokens_are_the_same_bits, PLACEMENTS),
        TEST(a_layer_in_pieces_is_an_error),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        TEST(a_device_that_cannot_be_opened_is_an_error),
#endif
    };
    return RUN_TESTS("placement", tests);
}
