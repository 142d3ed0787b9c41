/* SPDX-License-Identifier: Apache-2.0 */
/** \file golden_case.h
 * A case of tests/reference/cases, opened: model, adapter, executor, batch and the golden numbers.
 */
#ifndef GOLDEN_CASE_H
#define GOLDEN_CASE_H

#include <kt/plan.h>
#include <kt/rule.h>
#include <stdio.h>

#include "compare.h"
#include "formats/safetensors.h"
#include "model/adapter.h"

struct golden_case {
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_batch *batch;
    struct kt_checkpoint *numbers;
};

#define ck_assert_ok(ctx, call)                                                                    \
    do {                                                                                           \
        kt_status ck_status_ = (call);                                                             \
        ck_assert_msg(ck_status_ == KT_OK, "%s: %s", #call, kt_last_error(ctx));                   \
    } while (0)

static inline const struct kt_tensor *golden_tensor(const struct golden_case *c, const char *name)
{
    const struct kt_tensor *t = kt_checkpoint_find(c->numbers, name);
    ck_assert_msg(t != NULL, "golden.safetensors has no %s", name);
    return t;
}

static inline int64_t golden_count(const struct kt_tensor *t)
{
    return (int64_t)t->bytes / (t->dtype == KT_DTYPE_I64 ? 8 : 4);
}

/** Integers of a golden tensor; free them. */
static inline int32_t *golden_ints(const struct golden_case *c, const char *name, int64_t *count)
{
    const struct kt_tensor *t = golden_tensor(c, name);
    *count = golden_count(t);
    int32_t *x = malloc((size_t)*count * sizeof *x);
    for (int64_t i = 0; i < *count; i++)
        x[i] = (int32_t)((const int64_t *)t->data)[i];
    return x;
}

/** Relative L2 error of x against a golden tensor. */
static inline double golden_error(const struct golden_case *c, const char *name, const float *x)
{
    const struct kt_tensor *t = golden_tensor(c, name);
    double *want = test_widen(golden_count(t), t->data);
    double error = test_error(golden_count(t), x, want);
    free(want);
    return error;
}

static inline float golden_number(const struct golden_case *c, const char *name, int64_t i)
{
    const struct kt_tensor *t = golden_tensor(c, name);
    ck_assert_int_lt(i, golden_count(t));
    return ((const float *)t->data)[i];
}

/** Padding after the latest sequence of `batch`, which is that sequence of the case, in cases that
 * have any. */
static inline void golden_add_padding(const struct golden_case *c, kt_batch *batch,
                                      int64_t sequence)
{
    int64_t n;
    if (!kt_checkpoint_find(c->numbers, "padding"))
        return;
    int32_t *counts = golden_ints(c, "padding", &n), *id = golden_ints(c, "padding_id", &n);
    ck_assert_ok(c->ctx, kt_batch_add_padding(batch, id[0], (size_t)counts[sequence]));
    free(counts);
    free(id);
}

static inline void golden_fill_batch(struct golden_case *c)
{
    int64_t tokens, offsets;
    int32_t *ids = golden_ints(c, "input_ids", &tokens),
            *labels = golden_ints(c, "labels", &tokens);
    int32_t *cu = golden_ints(c, "cu_seqlens", &offsets);
    for (int64_t s = 0; s + 1 < offsets; s++) {
        ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids + cu[s], labels + cu[s],
                                          (size_t)(cu[s + 1] - cu[s])));
        golden_add_padding(c, c->batch, s);
    }
    free(ids);
    free(labels);
    free(cu);
}

/** experts: a backend, or NULL for what there is. */
static inline kt_executor *golden_executor_on(const struct golden_case *c, const char *experts,
                                              kt_lora *lora, kt_compute compute, int32_t chunk)
{
    kt_executor_options options;
    kt_executor *executor;
    kt_executor_options_init(&options, sizeof options);
    options.compute = compute;
    options.logits_chunk = chunk;
    options.experts_backend = experts;
    ck_assert_ok(c->ctx, kt_executor_create(c->model, lora, &options, &executor));
    return executor;
}

static inline kt_executor *golden_executor(const struct golden_case *c, kt_lora *lora,
                                           kt_compute compute, int32_t chunk)
{
    return golden_executor_on(c, NULL, lora, compute, chunk);
}

/** What computes the experts of a case's executor; NULL where it has none. */
static inline const char *golden_experts(const struct golden_case *c)
{
    const char *name = NULL;
    for (int32_t l = 0; !name && l < c->model->config.num_hidden_layers; l++)
        name = kt_executor_experts_backend(c->executor, l);
    return name;
}

