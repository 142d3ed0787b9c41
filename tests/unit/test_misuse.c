/* SPDX-License-Identifier: Apache-2.0 */
/* Values, orders and texts that make no sense, and what failures tell. */
#include <check.h>
#include <kt/kt.h>
#include <math.h>

#include "misuse.h"
#include "main.h"

static kt_message message(size_t size, const char *role, const char *content)
{
    return (kt_message){.size = size, .role = role, .content = content};
}

static kt_status apply(kt_message m)
{
    return kt_tokenizer_apply_template(w.tokenizer, "qwen", &m, 1, &out.ids, &num);
}

static kt_status decode_with(kt_decode_state state, char *text, size_t capacity)
{
    return kt_tokenizer_decode_next(w.tokenizer, &state, 50, text, capacity, &num);
}

static kt_status two_sizes(void)
{
    enum { SIZE = sizeof(kt_message) };
    kt_message pair[3] = {message(SIZE, "user", "x"), message(SIZE + 8, "assistant", "y"),
                          message(SIZE, "user", "z")};
    return kt_tokenizer_apply_template(w.tokenizer, "qwen", pair, 3, &out.ids, &num);
}

static kt_status empty_batch(int32_t mode)
{
    kt_batch *empty;
    ck_world_ok(&w, kt_batch_create(w.ctx, &empty));
    kt_status status = kt_executor_forward(w.executor, empty, mode, NULL);
    kt_batch_free(empty);
    return status;
}

static kt_status changed_batch(void)
{
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    ck_world_ok(&w, kt_batch_add(w.batch, world_ids, NULL, 3));
    return kt_executor_backward(w.executor, NULL);
}

static kt_status gradient_missing(void)
{
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_CUSTOM, NULL));
    return kt_executor_backward(w.executor, NULL);
}

static kt_status with_executor(int32_t compute, int32_t chunk, const char *backend)
{
    kt_executor_options o;
    kt_executor_options_init(&o, sizeof o);
    o.compute = compute;
    o.logits_chunk = chunk;
    o.experts_backend = backend;
    return kt_executor_create(w.model, w.lora, &o, &out.executor);
}

static kt_status with_lora(int32_t rank, float alpha, float dropout, const char *target)
{
    kt_lora_options o;
    kt_lora_options_init(&o, sizeof o);
    o.rank = rank;
    o.alpha = alpha;
    o.dropout = dropout;
    o.target = target;
    return kt_lora_create(w.model, &o, &out.lora);
}

static kt_status with_generator(float temperature, float top_p, int32_t top_k, int32_t max_length)
{
    kt_generator_options o;
    kt_generator_options_init(&o, sizeof o);
    o.temperature = temperature;
    o.top_p = top_p;
    o.top_k = top_k;
    o.max_length = max_length;
    return kt_generator_create(w.executor, &o, &out.generator);
}

static kt_status with_plan(size_t tokens, size_t longest, int32_t mode)
{
    kt_plan_options o;
    kt_plan_options_init(&o, sizeof o);
    o.num_tokens = tokens;
    o.max_sequence = longest;
    o.mode = mode;
    return kt_plan_create(w.executor, &o, &out.plan);
}

static kt_status with_convert(int32_t to)
{
    kt_convert_options o;
    kt_convert_options_init(&o, sizeof o);
    o.to = to;
    return kt_convert(w.ctx, WORLD_MODEL, folder, &o);
}

static kt_status foreign(bool lora)
{
    struct world other;
    world_open(&other, NULL);
    kt_status status = lora ? kt_executor_create(w.model, other.lora, NULL, &out.executor)
                            : kt_executor_forward(w.executor, other.batch, KT_FORWARD_EVAL, NULL);
    world_close(&other);
    return status;
}

