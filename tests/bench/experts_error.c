/* SPDX-License-Identifier: Apache-2.0 */
/* What an experts backend's arithmetic costs in accuracy, on real activations.
 *
 *     bench_experts_error MODEL DATASET_DIR DATASET TEMPLATE BACKEND
 *
 * Prints the loss of MODEL over the dataset with the backend "reference" and with BACKEND, and for
 * each layer of routed experts the relative L2 difference of its outputs between BACKEND and
 * "reference" in float32, both given the inputs that a forward with "reference" has there. */
#include <kt/kt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/registry.h"
#include "executor/executor.h"
#include "model/model.h"

enum { BATCH_TOKENS = 4096 };

struct job {
    kt_context *ctx;
    kt_model *model;
    kt_tokenizer *tokenizer;
    kt_dataset *dataset;
    const char *backend;
};

/* A backend that computes what "reference" does, and compares another one with it. */
struct comparison {
    struct kt_experts base;
    struct kt_experts *reference, *other;
    double difference, norm; /* squared */
};

static void need(const struct job *job, kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "bench_experts_error: %s\n", kt_last_error(job->ctx));
    exit(1);
}

/* In the scratch of the call, which is that of either. */
static void compare_forward(struct kt_experts *e, const struct kt_expert_call *call,
                            struct kt_view y)
{
    struct comparison *c = (struct comparison *)e;
    int64_t hidden = call->layer->hidden_size;
    size_t n = (size_t)(call->routing->tokens * hidden);
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    struct kt_expert_call full = *call;
    if (!want || !got)
        exit(1);
    full.compute = KT_COMPUTE_F32;
    c->reference->ops->forward(c->reference, &full, kt_view_f32(want, hidden));
    c->other->ops->forward(c->other, call, kt_view_f32(got, hidden));
    for (size_t i = 0; i < n; i++) {
        c->difference += pow((double)got[i] - want[i], 2);
        c->norm += pow(want[i], 2);
        ((float *)y.data)[i] += want[i];
    }
    free(want), free(got);
}

static bool compare_supports(const struct kt_experts *e, const struct kt_expert_layer *layer,
                             kt_compute compute, int64_t tokens, bool training)
{
    const struct comparison *c = (const struct comparison *)e;
    return c->other->ops->supports(c->other, layer, compute, tokens, training);
}

static uint64_t compare_scratch_bytes(const struct kt_experts *e,
                                      const struct kt_expert_layer *layer, kt_compute compute,
                                      int64_t tokens, int32_t topk, bool backward)
{
    const struct comparison *c = (const struct comparison *)e;
    uint64_t reference = c->reference->ops->scratch_bytes(c->reference, layer, KT_COMPUTE_F32,
                                                          tokens, topk, backward);
    uint64_t other = c->other->ops->scratch_bytes(c->other, layer, compute, tokens, topk, backward);
    return reference > other ? reference : other;
}

static void compare_close(struct kt_experts *e)
{
    struct comparison *c = (struct comparison *)e;
    kt_experts_close(c->other);
    kt_experts_close(c->reference);
    free(c);
}

static const struct kt_experts_ops compare_ops = {
    .abi = KT_BACKEND_ABI,
    .name = "comparison",
    .supports = compare_supports,
    .scratch_bytes = compare_scratch_bytes,
    .forward = compare_forward,
    .close = compare_close,
};

static struct kt_experts *open_comparison(const struct job *job)
{
    struct comparison *c = calloc(1, sizeof *c);
    if (!c)
        exit(1);
    c->base = (struct kt_experts){.ops = &compare_ops, .ctx = job->ctx};
    need(job, kt_experts_open(job->ctx, "reference", &c->reference));
    need(job, kt_experts_open(job->ctx, job->backend, &c->other));
    return &c->base;
}

static kt_executor *open_executor(const struct job *job, const char *backend)
{
    kt_executor *executor;
    kt_executor_options options;
    kt_executor_options_init(&options, sizeof options);
    options.experts_backend = backend;
    need(job, kt_executor_create(job->model, NULL, &options, &executor));
    return executor;
}

/* Mean over all targets. */
static double loss_of(const struct job *job, kt_executor *executor)
{
    double sum = 0, targets = 0;
    size_t examples = kt_dataset_num_examples(job->dataset);
    kt_batch *batch;
    need(job, kt_batch_create(job->ctx, &batch));
    for (size_t i = 0; i < examples; i++) {
        kt_example e = {.size = sizeof e};
        kt_loss loss = {.size = sizeof loss};
        need(job, kt_dataset_get(job->dataset, i, &e));
        need(job, kt_batch_add(batch, e.input_ids, e.labels, e.length));
        if (i + 1 < examples && kt_batch_num_tokens(batch) < BATCH_TOKENS)
            continue;
        need(job, kt_executor_forward(executor, batch, KT_FORWARD_EVAL, &loss));
        sum += loss.loss_sum;
        targets += (double)loss.num_targets;
        kt_batch_clear(batch);
    }
    kt_batch_free(batch);
    return sum / targets;
}

static void compare_layers(const struct job *job)
{
    kt_executor *executor = open_executor(job, "reference");
    struct kt_experts *opened = NULL;
    for (int32_t l = 0; l < job->model->config.num_hidden_layers; l++) {
        if (!executor->experts[l])
            continue;
        opened = executor->experts[l];
        executor->experts[l] = open_comparison(job);
    }
    kt_experts_close(opened);
    loss_of(job, executor);
    for (int32_t l = 0; l < job->model->config.num_hidden_layers; l++) {
        const struct comparison *c = (const struct comparison *)executor->experts[l];
        if (c)
            printf("layer %d: relative L2 difference %.5f\n", l, sqrt(c->difference / c->norm));
    }
    kt_executor_free(executor);
}

static void open_job(struct job *job, char **argv)
{
    kt_dataset_options options;
    if (kt_context_create(NULL, &job->ctx) != KT_OK)
        exit(1);
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = argv[2];
    options.dataset = argv[3];
    options.template_name = argv[4];
    job->backend = argv[5];
    need(job, kt_model_load(job->ctx, argv[1], NULL, &job->model));
    need(job, kt_tokenizer_load(job->ctx, argv[1], &job->tokenizer));
    need(job, kt_dataset_load(job->ctx, job->tokenizer, &options, &job->dataset));
}

int main(int argc, char **argv)
{
    struct job job = {0};
    if (argc != 6) {
        fprintf(stderr, "bench_experts_error MODEL DATASET_DIR DATASET TEMPLATE BACKEND\n");
        return 2;
    }
    open_job(&job, argv);
    const char *const backends[] = {"reference", job.backend};
    for (int i = 0; i < 2; i++) {
        kt_executor *executor = open_executor(&job, backends[i]);
        printf("loss with %s: %.6f\n", backends[i], loss_of(&job, executor));
        kt_executor_free(executor);
    }
    compare_layers(&job);
    kt_dataset_free(job.dataset);
    kt_tokenizer_free(job.tokenizer);
    kt_model_free(job.model);
    kt_context_free(job.ctx);
    return 0;
}
