/* SPDX-License-Identifier: Apache-2.0 */
/* Drives fine-tuning one optimizer step at a time.
 *
 *     train MODEL_DIR DATASET_DIR DATASET OUTPUT_DIR
 */
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>

static kt_context *ctx;

static void must(kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "%s: %s\n", kt_status_string(status), kt_last_error(ctx));
    exit(1);
}

/* The next `count` examples, starting over at the end of the data set. */
static void fill(kt_batch *batch, const kt_dataset *dataset, size_t *position, size_t count)
{
    kt_batch_clear(batch);
    for (size_t i = 0; i < count; i++) {
        kt_example example = {.size = sizeof example};
        must(kt_dataset_get(dataset, *position, &example));
        must(kt_batch_add(batch, example.input_ids, example.labels, example.length));
        *position = (*position + 1) % kt_dataset_num_examples(dataset);
    }
}

int main(int argc, char **argv)
{
    enum { STEPS = 20, SEQUENCES = 8 };
    kt_model *model;
    kt_tokenizer *tokenizer;
    kt_dataset *dataset;
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
    kt_batch *batch;

    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL_DIR DATASET_DIR DATASET OUTPUT_DIR\n", argv[0]);
        return 2;
    }
    must(kt_context_create(NULL, &ctx));
    must(kt_model_load(ctx, argv[1], NULL, &model));
    must(kt_tokenizer_load(ctx, argv[1], &tokenizer));

    kt_dataset_options data;
    kt_dataset_options_init(&data, sizeof data);
    data.dataset_dir = argv[2];
    data.dataset = argv[3];
    data.template_name = "deepseek3";
    must(kt_dataset_load(ctx, tokenizer, &data, &dataset));

    kt_lora_options adapter;
    kt_lora_options_init(&adapter, sizeof adapter);
    adapter.rank = 8;
    must(kt_lora_create(model, &adapter, &lora));
    must(kt_executor_create(model, lora, NULL, &executor));
    must(kt_optimizer_create(lora, NULL, &optimizer));
    must(kt_batch_create(ctx, &batch));

    size_t position = 0;
    for (int step = 0; step < STEPS; step++) {
        kt_loss loss = {.size = sizeof loss};
        double grad_norm;
        fill(batch, dataset, &position, SEQUENCES);
        kt_executor_set_step(executor, (uint64_t)step);
        must(kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, &loss));
        must(kt_executor_backward(executor, NULL));
        must(kt_optimizer_step(optimizer, 1e-3, &grad_norm));
        printf("step %d  loss %.4f  grad norm %.3f\n", step + 1, loss.loss, grad_norm);
    }
    must(kt_lora_save(lora, argv[4]));

    kt_batch_free(batch);
    kt_optimizer_free(optimizer);
    kt_executor_free(executor);
    kt_lora_free(lora);
    kt_dataset_free(dataset);
    kt_tokenizer_free(tokenizer);
    kt_model_free(model);
    kt_context_free(ctx);
    return 0;
}
