/* SPDX-License-Identifier: Apache-2.0 */
/* A host in C++ that frees in the wrong order and makes mistakes: each is answered by a status and
 * a sentence.
 *
 *     host MODEL_DIR */
#include <cstdio>
#include <cstring>
#include <kt/kt.h>
#include <memory>
#include <thread>
#include <type_traits>

template <typename T, void (*release)(T *)> struct Releaser {
    void operator()(T *handle) const
    {
        release(handle);
    }
};
template <typename T, void (*release)(T *)> using Handle = std::unique_ptr<T, Releaser<T, release>>;

static int failures;

static void expect(const char *call, kt_status got, kt_status want, const kt_context *ctx)
{
    const char *said = kt_last_error(ctx);
    if (got == want && (got == KT_OK || *said))
        return;
    failures++;
    std::printf("%s: %s instead of %s: \"%s\"\n", call, kt_status_string(got),
                kt_status_string(want), said);
}

#define EXPECT(ctx, want, ...) expect(#__VA_ARGS__, __VA_ARGS__, want, ctx)

/* Every function that can fail, called with nothing: the sentence names it. */
template <typename... A> static void call_with_nothing(const char *name, kt_status (*f)(A...))
{
    expect(name, f(A{}...), KT_ERROR_INVALID_ARGUMENT, nullptr);
    if (std::strncmp(kt_last_error(nullptr), name, std::strlen(name)) != 0) {
        failures++;
        std::printf("%s: \"%s\"\n", name, kt_last_error(nullptr));
    }
}

/* With its handle alone: whatever it answers has a sentence. */
template <typename H, typename... A>
static void call_with_handle(const char *name, kt_status (*f)(H *, A...), const kt_context *ctx,
                             typename std::remove_const<H>::type *handle)
{
    kt_status got = f(handle, A{}...);
    expect(name, got, got, ctx);
}

#define NOTHING(name) call_with_nothing(#name, name)
#define HANDLE(name, handle)                                                                       \
    do {                                                                                           \
        NOTHING(name);                                                                             \
        call_with_handle(#name, name, ctx, handle);                                                \
    } while (0)

static void leave_all_out(kt_context *ctx, kt_model *model, kt_lora *lora, kt_executor *executor,
                          kt_batch *batch, kt_generator *generator, kt_optimizer *optimizer,
                          kt_rule *rule)
{
    NOTHING(kt_context_create);
    NOTHING(kt_dataset_get);
    NOTHING(kt_dataset_split);
    NOTHING(kt_tokenizer_encode);
    NOTHING(kt_tokenizer_decode);
    NOTHING(kt_tokenizer_decode_next);
    NOTHING(kt_tokenizer_apply_template);
    NOTHING(kt_tokenizer_apply_template_thinking);
    NOTHING(kt_tokenizer_stop_ids);
    HANDLE(kt_context_set_log, ctx);
    HANDLE(kt_context_set_progress, ctx);
    HANDLE(kt_context_set_cancel, ctx);
    HANDLE(kt_model_load, ctx);
    HANDLE(kt_convert, ctx);
    HANDLE(kt_rule_create, ctx);
    HANDLE(kt_rule_load, ctx);
    HANDLE(kt_batch_create, ctx);
    HANDLE(kt_schedule_rate, ctx);
    HANDLE(kt_random_permutation, ctx);
    HANDLE(kt_tokenizer_load, ctx);
    HANDLE(kt_dataset_load, ctx);
    HANDLE(kt_model_get_info, model);
    HANDLE(kt_model_get_tensor, model);
    HANDLE(kt_lora_create, model);
    HANDLE(kt_lora_load, model);
    HANDLE(kt_executor_create, model);
    HANDLE(kt_rule_add, rule);
    HANDLE(kt_lora_save, lora);
    HANDLE(kt_lora_get_tensor, lora);
    HANDLE(kt_lora_zero_grad, lora);
    HANDLE(kt_lora_touch, lora);
    HANDLE(kt_lora_set_seed, lora);
    HANDLE(kt_lora_set_grad_state, lora);
    HANDLE(kt_optimizer_create, lora);
    HANDLE(kt_batch_add, batch);
    HANDLE(kt_batch_add_padding, batch);
    HANDLE(kt_batch_clear, batch);
    HANDLE(kt_executor_forward, executor);
    HANDLE(kt_executor_backward, executor);
    HANDLE(kt_executor_logits, executor);
    HANDLE(kt_executor_reserve, executor);
    HANDLE(kt_executor_set_step, executor);
    HANDLE(kt_generator_create, executor);
    HANDLE(kt_generator_reset, generator);
    HANDLE(kt_generator_prompt, generator);
    HANDLE(kt_generator_next, generator);
    HANDLE(kt_optimizer_step, optimizer);
    HANDLE(kt_optimizer_save, optimizer);
    HANDLE(kt_optimizer_load, optimizer);
}

/* No size, a byte that is not known, a number that makes no sense. */
static void spoil_options(const kt_context *ctx, kt_executor *executor)
{
    kt_generator_options options;
    kt_generator *out;
    kt_generator_options_init(&options, sizeof options);
    options.size = 0;
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_generator_create(executor, &options, &out));
    kt_generator_options_init(&options, sizeof options);
    options.reserved[0] = 1;
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_generator_create(executor, &options, &out));
    kt_generator_options_init(&options, sizeof options);
    options.top_k = -1;
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_generator_create(executor, &options, &out));
    if (out)
        failures++;
}

