/* SPDX-License-Identifier: Apache-2.0 */
/* NULL for every handle and every pointer that must be given, and where it is harmless. */
#include <check.h>
#include <kt/kt.h>

#include "misuse.h"
#include "main.h"

static bool no_handle(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    switch (i) {
        LOST(kt_context_create(NULL, NULL));
        LOST(kt_context_set_log(NULL, NULL, NULL));
        LOST(kt_context_set_progress(NULL, NULL, NULL));
        LOST(kt_context_set_cancel(NULL, NULL, NULL));
        LOST(kt_model_load(NULL, WORLD_MODEL, NULL, &out.model));
        LOST(kt_model_check_finite(NULL));
        LOST(kt_model_get_info(NULL, &(kt_model_info){.size = sizeof(kt_model_info)}));
        LOST(kt_model_get_tensor(NULL, 0, &(kt_tensor_info){.size = sizeof(kt_tensor_info)}));
        LOST(kt_convert(NULL, WORLD_MODEL, folder, NULL));
        LOST(kt_rule_create(NULL, &out.rule));
        LOST(kt_rule_load(NULL, "/rule.yaml", &out.rule));
        LOST(kt_rule_add(NULL, "x", NULL, NULL));
        LOST(kt_lora_create(NULL, NULL, &out.lora));
        LOST(kt_lora_load(NULL, folder, &out.lora));
        LOST(kt_lora_save(NULL, folder));
        LOST(kt_lora_get_tensor(NULL, 0, &(kt_lora_tensor){.size = sizeof(kt_lora_tensor)}));
        LOST(kt_lora_zero_grad(NULL));
        LOST(kt_lora_touch(NULL));
        LOST(kt_lora_set_seed(NULL, 1));
        LOST(kt_lora_set_grad_state(NULL, 0, 1));
        LOST(kt_batch_create(NULL, &out.batch));
        LOST(kt_batch_clear(NULL));
        LOST(kt_batch_add(NULL, world_ids, NULL, 1));
        LOST(kt_batch_add_padding(NULL, 0, 1));
        LOST(kt_executor_create(NULL, NULL, NULL, &out.executor));
        LOST(kt_executor_forward(NULL, w.batch, KT_FORWARD_EVAL, NULL));
        LOST(kt_executor_backward(NULL, NULL));
        LOST(kt_executor_logits(NULL, w.batch, floats));
        LOST(kt_plan_create(NULL, NULL, &out.plan));
        LOST(kt_plan_get_device(NULL, 0, &(kt_device_plan){.size = sizeof(kt_device_plan)}));
        LOST(kt_plan_get_total(NULL, &(kt_device_plan){.size = sizeof(kt_device_plan)}));
        LOST(kt_trace_create(NULL, NULL, &out.trace));
        LOST(kt_trace_finish(NULL));
        LOST(kt_trace_get_row(NULL, 0, &(kt_trace_row){.size = sizeof(kt_trace_row)}));
        LOST(kt_executor_reserve(NULL, 1));
        LOST(kt_executor_set_step(NULL, 1));
        LOST(kt_executor_get_sharing(NULL, &out.record));
        LOST(kt_executor_set_sharing(NULL, "kt-sharing-1"));
        LOST(kt_generator_create(NULL, NULL, &out.generator));
        LOST(kt_generator_prompt(NULL, world_ids, 1));
        LOST(kt_generator_next(NULL, &token));
        LOST(kt_optimizer_create(NULL, NULL, &out.optimizer));
        LOST(kt_optimizer_step(NULL, 1e-3, NULL));
        LOST(kt_optimizer_save(NULL, folder));
        LOST(kt_optimizer_load(NULL, folder));
        LOST(kt_schedule_rate(NULL, NULL, 0, &number));
        LOST(kt_random_permutation(NULL, 1, 1, &(int64_t){0}));
        LOST(kt_tokenizer_load(NULL, folder, &out.tokenizer));
        LOST(kt_tokenizer_encode(NULL, "x", 1, 0, &out.ids, &num));
        LOST(kt_tokenizer_decode(NULL, world_ids, 1, 0, &out.text, &num));
        LOST(kt_tokenizer_decode_next(NULL, &(kt_decode_state){.size = sizeof(kt_decode_state)}, 1,
                                      NULL, 0, &num));
        LOST(kt_tokenizer_apply_template(NULL, "qwen", NULL, 0, &out.ids, &num));
        LOST(kt_tokenizer_apply_template_thinking(NULL, "qwen", 0, NULL, 0, &out.ids, &num));
        LOST(kt_tokenizer_stop_ids(NULL, "qwen", &token, 1, &num));
        LOST(kt_dataset_load(NULL, w.tokenizer, NULL, &out.dataset));
        LOST(kt_dataset_get(NULL, 0, &(kt_example){.size = sizeof(kt_example)}));
        LOST(kt_dataset_split(NULL, 0.5, 1, &out.dataset));
    }
    return false;
}

