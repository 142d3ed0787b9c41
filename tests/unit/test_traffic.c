/* SPDX-License-Identifier: Apache-2.0 */
/* What travels to a device without host memory: nothing twice that is there. */
#include <kt/generator.h>

#include "backends/cpu_far/far.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"
#include "placement/residency.h"

static const char *const far_alone[3] = {"cpu-far"};
static const char *const placements[][3] = {
    {"cpu-far"}, {"cpu-far", "cpu"}, {"cpu-far", "cpu-far:1"}};
enum {
    PLACEMENTS = sizeof placements / sizeof *placements,
    TOKENS = 40,
    BUDGETS = 8,
    CONVERSATION = 150 << 10,
    KEPT = 768 << 20
};

/** Copies into a range of the device's memory. */
static struct {
    struct kt_device_ops ops;
    void (*copy)(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes);
    uintptr_t begin, end;
    uint64_t bytes;
} watch;

static void watched_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                         uint64_t bytes)
{
    if ((uintptr_t)to >= watch.begin && (uintptr_t)to < watch.end)
        watch.bytes += bytes;
    watch.copy(dev, queue, to, from, bytes);
}

static void watch_copies(struct kt_device *dev, uintptr_t begin, uintptr_t end)
{
    watch.ops = *dev->ops;
    watch.copy = watch.ops.copy;
    watch.ops.copy = watched_copy;
    watch.begin = begin;
    watch.end = end;
    watch.bytes = 0;
    dev->ops = &watch.ops;
}

static uint64_t watched(void)
{
    uint64_t bytes = watch.bytes;
    watch.bytes = 0;
    return bytes;
}

static void next(const struct golden_case *c, kt_generator *g, int num)
{
    int32_t token;
    for (int i = 0; i < num; i++)
        ck_assert_ok(c->ctx, kt_generator_next(g, &token));
}

/** Once for a prompt and all of its tokens, and again after anything that may have changed it. */
START_TEST(a_generator_sends_the_adapter_once)
{
    struct golden_case c = golden_open("llama", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, far_alone, KT_COMPUTE_F32);
    const struct kt_site *site = &ex->sites[0];
    uint64_t all = kt_lora_num_parameters(c.lora) * sizeof(float);
    const int32_t *ids = kt_batch_input_ids(c.batch);
    kt_generator *g, *other;
    watch_copies(site->device, (uintptr_t)site->lora.memory,
                 (uintptr_t)site->lora.memory + site->lora.size);
    ck_assert_ok(c.ctx, kt_generator_create(ex, NULL, &g));
    ck_assert_ok(c.ctx, kt_generator_create(ex, NULL, &other));
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, 9));
    next(&c, g, 3);
    ck_assert_ok(c.ctx, kt_generator_prompt(other, ids, 5));
    next(&c, other, 2);
    ck_assert_uint_eq(watched(), all);
    c.lora->data[3] += 0.5f;
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, 9));
    next(&c, g, 3);
    ck_assert_uint_eq(watched(), all);
    ck_assert_ok(c.ctx, kt_executor_forward(ex, c.batch, KT_FORWARD_EVAL, NULL));
    ck_assert_uint_eq(watched(), all);
    next(&c, g, 3);
    ck_assert_uint_eq(watched(), all);
    kt_generator_free(other);
    kt_generator_free(g);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/* -- weights that stay ------------------------------------------------------------------------- */

START_TEST(the_first_units_that_fit_stay)
{
    static const uint64_t bytes[] = {0, 10, 30, 20, 0, 10};
    static const struct {
        uint64_t room, taken;
        bool stay[6];
    } cases[] = {
        {1000, 70, {0, 1, 1, 1, 0, 1}},
        {70, 70, {0, 1, 1, 1, 0, 1}},
        {69, 60, {0}},
        {0, 60, {0}},
    };
    static const uint64_t small[] = {5, 5, 5, 5};
    bool stay[6];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_uint_eq(kt_residency_fit(bytes, 6, cases[i].room, stay), cases[i].taken);
        ck_assert_mem_eq(stay, cases[i].stay, sizeof stay);
    }
    ck_assert_uint_eq(kt_residency_fit(small, 4, 19, stay), 15);
    ck_assert(stay[0] && !stay[1] && !stay[2] && !stay[3]);
    ck_assert_uint_eq(kt_residency_fit(small, 4, UINT64_MAX, stay), 20);
    ck_assert_uint_eq(kt_residency_fit(bytes, 1, UINT64_MAX, stay), 0);
}
END_TEST