/** An executor whose layers take these devices in turn; the head has the last one. Each device with
 * memory of its own may take so many bytes, 0 = all. */
static inline kt_executor *golden_place_all(const struct golden_case *c,
                                            const char *const devices[3], const char *experts,
                                            kt_compute compute, uint64_t device_memory)
{
    int32_t layers = c->model->config.num_hidden_layers;
    char regex[64];
    kt_executor *executor;
    kt_executor_options options;
    kt_rule *rule;
    int num = 1;
    while (num < 3 && devices[num])
        num++;
    ck_assert_ok(c->ctx, kt_rule_create(c->ctx, &rule));
    for (int32_t l = 0; l < layers; l++) {
        snprintf(regex, sizeof regex, "^model\\.layers\\.%d\\.", l);
        ck_assert_ok(c->ctx, kt_rule_add(rule, regex, devices[l % num], NULL));
    }
    ck_assert_ok(c->ctx, kt_rule_add(rule, "^lm_head", devices[num - 1], NULL));
    kt_executor_options_init(&options, sizeof options);
    options.compute = compute;
    options.logits_chunk = 7;
    options.rule = rule;
    options.experts_backend = experts;
    options.device_memory = device_memory;
    ck_assert_ok(c->ctx, kt_executor_create(c->model, c->lora, &options, &executor));
    kt_rule_free(rule);
    return executor;
}

static inline kt_executor *golden_place_on(const struct golden_case *c,
                                           const char *const devices[3], const char *experts,
                                           kt_compute compute)
{
    return golden_place_all(c, devices, experts, compute, 0);
}

/** The same with the experts of the case's own executor. */
static inline kt_executor *golden_place_within(const struct golden_case *c,
                                               const char *const devices[3], kt_compute compute,
                                               uint64_t device_memory)
{
    return golden_place_all(c, devices, golden_experts(c), compute, device_memory);
}

static inline kt_executor *golden_place(const struct golden_case *c, const char *const devices[3],
                                        kt_compute compute)
{
    return golden_place_within(c, devices, compute, 0);
}

/** Chunks of 7 logits, so that they do not divide the rows. */
static inline struct golden_case golden_open_on(const char *name, const char *experts,
                                                int32_t threads, kt_compute compute)
{
    struct golden_case c = {.ctx = test_context(threads, 0)};
    char path[512];
    snprintf(path, sizeof path, "%s/cases/%s/model", KT_REFERENCE_DIR, name);
    ck_assert_ok(c.ctx, kt_model_load(c.ctx, path, NULL, &c.model));
    snprintf(path, sizeof path, "%s/cases/%s/adapter", KT_REFERENCE_DIR, name);
    ck_assert_ok(c.ctx, kt_lora_load(c.model, path, &c.lora));
    snprintf(path, sizeof path, "%s/cases/%s/golden.safetensors", KT_REFERENCE_DIR, name);
    ck_assert_ok(c.ctx, kt_checkpoint_open(c.ctx, path, &c.numbers));
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &c.batch));
    golden_fill_batch(&c);
    c.executor = golden_executor_on(&c, experts, c.lora, compute, 7);
    return c;
}

static inline struct golden_case golden_open(const char *name, int32_t threads, kt_compute compute)
{
    return golden_open_on(name, NULL, threads, compute);
}

static inline void golden_close(struct golden_case *c)
{
    kt_executor_free(c->executor);
    kt_batch_free(c->batch);
    kt_checkpoint_close(c->numbers);
    kt_lora_free(c->lora);
    kt_model_free(c->model);
    kt_context_free(c->ctx);
}

/** Forward in mode TRAIN, then backward; the loss. */
static inline double golden_step(const struct golden_case *c, kt_executor *executor)
{
    kt_loss loss = {.size = sizeof loss};
    ck_assert_ok(c->ctx, kt_executor_forward(executor, c->batch, KT_FORWARD_TRAIN, &loss));
    ck_assert_ok(c->ctx, kt_executor_backward(executor, NULL));
    return loss.loss;
}