static bool no_pointer(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    switch (i) {
        CALL(INVALID_ARGUMENT, kt_model_load(w.ctx, NULL, NULL, &out.model));
        CALL(INVALID_ARGUMENT, kt_model_load(w.ctx, WORLD_MODEL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_model_get_info(w.model, NULL));
        CALL(INVALID_ARGUMENT, kt_model_get_tensor(w.model, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, NULL, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, WORLD_MODEL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_rule_create(w.ctx, NULL));
        CALL(INVALID_ARGUMENT, kt_rule_load(w.ctx, NULL, &out.rule));
        CALL(INVALID_ARGUMENT, kt_rule_load(w.ctx, "/rule.yaml", NULL));
        CALL(INVALID_ARGUMENT, kt_lora_create(w.model, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_load(w.model, NULL, &out.lora));
        CALL(INVALID_ARGUMENT, kt_lora_load(w.model, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_save(w.lora, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_get_tensor(w.lora, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_batch_create(w.ctx, NULL));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, NULL, NULL, 3));
        CALL(INVALID_ARGUMENT, kt_executor_create(w.model, NULL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, NULL, KT_FORWARD_EVAL, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_logits(w.executor, NULL, floats));
        CALL(INVALID_ARGUMENT, kt_executor_logits(w.executor, w.batch, NULL));
        CALL(INVALID_ARGUMENT, kt_plan_create(w.executor, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_plan_get_device(w.plan, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_plan_get_total(w.plan, NULL));
        CALL(INVALID_ARGUMENT, kt_trace_create(w.ctx, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_generator_create(w.executor, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, NULL, 1));
        CALL(INVALID_ARGUMENT, kt_generator_next(w.generator, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_create(w.lora, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_save(w.optimizer, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_load(w.optimizer, NULL));
        CALL(INVALID_ARGUMENT, kt_schedule_rate(w.ctx, NULL, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_random_permutation(w.ctx, 1, 3, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_load(w.ctx, NULL, &out.tokenizer));
        CALL(INVALID_ARGUMENT, kt_tokenizer_load(w.ctx, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, NULL, 5, 1, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, "x", 1, 1, NULL, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, "x", 1, 1, &out.ids, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, NULL, 3, 0, &out.text, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, world_ids, 1, 0, NULL, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, world_ids, 1, 0, &out.text, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode_next(w.tokenizer, NULL, 1, NULL, 0, &num));
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template(w.tokenizer, NULL, NULL, 0, &out.ids, &num));
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template(w.tokenizer, "qwen", NULL, 1, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", &token, 1, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, NULL, &token, 1, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", NULL, 8, &num));
        CALL(INVALID_ARGUMENT, kt_dataset_load(w.ctx, NULL, NULL, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_dataset_load(w.ctx, w.tokenizer, NULL, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_dataset_get(w.dataset, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_dataset_split(w.dataset, 0.5, 1, NULL));
    }
    return false;
}

START_TEST(null_handles)
{
    check_all(no_handle);
}
END_TEST

START_TEST(null_pointers)
{
    check_all(no_pointer);
}
END_TEST

START_TEST(null_is_harmless)
{
    static struct world nothing;
    world_close(&nothing);
    kt_free(NULL);
    kt_context_cancel(NULL);
    kt_context_clear_cancel(NULL);
    ck_assert_ptr_nonnull(kt_last_error(NULL));
    ck_assert_int_eq(kt_context_num_threads(NULL), 0);
    ck_assert_str_eq(kt_context_cpu_description(NULL), "");
    ck_assert_uint_eq(kt_context_memory_used(NULL) + kt_context_memory_peak(NULL), 0);
    ck_assert_uint_gt(kt_context_host_memory(NULL), 0);
    ck_assert_uint_eq(kt_model_num_tensors(NULL) + kt_model_num_linears(NULL), 0);
    ck_assert_ptr_null(kt_model_linear_name(NULL, 0));
    ck_assert_ptr_null(kt_model_linear_name(w.model, SIZE_MAX));
    ck_assert_uint_eq(kt_lora_num_tensors(NULL) + kt_lora_num_parameters(NULL), 0);
    ck_assert_uint_eq(kt_batch_num_sequences(NULL) + kt_batch_num_tokens(NULL), 0);
    ck_assert_uint_eq(kt_batch_num_targets(NULL) + kt_dataset_num_examples(NULL), 0);
    ck_assert(!kt_batch_input_ids(NULL) && !kt_batch_labels(NULL) && !kt_batch_cu_seqlens(NULL));
    ck_assert(!kt_executor_logprobs(NULL) && !kt_generator_logits(NULL));
    ck_assert_uint_eq(
        kt_generator_length(NULL) + kt_plan_num_devices(NULL) + kt_trace_num_rows(NULL), 0);
    ck_assert_ptr_null(kt_executor_experts_backend(NULL, 0));
    ck_assert_ptr_null(kt_executor_experts_backend(w.executor, -1));
    ck_assert_ptr_null(kt_executor_experts_backend(w.executor, INT_MAX));
    ck_assert_str_eq(kt_rule_device(NULL, "x"), "cpu");
    ck_assert_str_eq(kt_rule_device(w.rule, NULL), "cpu");
    ck_assert_str_eq(kt_rule_experts_backend(NULL, NULL), "auto");
    ck_assert_int_eq(kt_tokenizer_vocab_size(NULL), 0);
    ck_assert_int_eq(kt_tokenizer_bos_id(NULL) + kt_tokenizer_eos_id(NULL), -2);
    ck_assert_int_eq(kt_tokenizer_pad_id(NULL) + kt_tokenizer_token_id(NULL, "x"), -2);
    ck_assert_int_eq(kt_tokenizer_token_id(w.tokenizer, NULL), -1);
    ck_assert_str_eq(kt_dtype_name(-5), "?");
    ck_assert_str_eq(kt_status_string(INT_MIN), "unknown status");
    ck_assert_uint_eq(kt_version(), KT_VERSION);
    ck_assert_uint_eq(kt_api_version(), KT_API_VERSION);
}
END_TEST

START_TEST(an_empty_text_may_be_null)
{
    ck_world_ok(&w, kt_tokenizer_encode(w.tokenizer, NULL, 0, 0, &out.ids, &num));
    ck_assert_uint_eq(num, 0);
    kt_free(out.ids);
    ck_world_ok(&w, kt_tokenizer_decode(w.tokenizer, NULL, 0, 0, &out.text, &num));
    ck_assert_str_eq(out.text, "");
    kt_free(out.text);
    ck_world_ok(&w, kt_random_permutation(w.ctx, 1, 0, NULL));
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("null", .setup = misuse_setup, .teardown = misuse_teardown),
        TEST(null_handles),
        TEST(null_pointers),
        TEST(null_is_harmless),
        TEST(an_empty_text_may_be_null),
    };
    return RUN_TESTS("null", tests);
}
