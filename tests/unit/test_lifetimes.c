/* SPDX-License-Identifier: Apache-2.0 */
/* Handles freed in any order, and memory that the host gives. AddressSanitizer and leak checking
 * see what the assertions do not. */
#include <check.h>
#include <kt/kt.h>
#include <stdatomic.h>

#include "world.h"
#include "main.h"

static uint32_t drawn(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

START_TEST(any_order_of_frees)
{
    struct world w;
    int order[WORLD_HANDLES];
    uint32_t state = (uint32_t)_i + 1;
    world_open(&w, NULL);
    for (int i = 0; i < WORLD_HANDLES; i++)
        order[i] = i;
    for (int i = WORLD_HANDLES - 1; _i && i > 0; i--) {
        int j = (int)(drawn(&state) % (uint32_t)(i + 1)), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    if (_i & 1)
        ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    for (int i = 0; i < WORLD_HANDLES; i++)
        world_free(&w, order[i]);
}
END_TEST

/* What is left works after everything that it was made from is freed. */
START_TEST(children_work_without_their_parents)
{
    struct world w;
    int32_t token;
    double norm;
    world_open(&w, NULL);
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    kt_batch_free(w.batch);
    kt_model_free(w.model);
    kt_lora_free(w.lora);
    ck_world_ok(&w, kt_executor_backward(w.executor, NULL));
    kt_executor_free(w.executor);
    kt_context_free(w.ctx);
    ck_assert_int_eq(kt_optimizer_step(w.optimizer, 1e-3, &norm), KT_OK);
    ck_assert(norm > 0);
    kt_optimizer_free(w.optimizer);
    kt_tokenizer_free(w.tokenizer);
    kt_rule_free(w.rule);
    ck_assert_uint_gt(kt_dataset_num_examples(w.dataset), 0);
    kt_dataset_free(w.dataset);
    ck_assert_int_eq(kt_generator_prompt(w.generator, world_ids, 5), KT_OK);
    ck_assert_int_eq(kt_generator_next(w.generator, &token), KT_OK);
    kt_generator_free(w.generator);
    kt_device_plan host = {.size = sizeof host};
    ck_assert_int_eq(kt_plan_get_device(w.plan, 0, &host), KT_OK);
    ck_assert_str_eq(host.name, "cpu");
    kt_plan_free(w.plan);
    ck_assert_int_eq(kt_trace_finish(w.trace), KT_OK);
    ck_assert_uint_gt(kt_trace_num_rows(w.trace), 0);
    kt_trace_free(w.trace);
}
END_TEST

static struct host {
    atomic_llong bytes, calls;
    bool empty, crooked;
} host;

static void *host_alloc(void *user, size_t bytes, size_t alignment)
{
    struct host *h = user;
    if (h->empty)
        return NULL;
    h->calls++;
    h->bytes += (long long)bytes;
    char *memory = aligned_alloc(alignment, bytes + alignment);
    return memory + (h->crooked ? 8 : 0);
}

static void host_free(void *user, void *memory, size_t bytes)
{
    struct host *h = user;
    h->bytes -= (long long)bytes;
    free((char *)memory - (h->crooked ? 8 : 0));
}

START_TEST(the_host_gives_the_memory)
{
    struct world w;
    kt_context_options o;
    kt_lora *lora;
    kt_context_options_init(&o, sizeof o);
    o.num_threads = 2;
    o.alloc = host_alloc;
    ck_assert_int_eq(kt_context_create(&o, &w.ctx), KT_ERROR_INVALID_ARGUMENT);
    o.free = host_free;
    o.alloc_user = &host;
    host.bytes = host.calls = 0;
    host.empty = host.crooked = false;
    world_open(&w, &o);
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_int_gt(host.calls, 3);
    ck_assert_uint_eq((uint64_t)host.bytes, kt_context_memory_used(w.ctx));
    host.empty = true;
    ck_assert_int_eq(kt_lora_create(w.model, NULL, &lora), KT_ERROR_OUT_OF_MEMORY);
    host.empty = false;
    long long before = host.bytes;
    host.crooked = true;
    ck_assert_int_eq(kt_lora_create(w.model, NULL, &lora), KT_ERROR_INVALID_ARGUMENT);
    host.crooked = false;
    ck_assert_int_eq(host.bytes, before);
    ck_assert_ptr_null(lora);
    world_close(&w);
    ck_assert_int_eq(host.bytes, 0);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("lifetimes", .timeout = 60),
        LOOP(any_order_of_frees, 24),
        TEST(children_work_without_their_parents),
        TEST(the_host_gives_the_memory),
    };
    return RUN_TESTS("lifetimes", tests);
}