static bool nonsense(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    static const int32_t no_label[] = {-5};
    const kt_decode_state broken = {.size = sizeof broken, .num_pending = 9};
    const kt_decode_state fresh = {.size = sizeof fresh};
    switch (i) {
        CALL(NOT_FOUND, kt_model_load(w.ctx, "/nonexistent", NULL, &out.model));
        CALL(INVALID_ARGUMENT,
             kt_model_get_tensor(w.model, 1 << 30, &(kt_tensor_info){.size = 200}));
        CALL(INVALID_ARGUMENT, kt_lora_get_tensor(w.lora, 1 << 30, &(kt_lora_tensor){.size = 100}));
        CALL(INVALID_ARGUMENT, kt_lora_set_grad_state(w.lora, 1 << 30, 1));
        CALL(INVALID_ARGUMENT, kt_lora_set_grad_state(w.lora, 0, 2));
        CALL(INVALID_ARGUMENT, kt_dataset_get(w.dataset, 1 << 30, &(kt_example){.size = 64}));
        CALL(INVALID_ARGUMENT, kt_dataset_split(w.dataset, NAN, 1, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, NULL, 0));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, NULL, SIZE_MAX));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, no_label, 1));
        CALL(INVALID_ARGUMENT, kt_batch_add_padding(w.batch, 0, SIZE_MAX));
        CALL(INVALID_ARGUMENT, empty_batch(KT_FORWARD_TRAIN));
        CALL(INVALID_ARGUMENT, empty_batch(KT_FORWARD_EVAL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, w.batch, 3, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, w.batch, -1, NULL));
        CALL(INVALID_ARGUMENT,
             kt_executor_forward(w.executor, w.batch, KT_FORWARD_EVAL | KT_FORWARD_FLAGS, NULL));
        CALL(STATE, kt_executor_backward(w.executor, NULL));
        CALL(STATE, changed_batch());
        CALL(INVALID_ARGUMENT, gradient_missing());
        CALL(INVALID_ARGUMENT, kt_executor_reserve(w.executor, 0));
        CALL(INVALID_ARGUMENT, kt_plan_create(w.executor, NULL, &out.plan));
        CALL(INVALID_ARGUMENT, with_plan(5, 9, KT_FORWARD_TRAIN));
        CALL(INVALID_ARGUMENT, with_plan(SIZE_MAX, 9, KT_FORWARD_TRAIN));
        CALL(INVALID_ARGUMENT, with_plan(5, 5, 3));
        CALL(INVALID_ARGUMENT,
             kt_plan_get_device(w.plan, 1, &(kt_device_plan){.size = sizeof(kt_device_plan)}));
        CALL(INVALID_ARGUMENT, with_executor(9, 0, NULL));
        CALL(INVALID_ARGUMENT, with_executor(KT_COMPUTE_F32, -1, NULL));
        CALL(NOT_FOUND, with_executor(KT_COMPUTE_F32, 0, "nonsense"));
        CALL(MISMATCH, foreign(true));
        CALL(MISMATCH, foreign(false));
        CALL(INVALID_ARGUMENT, with_lora(0, 1, 0, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, NAN, 0, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, 1, 1, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, 1, 0, NULL));
        CALL(NOT_FOUND, with_lora(1, 1, 0, "nothing"));
        CALL(INVALID_ARGUMENT, with_generator(-1, 1, 0, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, NAN, 0, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, 1, -1, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, 1, 0, INT_MIN));
        CALL(STATE, kt_generator_next(w.generator, &token));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, world_ids, 0));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, (int32_t[]){1 << 30}, 1));
        CALL(INVALID_ARGUMENT, kt_optimizer_step(w.optimizer, NAN, &number));
        CALL(NOT_FOUND, kt_optimizer_load(w.optimizer, "/nonexistent"));
        CALL(UNSUPPORTED, kt_random_permutation(w.ctx, 1, SIZE_MAX, &(int64_t){0}));
        CALL(INVALID_ARGUMENT, kt_rule_add(w.rule, "(", NULL, NULL));
        CALL(INVALID_ARGUMENT, with_convert(77));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, WORLD_MODEL, WORLD_MODEL, NULL));
        CALL(NOT_FOUND, kt_tokenizer_load(w.ctx, folder, &out.tokenizer));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), "user", NULL)));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), NULL, "x")));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), "robot", "x")));
        CALL(INVALID_ARGUMENT, apply(message(0, "user", "x")));
        CALL(INVALID_ARGUMENT, two_sizes());
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template_thinking(w.tokenizer, "qwen", 7, NULL, 0, &out.ids, &num));
        CALL(NOT_FOUND, kt_tokenizer_apply_template(w.tokenizer, "x", NULL, 0, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", NULL, 0, &num));
        CALL(INVALID_ARGUMENT, decode_with(broken, NULL, 0));
        CALL(INVALID_ARGUMENT, decode_with((kt_decode_state){0}, NULL, 0));
        CALL(INVALID_ARGUMENT, decode_with(fresh, NULL, 64));
        CALL(INVALID_ARGUMENT, decode_with(fresh, NULL, 0));
    }
    return false;
}