static void fill(const struct golden_case *c)
{
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = i % 50 + 2;
    ck_assert_ok(c->ctx, kt_batch_clear(c->batch));
    ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids, ids, TOKENS));
}

/** What a device takes with all of its weights, with none, and with no kept inputs either. */
struct needs {
    uint64_t all, least, floor;
};

static struct needs needs_of(const struct golden_case *c, const char *const devices[3],
                             kt_compute compute, uint64_t kept_bytes)
{
    kt_executor *ex = golden_place_within(c, devices, compute, 1ull << 40);
    ex->kept_bytes = kept_bytes;
    kt_plan *plan = golden_plan(c, ex, TOKENS, 0, KT_FORWARD_TRAIN);
    kt_device_plan d = {.size = sizeof d};
    ck_assert_ok(c->ctx, kt_plan_get_device(plan, 0, &d));
    struct needs needs = {.all = d.total_allocated,
                          .least = d.total_allocated - d.supplied + ex->sites[0].vectors.size +
                                   kt_supply_fit(ex->sites[0].supply, 0, NULL)};
    needs.floor = needs.least - d.layer_inputs;
    kt_plan_free(plan);
    kt_executor_free(ex);
    return needs;
}

/** After a step alone: a plan has room for the offsets of a sequence for each token. */
static void check_plan(const struct golden_case *c, const kt_executor *ex)
{
    kt_plan *plan = golden_plan(c, ex, TOKENS, 0, KT_FORWARD_TRAIN);
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        const struct kt_device *dev = ex->sites[i].device;
        kt_device_plan d = {.size = sizeof d};
        ck_assert_ok(c->ctx, kt_plan_get_device(plan, (size_t)i, &d));
        if (kt_device_is_host(dev))
            continue;
        ck_assert_uint_le(dev->allocated, d.total_allocated);
        ck_assert_uint_ge(dev->allocated, d.total_allocated - d.feed - d.activations / 20);
        ck_assert(!dev->limit || d.total_allocated <= dev->limit);
    }
    kt_plan_free(plan);
}

static void generate(const struct golden_case *c, kt_executor *ex, int32_t tokens[4])
{
    kt_generator *g;
    kt_generator_options options;
    kt_generator_options_init(&options, sizeof options);
    options.temperature = 0;
    ck_assert_ok(c->ctx, kt_generator_create(ex, &options, &g));
    ck_assert_ok(c->ctx, kt_generator_prompt(g, kt_batch_input_ids(c->batch), 9));
    for (int i = 0; i < 4; i++)
        ck_assert_ok(c->ctx, kt_generator_next(g, &tokens[i]));
    kt_generator_free(g);
}

struct results {
    double losses[2];
    int32_t tokens[4];
};

/** Losses and, returned, gradients of two steps, and tokens between them. */
static float *results_of(const struct golden_case *c, kt_executor *ex, bool generates,
                         struct results *results)
{
    *results = (struct results){0};
    kt_lora_zero_grad(c->lora);
    results->losses[0] = golden_step(c, ex);
    check_plan(c, ex);
    if (generates)
        generate(c, ex, results->tokens);
    results->losses[1] = golden_step(c, ex);
    return golden_gradients(c->lora);
}

/** From what a step needs at least to what it takes with all of its weights and inputs, and a
 * conversation beside it. */
