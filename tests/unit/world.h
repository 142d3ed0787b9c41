/* SPDX-License-Identifier: Apache-2.0 */
/** \file world.h
 * One of each handle, as a host makes them from the public headers alone. */
#ifndef KT_TESTS_WORLD_H
#define KT_TESTS_WORLD_H

#include <check.h>
#include <kt/kt.h>
#include <stdlib.h>
#include <string.h>

#define WORLD_MODEL KT_REFERENCE_DIR "/cases/v3bf16/model"

struct world {
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_batch *batch;
    kt_optimizer *optimizer;
    kt_generator *generator;
    kt_tokenizer *tokenizer;
    kt_rule *rule;
    kt_dataset *dataset;
    kt_plan *plan;
    kt_trace *trace; /**< that has not ended */
};

static const int32_t world_ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
enum { WORLD_TOKENS = sizeof world_ids / sizeof *world_ids };

#define ck_world_ok(w, call)                                                                       \
    ck_assert_msg((call) == KT_OK, "%s: %s", #call, kt_last_error((w)->ctx))

static void world_load_dataset(struct world *w)
{
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = KT_REFERENCE_DIR "/text/data";
    options.dataset = "en";
    options.template_name = "qwen";
    ck_world_ok(w, kt_dataset_load(w->ctx, w->tokenizer, &options, &w->dataset));
}

static void world_make_plan(struct world *w)
{
    kt_plan_options options;
    kt_plan_options_init(&options, sizeof options);
    options.num_tokens = WORLD_TOKENS;
    ck_world_ok(w, kt_plan_create(w->executor, &options, &w->plan));
}

/** `options` NULL = one thread and no callbacks. */
static void world_open(struct world *w, const kt_context_options *options)
{
    kt_context_options defaults;
    kt_lora_options adapter;
    kt_context_options_init(&defaults, sizeof defaults);
    defaults.num_threads = 1;
    ck_assert_int_eq(kt_context_create(options ? options : &defaults, &w->ctx), KT_OK);
    ck_world_ok(w, kt_model_load(w->ctx, WORLD_MODEL, NULL, &w->model));
    kt_lora_options_init(&adapter, sizeof adapter);
    adapter.rank = 2;
    ck_world_ok(w, kt_lora_create(w->model, &adapter, &w->lora));
    ck_world_ok(w, kt_executor_create(w->model, w->lora, NULL, &w->executor));
    ck_world_ok(w, kt_batch_create(w->ctx, &w->batch));
    ck_world_ok(w, kt_batch_add(w->batch, world_ids, world_ids, WORLD_TOKENS));
    ck_world_ok(w, kt_optimizer_create(w->lora, NULL, &w->optimizer));
    ck_world_ok(w, kt_generator_create(w->executor, NULL, &w->generator));
    ck_world_ok(w, kt_tokenizer_load(w->ctx, KT_REFERENCE_DIR "/text/tiny", &w->tokenizer));
    ck_world_ok(w, kt_rule_create(w->ctx, &w->rule));
    world_load_dataset(w);
    world_make_plan(w);
    ck_world_ok(w, kt_trace_create(w->ctx, NULL, &w->trace));
}

enum { WORLD_HANDLES = 12 };

/** Frees one of them; `which` is 0 (the context) .. WORLD_HANDLES - 1. */
static void world_free(struct world *w, int which)
{
    switch (which) {
    case 0:
        kt_context_free(w->ctx);
        break;
    case 1:
        kt_model_free(w->model);
        break;
    case 2:
        kt_lora_free(w->lora);
        break;
    case 3:
        kt_executor_free(w->executor);
        break;
    case 4:
        kt_batch_free(w->batch);
        break;
    case 5:
        kt_optimizer_free(w->optimizer);
        break;
    case 6:
        kt_generator_free(w->generator);
        break;
    case 7:
        kt_tokenizer_free(w->tokenizer);
        break;
    case 8:
        kt_rule_free(w->rule);
        break;
    case 9:
        kt_dataset_free(w->dataset);
        break;
    case 10:
        kt_plan_free(w->plan);
        break;
    case 11:
        kt_trace_free(w->trace);
        break;
    }
}

static void world_close(struct world *w)
{
    for (int i = 0; i < WORLD_HANDLES; i++)
        world_free(w, i);
}

#endif
