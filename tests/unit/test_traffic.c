/* SPDX-License-Identifier: Apache-2.0 */
/* What travels to a device without host memory: nothing twice that is there. */
#include <kt/generator.h>

#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const far_alone[3] = {"cpu-far"};

/** Copies into a range of the device's memory. */
static struct {
    struct kt_device_ops ops;
    void (*copy)(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes);
    const char *begin, *end;
    uint64_t bytes;
} watch;

static void watched_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                         uint64_t bytes)
{
    if ((char *)to >= watch.begin && (char *)to < watch.end)
        watch.bytes += bytes;
    watch.copy(dev, queue, to, from, bytes);
}

static void watch_copies(struct kt_device *dev, const void *memory, uint64_t size)
{
    watch.ops = *dev->ops;
    watch.copy = watch.ops.copy;
    watch.ops.copy = watched_copy;
    watch.begin = memory;
    watch.end = watch.begin + size;
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
    watch_copies(site->device, site->lora.memory, site->lora.size);
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

int main(void)
{
    const struct test tests[] = {
        GROUP("traffic", .timeout = 60),
        TEST(a_generator_sends_the_adapter_once),
    };
    return RUN_TESTS("traffic", tests);
}
