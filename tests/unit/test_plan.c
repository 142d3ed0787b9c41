/* SPDX-License-Identifier: Apache-2.0 */
/* Plans say what a step then takes, of each device and kind. */
#include <kt/plan.h>

#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const placements[][3] = {
    {"cpu"}, {"cpu", "cpu:1"}, {"cpu-far"}, {"cpu-far", "cpu"}, {"cpu-far:1", "cpu:1", "cpu-far:2"},
};
enum { PLACEMENTS = sizeof placements / sizeof *placements, MODES = 3, TOKENS = 60 };

/* Each buffer has a header and is rounded up: 128 bytes at most, of so many buffers, layers'
 * weights among them. */
enum { HEADERS = 128 * 32 };

static kt_device_plan device_of(const kt_plan *plan, const char *name)
{
    kt_device_plan device = {.size = sizeof device};
    size_t i = 0;
    do
        ck_assert_int_eq(kt_plan_get_device(plan, i++, &device), KT_OK);
    while (strcmp(device.name, name) != 0);
    return device;
}

static uint64_t of_step(const kt_device_plan *d)
{
    return d->layer_inputs + d->activations + d->scratch + d->feed;
}

static kt_device_plan total_of(const kt_plan *plan)
{
    kt_device_plan total = {.size = sizeof total};
    ck_assert_int_eq(kt_plan_get_total(plan, &total), KT_OK);
    return total;
}

/** At most what was planned, and no more than 5 % less: the last token of a sequence has no target,
 * and a plan has room for the offsets of a sequence for each token. */
static void ck_near(uint64_t taken, uint64_t planned, uint64_t headers)
{
    ck_assert_uint_le(taken, planned + headers);
    ck_assert_uint_ge(taken, planned - planned / 20);
}

static void run_step(struct golden_case *c, kt_executor *executor, int32_t mode)
{
    float gradient[TOKENS] = {0};
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = i + 2;
    ck_assert_ok(c->ctx, kt_batch_clear(c->batch));
    ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids, ids, TOKENS));
    ck_assert_ok(c->ctx, kt_executor_forward(executor, c->batch, mode, NULL));
    if (mode != KT_FORWARD_EVAL)
        ck_assert_ok(c->ctx,
                     kt_executor_backward(executor, mode == KT_FORWARD_CUSTOM ? gradient : NULL));
}

/** What each device has, looked at from inside. */
static void compare_devices(const struct kt_executor *ex, const kt_plan *plan)
{
    const struct kt_workspace *w = &ex->workspace;
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        const struct kt_site *site = &ex->sites[i];
        kt_device_plan d = device_of(plan, ex->layout.devices[i]);
        bool host = strcmp(d.name, "cpu") == 0;
        uint64_t scratch = host ? ex->host.device->scratch_bytes : 0;
        ck_assert_uint_eq(d.layer_inputs, ex->inputs[i].size);
        ck_assert_uint_eq(d.scratch, site->device->scratch_bytes + scratch);
        ck_near(w->activations[i].size + (host ? w->crossing.size : 0), d.activations, 0);
        ck_assert_uint_le(w->feeds[i].size + (host ? w->host_feed.size : 0), d.feed);
        if (!host)
            ck_assert_uint_eq(d.adapter, site->lora.size + site->lora_grad.size);
        if (!kt_device_is_host(site->device))
            ck_near(site->device->allocated, d.total_allocated, 0);
    }
}

START_TEST(a_plan_is_what_a_step_takes)
{
    static const char *const cases[] = {"v3", "qwen3moe", "llama"};
    int32_t mode = _i % MODES;
    struct golden_case c = golden_open(cases[mode], 2, KT_COMPUTE_BF16);
    uint64_t before = kt_context_memory_used(c.ctx);
    kt_executor *ex = golden_place(&c, placements[_i / MODES], KT_COMPUTE_BF16);
    kt_plan *plan = golden_plan(&c, ex, TOKENS, 0, mode);
    kt_device_plan total = total_of(plan), host = device_of(plan, "cpu");
    uint64_t made = total.supplied + total.adapter - host.adapter;
    run_step(&c, ex, mode);
    uint64_t taken = kt_context_memory_used(c.ctx) - before;
    ck_assert_uint_ge(taken, made);
    ck_near(taken - made, of_step(&total), HEADERS);
    compare_devices(ex, plan);
    kt_plan_free(plan);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(the_total_is_the_sum)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[_i], KT_COMPUTE_F32);
    kt_plan *plan = golden_plan(&c, ex, TOKENS, 7, KT_FORWARD_TRAIN);
    kt_device_plan total = total_of(plan), alone = golden_plan_total(&c, c.executor, TOKENS, 7);
    uint64_t weights = 0, allocated = 0;
    double seconds = 0;
    for (size_t i = 0; i < kt_plan_num_devices(plan); i++) {
        kt_device_plan d = {.size = sizeof d};
        ck_assert_ok(c.ctx, kt_plan_get_device(plan, i, &d));
        ck_assert_uint_eq(d.total_allocated, d.supplied + d.adapter + of_step(&d));
        ck_assert_double_gt(d.seconds, 0);
        weights += d.weights;
        allocated += d.total_allocated;
        seconds += d.seconds;
    }
    ck_assert_ptr_null(total.name);
    ck_assert_uint_eq(weights, c.model->num_bytes);
    ck_assert_uint_eq(total.weights, c.model->num_bytes);
    ck_assert_uint_eq(total.total_allocated, allocated);
    ck_assert_double_eq_tol(total.seconds, seconds, 1e-9 * seconds);
    ck_assert_double_eq_tol(total.flops, alone.flops, 1e-9 * alone.flops);
    ck_assert_uint_eq(total.layer_inputs, alone.layer_inputs);
    ck_assert_uint_eq(device_of(plan, "cpu").adapter, c.lora->num_parameters * 16);
    kt_plan_free(plan);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(more_tokens_never_take_less)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_BF16);
    kt_executor *ex = golden_place(&c, placements[_i], KT_COMPUTE_BF16);
    kt_device_plan before[4] = {{0}};
    for (size_t tokens = 5; tokens < 400; tokens += tokens / 3) {
        kt_plan *plan = golden_plan(&c, ex, tokens, 5, KT_FORWARD_TRAIN);
        for (size_t i = 0; i < kt_plan_num_devices(plan); i++) {
            kt_device_plan d = {.size = sizeof d};
            ck_assert_ok(c.ctx, kt_plan_get_device(plan, i, &d));
            ck_assert_uint_ge(d.total_allocated, before[i].total_allocated);
            ck_assert_double_ge(d.flops, before[i].flops);
            ck_assert_double_ge(d.seconds, before[i].seconds);
            before[i] = d;
        }
        kt_plan_free(plan);
    }
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("plan", .timeout = 60),
        LOOP(a_plan_is_what_a_step_takes, PLACEMENTS * MODES),
        LOOP(the_total_is_the_sum, PLACEMENTS),
        LOOP(more_tokens_never_take_less, PLACEMENTS),
    };
    return RUN_TESTS("plan", tests);
}
