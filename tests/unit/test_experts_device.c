/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts on the device of their layer, and divided between it and the host. */
#include "executor/sharing.h"
#include "executor/executor.h"
#include "executor/expert_supply.h"
#include "backends/registry.h"
#include "golden_case.h"
#include "main.h"

static const char *const moe_cases[] = {"v3",      "v3bf16",     "v2",       "v2f16",
                                        "v2lite",  "v3pad",      "qwen3moe", "qwen3moebf16",
                                        "mixtral", "mixtralbf16"};
enum { MOE_CASES = sizeof moe_cases / sizeof *moe_cases };

static const char *const far_away[3] = {"cpu-far"}, *const here[3] = {"cpu"};

struct outcome {
    double loss;
    float *logprobs, *gradients;
};

/** Of the second step, which adds to the gradients of the first. */
static struct outcome two_steps(const struct golden_case *c, kt_executor *executor)
{
    size_t bytes = kt_batch_num_tokens(c->batch) * sizeof(float);
    struct outcome o = {.logprobs = malloc(bytes)};
    kt_lora_zero_grad(c->lora);
    golden_step(c, executor);
    o.loss = golden_step(c, executor);
    memcpy(o.logprobs, kt_executor_logprobs(executor), bytes);
    o.gradients = golden_gradients(c->lora);
    return o;
}

static void free_outcome(struct outcome *o)
{
    free(o->logprobs);
    free(o->gradients);
}

static void expect_same(const struct golden_case *c, struct outcome a, struct outcome b)
{
    size_t tokens = kt_batch_num_tokens(c->batch), gradients = kt_lora_num_parameters(c->lora);
    ck_assert(a.loss == b.loss);
    ck_assert_mem_eq(a.logprobs, b.logprobs, tokens * sizeof(float));
    ck_assert_mem_eq(a.gradients, b.gradients, gradients * sizeof(float));
    free_outcome(&a);
    free_outcome(&b);
}

/** In places of their own, through a ring of two, and with some of both; the CPU, which needs none
 * of that, computes them likewise. */
START_TEST(experts_on_a_device_are_the_same_bits_however_they_travel)
{
    static const uint64_t bytes[] = {1u << 30, 0, 40000, 200000};
    kt_compute compute = _i % 2 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    struct golden_case c = golden_open(moe_cases[_i / 8], 2, compute);
    kt_executor *far = golden_place_on(&c, far_away, "device", compute);
    kt_executor *near = golden_place_on(&c, here, "device", compute);
    far->sites[0].expert_bytes = bytes[_i / 2 % 4];
    ck_assert_str_eq(kt_executor_experts_backend(far, c.model->config.num_hidden_layers - 1),
                     "device");
    expect_same(&c, two_steps(&c, far), two_steps(&c, near));
    kt_executor_free(far);
    kt_executor_free(near);
    golden_close(&c);
}
END_TEST

/** The host's experts, whose sums round elsewhere. */
static void expect_close(const struct golden_case *c, struct outcome got, double tolerance)
{
    size_t tokens = kt_batch_num_tokens(c->batch), gradients = kt_lora_num_parameters(c->lora);
    struct outcome host = two_steps(c, c->executor);
    double *logprobs = test_widen((int64_t)tokens, host.logprobs);
    double *grads = test_widen((int64_t)gradients, host.gradients);
    ck_assert_double_lt(test_error((int64_t)tokens, got.logprobs, logprobs), tolerance);
    ck_assert_double_lt(test_error((int64_t)gradients, got.gradients, grads), tolerance);
    free(logprobs);
    free(grads);
    free_outcome(&host);
    free_outcome(&got);
}

START_TEST(experts_of_device_and_host_agree)
{
    static const char *const experts[] = {"device", "auto"};
    struct golden_case c = golden_open(moe_cases[_i / 2], 2, KT_COMPUTE_F32);
    kt_executor *far = golden_place_on(&c, far_away, experts[_i % 2], KT_COMPUTE_F32);
    far->sites[0].expert_bytes = 0;
    expect_close(&c, two_steps(&c, far), 1e-5);
    kt_executor_free(far);
    golden_close(&c);
}
END_TEST

