/* SPDX-License-Identifier: Apache-2.0 */
/* A program that was built with the headers of 0.1 and runs with the library of today: what structs
 * of that size give and take means what it meant.
 *
 *     old MODEL_DIR */
#include "kt-0.1.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int failures, lines;

static void expect(int holds, const char *what, const kt_context *ctx)
{
    failures += !holds;
    if (!holds)
        printf("%s: %s\n", what, kt_last_error(ctx));
}

#define EXPECT(holds) expect(holds, #holds, ctx)
#define OK(call) expect((call) == KT_OK, #call, ctx)

static void count_lines(void *user, int32_t level, const char *message)
{
    lines += user == &lines && level >= 0 && message != NULL;
}

static kt_context *open_context(void)
{
    kt_context *ctx = NULL;
    kt_context_options options;
    memset(&options, 0xff, sizeof options);
    kt_context_options_init(&options, sizeof options);
    EXPECT(options.size == sizeof options && options.pin_threads == 1 && !options.alloc);
    options.num_threads = 1;
    options.log = count_lines;
    options.user = &lines;
    OK(kt_context_create(&options, &ctx));
    options.reserved[sizeof options.reserved / sizeof *options.reserved - 1] = 1;
    EXPECT(kt_context_create(&options, &(kt_context *){NULL}) == KT_ERROR_INVALID_ARGUMENT);
    return ctx;
}

static void train(kt_context *ctx, kt_lora *lora, kt_executor *executor)
{
    static const int32_t ids[] = {1, 2, 3, 4};
    kt_batch *batch;
    kt_optimizer *optimizer;
    kt_optimizer_options options;
    kt_loss loss = {.size = sizeof loss};
    kt_lora_tensor tensor = {.size = sizeof tensor};
    double norm = 0;
    kt_optimizer_options_init(&options, sizeof options);
    EXPECT(options.beta1 == 0.9 && options.max_grad_norm == 1);
    OK(kt_batch_create(ctx, &batch));
    OK(kt_batch_add(batch, ids, ids, 4));
    OK(kt_optimizer_create(lora, &options, &optimizer));
    OK(kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, &loss));
    OK(kt_executor_backward(executor, NULL));
    OK(kt_lora_get_tensor(lora, 1, &tensor));
    EXPECT(tensor.data && tensor.grad && tensor.has_grad == 1 && tensor.rows > 0);
    OK(kt_optimizer_step(optimizer, 1e-3, &norm));
    EXPECT(isfinite(loss.loss) && loss.loss > 0 && loss.num_targets == 4 && norm > 0);
    kt_optimizer_free(optimizer);
    kt_batch_free(batch);
}

static void generate(kt_context *ctx, kt_executor *executor, int32_t vocabulary)
{
    static const int32_t ids[] = {1, 2, 3, 4};
    kt_generator *generator;
    kt_generator_options options;
    int32_t token = -1;
    kt_generator_options_init(&options, sizeof options);
    EXPECT(options.top_k == 50 && options.seed == 42);
    options.temperature = 0;
    OK(kt_generator_create(executor, &options, &generator));
    OK(kt_generator_prompt(generator, ids, 4));
    OK(kt_generator_next(generator, &token));
    EXPECT(token >= 0 && token < vocabulary);
    kt_generator_free(generator);
}

int main(int argc, char **argv)
{
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_lora_options options;
    kt_model_info info = {.size = sizeof info};
    if (argc != 2)
        return 2;
    kt_context *ctx = open_context();
    EXPECT(kt_api_version() >= 1);
    OK(kt_model_load(ctx, argv[1], NULL, &model));
    if (failures)
        return 1;
    OK(kt_model_get_info(model, &info));
    EXPECT(info.size == sizeof info && info.vocab_size > 0 && info.num_hidden_layers > 0);
    kt_lora_options_init(&options, sizeof options);
    options.rank = 2;
    OK(kt_lora_create(model, &options, &lora));
    OK(kt_executor_create(model, lora, NULL, &executor));
    train(ctx, lora, executor);
    generate(ctx, executor, info.vocab_size);
    EXPECT(lines > 0);
    kt_executor_free(executor);
    kt_lora_free(lora);
    kt_model_free(model);
    kt_context_free(ctx);
    return failures != 0;
}