static kt_executor *reentrant;
static kt_batch *reentrant_batch;

static int32_t forward_again(void *user)
{
    auto *ctx = static_cast<kt_context *>(user);
    EXPECT(ctx, KT_ERROR_STATE,
           kt_executor_forward(reentrant, reentrant_batch, KT_FORWARD_EVAL, nullptr));
    std::thread([ctx] { EXPECT(ctx, KT_ERROR_STATE, kt_batch_clear(reentrant_batch)); }).join();
    return 0;
}

int main(int argc, char **argv)
{
    static const int32_t ids[] = {1, 2, 3, 4};
    kt_context *ctx = nullptr;
    kt_model *model = nullptr, *other = nullptr;
    kt_lora *lora = nullptr;
    kt_executor *executor = nullptr;
    kt_batch *batch = nullptr;
    kt_generator *generator = nullptr;
    kt_optimizer *optimizer = nullptr;
    kt_rule *rule = nullptr;
    int32_t token = 0;
    if (argc != 2)
        return 2;
    EXPECT(nullptr, KT_ERROR_INVALID_ARGUMENT, kt_context_create(nullptr, nullptr));
    EXPECT(nullptr, KT_OK, kt_context_create(nullptr, &ctx));
    EXPECT(ctx, KT_ERROR_NOT_FOUND, kt_model_load(ctx, "/nonexistent", nullptr, &model));
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_model_load(ctx, nullptr, nullptr, &model));
    EXPECT(nullptr, KT_ERROR_INVALID_ARGUMENT, kt_model_load(nullptr, argv[1], nullptr, &model));
    EXPECT(ctx, KT_OK, kt_model_load(ctx, argv[1], nullptr, &model));
    EXPECT(ctx, KT_OK, kt_lora_create(model, nullptr, &lora));
    EXPECT(ctx, KT_OK, kt_executor_create(model, lora, nullptr, &executor));
    EXPECT(ctx, KT_OK, kt_generator_create(executor, nullptr, &generator));
    EXPECT(ctx, KT_OK, kt_optimizer_create(lora, nullptr, &optimizer));
    EXPECT(ctx, KT_OK, kt_rule_create(ctx, &rule));
    EXPECT(ctx, KT_OK, kt_batch_create(ctx, &batch));
    leave_all_out(ctx, model, lora, executor, batch, generator, optimizer, rule);
    spoil_options(ctx, executor);
    EXPECT(ctx, KT_ERROR_STATE, kt_generator_next(generator, &token));
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_optimizer_step(optimizer, -1, nullptr));
    kt_rule_free(rule);
    kt_lora_free(lora);
    kt_optimizer_free(optimizer);
    Handle<kt_executor, kt_executor_free> owned_executor(executor);
    Handle<kt_batch, kt_batch_free> owned_batch(batch);
    kt_model_options newer;
    kt_model_options_init(&newer, sizeof newer);
    newer.reserved[7] = 1;
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_model_load(ctx, argv[1], &newer, &other));
    if (other)
        failures++;
    EXPECT(ctx, KT_OK, kt_batch_add(batch, ids, ids, 4));
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_batch_add(batch, ids, ids, 0));
    EXPECT(ctx, KT_ERROR_STATE, kt_executor_backward(executor, nullptr));
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_executor_forward(executor, nullptr, 0, nullptr));
    reentrant = executor;
    reentrant_batch = batch;
    EXPECT(ctx, KT_OK, kt_context_set_cancel(ctx, forward_again, ctx));
    kt_model_free(model);
    kt_loss loss = {};
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_executor_forward(executor, batch, 0, &loss));
    loss.size = sizeof loss;
    EXPECT(ctx, KT_OK, kt_executor_forward(executor, batch, KT_FORWARD_EVAL, &loss));
    kt_context_free(ctx);
    kt_generator_free(generator);
    return failures != 0;
}