START_TEST(what_stays_changes_no_bit)
{
    kt_compute compute = _i % 2 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    struct golden_case c = golden_open(_i / 2 / PLACEMENTS / BUDGETS ? "llama" : "v3", 2, compute);
    const char *const *devices = placements[_i / 2 % PLACEMENTS];
    fill(&c);
    uint64_t part = (uint64_t)(_i / 2 / PLACEMENTS % BUDGETS);
    uint64_t kept_bytes = part < BUDGETS / 2 ? 0 : KEPT; /* every input is read, or few are */
    struct needs needs = needs_of(&c, devices, compute, kept_bytes);
    uint64_t span = needs.all + CONVERSATION - needs.floor;
    uint64_t limit = needs.floor + span * part / (BUDGETS - 1);
    bool generates = limit > needs.least + CONVERSATION;
    struct results wanted, found;
    kt_executor *ex = golden_place_within(&c, devices, compute, limit);
    ex->kept_bytes = kept_bytes;
    for (int32_t i = 0; part % 2 == 0 && i < ex->layout.num_devices; i++)
        if (!kt_device_is_host(ex->sites[i].device))
            kt_cpu_far_seed(ex->sites[i].device, 0); /* as late as can be */
    float *want = results_of(&c, c.executor, generates, &wanted);
    float *got = results_of(&c, ex, generates, &found);
    ck_assert_mem_eq(&wanted, &found, sizeof wanted);
    ck_assert_uint_le(ex->sites[0].device->allocated, limit);
    ck_assert(part || ex->pinned_inputs[0].size);
    ck_assert_mem_eq(want, got, kt_lora_num_parameters(c.lora) * sizeof *got);
    free(want);
    free(got);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Bytes that travel in each of two steps. */
static void count_traffic(const struct golden_case *c, uint64_t limit, uint64_t steps[2])
{
    kt_executor *ex = golden_place_within(c, far_alone, KT_COMPUTE_F32, limit);
    watch_copies(ex->sites[0].device, 0, UINTPTR_MAX);
    for (int i = 0; i < 2; i++) {
        golden_step(c, ex);
        steps[i] = watched();
    }
    kt_executor_free(ex);
}

/** If all stay, weights travel in the first step alone; else in forward and backward, but for what
 * is in the buffers. */
START_TEST(weights_that_stay_travel_once)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    fill(&c);
    struct needs needs = needs_of(&c, far_alone, KT_COMPUTE_F32, KEPT);
    uint64_t weights = kt_supply_weights(c.executor->sites[0].supply), all[2], least[2];
    count_traffic(&c, needs.all, all);
    count_traffic(&c, needs.least, least);
    ck_assert_uint_eq(all[0], all[1] + weights);
    ck_assert_uint_ge(least[1], all[1] + weights);
    ck_assert_uint_ge(least[0], least[1]);
    golden_close(&c);
}
END_TEST

START_TEST(a_step_that_grows_sends_weights_away)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    int32_t ids[4] = {2, 3, 4, 5};
    fill(&c);
    struct needs needs = needs_of(&c, far_alone, KT_COMPUTE_F32, KEPT);
    kt_executor *ex = golden_place_within(&c, far_alone, KT_COMPUTE_F32, needs.all - 1);
    double loss = golden_step(&c, c.executor);
    ck_assert_ok(c.ctx, kt_batch_clear(c.batch));
    ck_assert_ok(c.ctx, kt_batch_add(c.batch, ids, ids, 4));
    golden_step(&c, ex);
    fill(&c);
    ck_assert_double_eq(golden_step(&c, ex), loss);
    ck_assert_uint_le(ex->sites[0].device->allocated, needs.all - 1);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(too_little_memory_is_said)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    fill(&c);
    kt_executor *ex = golden_place_within(&c, far_alone, KT_COMPUTE_F32, 1ull << 40);
    uint64_t limit = ex->sites[0].device->allocated + 2048;
    ex->sites[0].device->limit = limit;
    ck_assert_int_eq(kt_executor_forward(ex, c.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_msg(strstr(kt_last_error(c.ctx), "that it may take") &&
                      strstr(kt_last_error(c.ctx), "cpu-far"),
                  "%s", kt_last_error(c.ctx));
    ck_assert_uint_le(ex->sites[0].device->allocated, limit);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("traffic", .timeout = 60),
        TEST(a_generator_sends_the_adapter_once),
        TEST(the_first_units_that_fit_stay),
        LOOP(what_stays_changes_no_bit, 2 * 2 * PLACEMENTS * BUDGETS),
        TEST(weights_that_stay_travel_once),
        TEST(a_step_that_grows_sends_weights_away),
        TEST(too_little_memory_is_said),
    };
    return RUN_TESTS("traffic", tests);
}