/** Copies of all gradients, tensor after tensor; free it. */
static inline float *golden_gradients(const kt_lora *lora)
{
    float *all = malloc(kt_lora_num_parameters(lora) * sizeof *all), *end = all;
    for (size_t i = 0; i < kt_lora_num_tensors(lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_int_eq(kt_lora_get_tensor(lora, i, &t), KT_OK);
        memcpy(end, t.grad, (size_t)(t.rows * t.cols) * sizeof *end);
        end += t.rows * t.cols;
    }
    return all;
}

/** Logits of all tokens; free them. */
static inline float *golden_logits(const struct golden_case *c, kt_executor *executor)
{
    size_t vocab = (size_t)golden_count(golden_tensor(c, "logits")) / kt_batch_num_tokens(c->batch);
    float *logits = malloc(kt_batch_num_tokens(c->batch) * vocab * sizeof *logits);
    ck_assert_ok(c->ctx, kt_executor_logits(executor, c->batch, logits));
    return logits;
}

/** Every gradient against its golden one: within `tolerance`, or as many times the error that
 * "PREFIX.grad.NAME" tells of PyTorch. */
static inline void golden_check_gradients(const struct golden_case *c, const char *prefix,
                                          double tolerance)
{
    char name[512];
    for (size_t i = 0; i < kt_lora_num_tensors(c->lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c->ctx, kt_lora_get_tensor(c->lora, i, &t));
        snprintf(name, sizeof name, "grad.%s", t.name);
        ck_assert_int_eq(t.has_grad, kt_checkpoint_find(c->numbers, name) != NULL);
        if (!t.has_grad)
            continue;
        double bound = tolerance;
        if (prefix) {
            snprintf(name, sizeof name, "%s.grad.%s", prefix, t.name);
            bound *= golden_number(c, name, 0);
            snprintf(name, sizeof name, "grad.%s", t.name);
        }
        double error = golden_error(c, name, t.grad);
        ck_assert_msg(error <= bound, "%s: %g > %g", name, error, bound);
    }
}

/** Root of the mean square of all gradients' errors, beside that of PyTorch in bfloat16. */
static inline double golden_error_beside_torchs(const struct golden_case *c)
{
    char name[512];
    double ours = 0, torchs = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(c->lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c->ctx, kt_lora_get_tensor(c->lora, i, &t));
        snprintf(name, sizeof name, "bf16_error.grad.%s", t.name);
        if (!t.has_grad)
            continue;
        torchs += pow(golden_number(c, name, 0), 2);
        ours += pow(golden_error(c, name + strlen("bf16_error."), t.grad), 2);
    }
    return sqrt(ours / torchs);
}

/** What a step of so many tokens takes. */
static inline kt_plan *golden_plan(const struct golden_case *c, const kt_executor *executor,
                                   size_t tokens, size_t longest, int32_t mode)
{
    kt_plan_options options;
    kt_plan *plan;
    kt_plan_options_init(&options, sizeof options);
    options.num_tokens = tokens;
    options.max_sequence = longest;
    options.mode = mode;
    ck_assert_ok(c->ctx, kt_plan_create(executor, &options, &plan));
    return plan;
}

/** Its total. */
static inline kt_device_plan golden_plan_total(const struct golden_case *c,
                                               const kt_executor *executor, size_t tokens,
                                               size_t longest)
{
    kt_device_plan total = {.size = sizeof total};
    kt_plan *plan = golden_plan(c, executor, tokens, longest, KT_FORWARD_TRAIN);
    ck_assert_ok(c->ctx, kt_plan_get_total(plan, &total));
    kt_plan_free(plan);
    return total;
}

/** Every way to compute experts. "amx" alone needs another machine than most; its kernels are those
 * of "amx-emulated". */
static const char *const golden_backends[] = {"reference", "llamafile", "amx-emulated"};
enum { GOLDEN_BACKENDS = sizeof golden_backends / sizeof golden_backends[0] };

/** Cases with bfloat16 weights, for which PyTorch's own error in bfloat16 is known. */
static const char *const golden_bf16_cases[] = {"v3bf16",      "qwen3moebf16", "qwen2moebf16",
                                                "mixtralbf16", "qwen3bf16",    "llamabf16"};
enum { GOLDEN_BF16_CASES = sizeof golden_bf16_cases / sizeof golden_bf16_cases[0] };

static const char *const golden_cases[] = {
    "v3",           "v3bf16",   "v2",           "v2f16",     "v2lite",      "v3pad",   "qwen3moe",
    "qwen3moebf16", "qwen2moe", "qwen2moebf16", "mixtral",   "mixtralbf16", "dynamic", "qwen3",
    "qwen3bf16",    "qwen2",    "llama",        "llamabf16", "mistral"};
enum { GOLDEN_CASES = sizeof golden_cases / sizeof golden_cases[0] };

#endif
