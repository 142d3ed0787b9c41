/* SPDX-License-Identifier: Apache-2.0 */
/* A host in C++ that frees in the wrong order and makes mistakes: each is answered by a status and
 * a sentence.
 *
 *     host MODEL_DIR */
#include <cstdio>
#include <cstring>
#include <kt/kt.h>
#include <memory>

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

static kt_executor *reentrant;
static kt_batch *reentrant_batch;

static int32_t forward_again(void *user)
{
    auto *ctx = static_cast<kt_context *>(user);
    EXPECT(ctx, KT_ERROR_STATE,
           kt_executor_forward(reentrant, reentrant_batch, KT_FORWARD_EVAL, nullptr));
    return 0;
}

int main(int argc, char **argv)
{
    static const int32_t ids[] = {1, 2, 3, 4};
    kt_context *ctx = nullptr;
    kt_model *model = nullptr, *other = nullptr;
    kt_executor *executor = nullptr;
    kt_batch *batch = nullptr;
    if (argc != 2)
        return 2;
    EXPECT(nullptr, KT_ERROR_INVALID_ARGUMENT, kt_context_create(nullptr, nullptr));
    EXPECT(nullptr, KT_OK, kt_context_create(nullptr, &ctx));
    EXPECT(ctx, KT_ERROR_NOT_FOUND, kt_model_load(ctx, "/nonexistent", nullptr, &model));
    EXPECT(ctx, KT_ERROR_INVALID_ARGUMENT, kt_model_load(ctx, nullptr, nullptr, &model));
    EXPECT(nullptr, KT_ERROR_INVALID_ARGUMENT, kt_model_load(nullptr, argv[1], nullptr, &model));
    EXPECT(ctx, KT_OK, kt_model_load(ctx, argv[1], nullptr, &model));
    EXPECT(ctx, KT_OK, kt_executor_create(model, nullptr, nullptr, &executor));
    EXPECT(ctx, KT_OK, kt_batch_create(ctx, &batch));
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
    return failures != 0;
}