/** Lets one executor go by what the other knows. */
static void share_alike(const struct golden_case *c, kt_executor *from, kt_executor *to)
{
    const char *record;
    ck_assert_ok(c->ctx, kt_executor_get_sharing(from, &record));
    ck_assert_ok(c->ctx, kt_executor_set_sharing(to, record));
}

/** However many steps looked for a balance before. */
START_TEST(shared_experts_are_divided_the_same_way_again)
{
    struct golden_case c = golden_open(moe_cases[_i / 3], 2, KT_COMPUTE_F32);
    kt_executor *far = golden_place_on(&c, far_away, "auto", KT_COMPUTE_F32);
    kt_executor *again = golden_place_on(&c, far_away, "auto", KT_COMPUTE_F32);
    for (int step = 0; step < 3 * (_i % 3); step++)
        golden_step(&c, far);
    share_alike(&c, far, again);
    ck_assert_str_eq(kt_executor_experts_backend(far, c.model->config.num_hidden_layers - 1),
                     "auto");
    expect_same(&c, two_steps(&c, far), two_steps(&c, again));
    kt_executor_free(far);
    kt_executor_free(again);
    golden_close(&c);
}
END_TEST

START_TEST(a_record_is_refused_or_taken_as_a_whole)
{
    static const char *const bad[] = {
        "",
        "kt-sharing-2",
        "kt-sharing-1 ",
        "kt-sharing-1 f5",
        "kt-sharing-1 x5:2,0,2000,1000,2000,2000,16,0,0,0",
        "kt-sharing-1 f32:2,0,2000,1000,2000,2000,16,0,0,0",
        "kt-sharing-1 f-1:2,0,2000,1000,2000,2000,16,0,0,0",
        "kt-sharing-1 f5:2,0,2000,1000,2000,2000,16,0,0,0b5:2,0,2000,1000,2000,2000,16,0,0,0",
        "kt-sharing-1 f5:2,0,2000,1000,2000,2000,16,0,0,0\n",
    };
    static const char good[] = "kt-sharing-1 f5:7,1,2000,1000,2000,2000,16,0,7,0 "
                               "b31:2,0,2000,1000,2000,2000,16,0,0,0";
    const char *record;
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    ck_assert_ok(c.ctx, kt_executor_get_sharing(c.executor, &record));
    ck_assert_str_eq(record, "kt-sharing-1");
    ck_assert_ok(c.ctx, kt_executor_set_sharing(c.executor, record));
    ck_assert_ok(c.ctx, kt_executor_set_sharing(c.executor, good));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(kt_executor_set_sharing(c.executor, bad[i]), KT_ERROR_INVALID_ARGUMENT);
        ck_assert_ok(c.ctx, kt_executor_get_sharing(c.executor, &record));
        ck_assert_str_eq(record, good);
    }
    golden_close(&c);
}
END_TEST

/** Experts of a layer that are on the device, or on their way to it. */
static int32_t num_coming(const struct golden_case *c, const struct kt_expert_supply *supply,
                          int32_t layer)
{
    int32_t num = 0;
    for (int32_t e = 0; e < c->model->config.n_routed_experts; e++)
        num += kt_expert_supply_coming(supply, layer, e);
    return num;
}

/** Of 12 experts 9 stay; a ring of six places has two of this layer, and of the next as many as are
 * asked for. */