START_TEST(nonsense_values)
{
    check_all(nonsense);
}
END_TEST

START_TEST(a_context_that_fails_says_why)
{
    kt_context_options o;
    kt_context_options_init(&o, sizeof o);
    o.num_threads = -3;
    ck_assert_int_eq(kt_context_create(&o, &out.ctx), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(NULL), "-3"));
    ck_assert_ptr_null(out.ctx);
    ck_assert_str_eq(kt_last_error(w.ctx), "");
}
END_TEST

/* The norm is told when it is the reason of the failure, and is no stale number otherwise. */
START_TEST(a_failed_step_tells_the_norm)
{
    kt_lora_tensor t = {.size = sizeof t};
    number = 7;
    ck_assert_int_eq(kt_optimizer_step(w.optimizer, -1, &number), KT_ERROR_INVALID_ARGUMENT);
    ck_assert(isnan(number));
    ck_world_ok(&w, kt_lora_get_tensor(w.lora, 0, &t));
    t.grad[0] = INFINITY;
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 0, 1));
    ck_assert_int_eq(kt_optimizer_step(w.optimizer, 1e-3, &number), KT_ERROR_NUMERIC);
    ck_assert(isinf(number));
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 1, 0));
    ck_assert(t.grad[0] == 0);
    t.grad[0] = 3;
    ck_world_ok(&w, kt_optimizer_step(w.optimizer, 1e-3, &number));
    ck_assert(number == 0 && t.grad[0] == 3);
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 0, 1));
    ck_world_ok(&w, kt_optimizer_step(w.optimizer, 1e-3, &number));
    ck_assert(number == 3 && t.grad[0] == 0);
}
END_TEST

/* The first bytes of characters say how long they are, and no sentence ends in the middle. */
START_TEST(sentences_are_not_cut_in_a_character)
{
    static const char *const characters[] = {"\xc3\xa9", "\xe4\xbd\xa0", "\xf0\x9f\x99\x82"};
    char path[2048];
    for (size_t kind = 0; kind < 3; kind++) {
        for (size_t shift = 0; shift < 5; shift++) {
            size_t length = strlen(characters[kind]), at = 1 + shift;
            memset(path, 'a', sizeof path);
            path[0] = '/';
            for (; at + length < sizeof path; at += length)
                memcpy(path + at, characters[kind], length);
            path[at] = '\0';
            ck_assert_int_ne(kt_model_load(w.ctx, path, NULL, &out.model), KT_OK);
            const char *said = kt_last_error(w.ctx);
            ck_assert_uint_gt(strlen(said), 1000);
            size_t end = strlen(said);
            ck_assert_mem_eq(said + end - length, characters[kind], length);
        }
    }
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("misuse", .setup = misuse_setup, .teardown = misuse_teardown),
        TEST(nonsense_values),
        TEST(a_context_that_fails_says_why),
        TEST(a_failed_step_tells_the_norm),
        TEST(sentences_are_not_cut_in_a_character),
    };
    return RUN_TESTS("misuse", tests);
}