START_TEST(no_more_experts_are_sent_ahead_than_will_be_used)
{
    static const int32_t most[] = {0, 2, 100}, sent[] = {0, 2, 3};
    enum { LAYER = 1, PLACES = 24, OWN = 9 };
    struct golden_case c = golden_open("v3bf16", 1, KT_COMPUTE_F32);
    struct kt_runner run = {0};
    struct kt_expert_supply *supply;
    uint8_t layers[] = {0, 1, 1}, chosen[64] = {[OWN] = 1, [OWN + 1] = 1};
    ck_assert_ok(c.ctx, kt_device_open(c.ctx, "cpu-far", &run.device));
    ck_assert_ok(c.ctx, kt_expert_supply_create(c.model, run.device, layers, &supply));
    uint64_t least = kt_expert_supply_bytes(supply, 0);
    ck_assert_ok(c.ctx, kt_expert_supply_reserve(supply, least / 2 * PLACES));
    kt_expert_supply_enter(supply, &run, LAYER, chosen, LAYER + 1, most[_i]);
    ck_assert_int_eq(num_coming(&c, supply, LAYER), OWN + 2);
    ck_assert_int_eq(num_coming(&c, supply, LAYER + 1), OWN + sent[_i]);
    ck_assert_ok(c.ctx, kt_device_drain(run.device));
    kt_expert_supply_free(supply);
    kt_device_close(run.device);
    golden_close(&c);
}
END_TEST

static void on_log(void *lines, int32_t level, const char *message)
{
    if (level == KT_LOG_INFO && strstr(message, "routed experts"))
        ++*(int *)lines;
}

/** As many steps as that takes; each direction tells once. */
START_TEST(steps_find_a_balance)
{
    int lines = 0;
    const char *record;
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *far = golden_place_on(&c, far_away, "auto", KT_COMPUTE_F32);
    ck_assert_ok(c.ctx, kt_context_set_log(c.ctx, on_log, &lines));
    for (int step = 0; step < KT_BALANCE_SETTLED; step++) {
        double loss = golden_step(&c, far);
        ck_assert(loss > 0);
        ck_assert_int_le(lines, step < 3 ? 0 : 2);
    }
    ck_assert_int_eq(lines, 2);
    ck_assert_ok(c.ctx, kt_executor_get_sharing(far, &record));
    ck_assert_ptr_nonnull(strstr(record, " f6:7,"));
    ck_assert_ptr_nonnull(strstr(record, " b6:7,"));
    kt_executor_free(far);
    golden_close(&c);
}
END_TEST

enum { SEQUENCES = 130, LENGTH = 120 };

/** So many tokens that an expert has more rows than are done at one time. */
static void fill_batch(const struct golden_case *c)
{
    int32_t ids[LENGTH];
    uint32_t random = 1;
    kt_model_info info = {.size = sizeof info};
    ck_assert_ok(c->ctx, kt_model_get_info(c->model, &info));
    ck_assert_ok(c->ctx, kt_batch_clear(c->batch));
    for (int s = 0; s < SEQUENCES; s++) {
        for (int t = 0; t < LENGTH; t++) {
            random = random * 1664525u + 1013904223u;
            ids[t] = (int32_t)((random >> 8) % (uint32_t)info.vocab_size);
        }
        ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids, ids, LENGTH));
    }
}

START_TEST(an_expert_of_many_rows_keeps_its_gradients)
{
    struct golden_case c = golden_open("mixtral", 2, KT_COMPUTE_F32);
    kt_executor *far = golden_place_on(&c, far_away, "device", KT_COMPUTE_F32);
    kt_executor *near = golden_place_on(&c, here, "device", KT_COMPUTE_F32);
    fill_batch(&c);
    ck_assert_int_gt(SEQUENCES * LENGTH * c.model->config.router.topk,
                     4096 * c.model->config.n_routed_experts);
    expect_same(&c, two_steps(&c, far), two_steps(&c, near));
    kt_executor_free(far);
    kt_executor_free(near);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("experts_device", .timeout = 120),
        LOOP(experts_on_a_device_are_the_same_bits_however_they_travel, 8 * MOE_CASES),
        LOOP(experts_of_device_and_host_agree, 2 * MOE_CASES),
        LOOP(shared_experts_are_divided_the_same_way_again, 3 * MOE_CASES),
        LOOP(no_more_experts_are_sent_ahead_than_will_be_used, 3),
        TEST(a_record_is_refused_or_taken_as_a_whole),
        TEST(steps_find_a_balance),
        TEST(an_expert_of_many_rows_keeps_its_gradients),
    };
    return RUN_TESTS("experts_device", tests);
}
