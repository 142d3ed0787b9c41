/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/executor.h"

/** A training step that nobody runs. */
struct trial {
    struct kt_step step;
    int32_t *cu_seqlens;
    uint64_t inputs, workspace;
};

static void free_trial(struct trial *t)
{
    kt_targets_free(&t->step.targets);
    free(t->step.kept);
    free(t->cu_seqlens);
}

/** As many sequences of the greatest length as there are tokens for, and the rest. */
static kt_status cut_sequences(const struct kt_executor *ex, int64_t tokens, int64_t longest,
                               struct trial *t)
{
    struct kt_pass *pass = &t->step.pass;
    int64_t num = (tokens + longest - 1) / longest;
    t->cu_seqlens = calloc((size_t)num + 1, sizeof *t->cu_seqlens);
    if (!t->cu_seqlens)
        return kt_fail_memory(ex->ctx, (uint64_t)num * 4, "a plan");
    for (int64_t s = 1; s <= num; s++)
        t->cu_seqlens[s] = (int32_t)kt_min_i64(s * longest, tokens);
    pass->num_sequences = (int32_t)num;
    pass->cu_seqlens = pass->cu_keys = t->cu_seqlens;
    return KT_OK;
}

/** Scratch of all devices, that of one which computes experts too counted once. */
static uint64_t scratch_bytes(const struct kt_pass *pass)
{
    uint64_t sum = pass->host.tally.scratch;
    for (int32_t i = 0; i < pass->num_stages; i++)
        sum += pass->stages[i].tally.scratch;
    return sum;
}

static uint64_t feed_bytes(const struct kt_executor *ex, int64_t tokens, int64_t longest)
{
    struct kt_feed feed;
    struct kt_feed_sizes sizes = {.tokens = tokens,
                                  .sequences = tokens,
                                  .table_rows = kt_rotary_by_length(ex->model) ? tokens : longest,
                                  .table_cols = ex->model->config.rope.dim / 2,
                                  .targets = tokens};
    return kt_feed_place(&sizes, NULL, &feed);
}

static kt_status measure(const struct kt_executor *ex, int64_t tokens, int64_t longest,
                         struct trial *t)
{
    struct kt_pass *pass = &t->step.pass;
    int32_t layers = ex->model->config.num_hidden_layers;
    kt_pass_init(pass, ex, KT_PASS_MEASURE);
    t->step.mode = KT_FORWARD_TRAIN;
    t->step.lowest = kt_executor_lowest_layer(ex);
    t->step.fused = kt_executor_fuses_loss(ex, KT_FORWARD_TRAIN);
    t->step.kept = calloc((size_t)layers, sizeof *t->step.kept);
    if (!t->step.kept)
        return kt_fail_memory(ex->ctx, (uint64_t)layers * sizeof *t->step.kept, "a plan");
    pass->tokens = tokens;
    pass->training = true;
    KT_TRY(cut_sequences(ex, tokens, longest, t));
    KT_TRY(kt_targets_all(ex->ctx, &t->step.targets, tokens));
    KT_TRY(kt_step_measure(ex, &t->step));
    t->workspace = kt_workspace_size(pass);
    if (t->workspace == UINT64_MAX)
        return kt_fail_memory(ex->ctx, UINT64_MAX, "the activations of a step");
    t->workspace += scratch_bytes(pass) + feed_bytes(ex, tokens, longest);
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        t->inputs += kt_step_inputs_size(ex, &t->step, i, tokens);
    return KT_OK;
}

static kt_status check(const struct kt_executor *ex, size_t num_tokens, size_t max_sequence)
{
    if (num_tokens == 0 || num_tokens > INT32_MAX)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT, "a plan needs 1 to %d tokens",
                       INT32_MAX);
    if (max_sequence > num_tokens)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a plan needs no sequence longer than all its tokens");
    return KT_OK;
}

kt_status kt_executor_plan_memory(const kt_executor *ex, size_t num_tokens, size_t max_sequence,
                                  kt_memory_plan *out)
{
    struct trial t = {.inputs = 0};
    KT_ENTER(ex, "executor");
    KT_TRY(kt_check_sized(ex->ctx, out, KT_SIZED(kt_memory_plan)));
    KT_TRY(check(ex, num_tokens, max_sequence));
    kt_status status =
        measure(ex, (int64_t)num_tokens, (int64_t)(max_sequence ? max_sequence : num_tokens), &t);
    free_trial(&t);
    KT_TRY(status);
    kt_memory_plan plan = {.weights_mapped = ex->model->num_bytes,
                           .adapter = ex->lora ? ex->lora->num_parameters * 4 * sizeof(float) : 0,
                           .layer_inputs = t.inputs,
                           .workspace = t.workspace};
    plan.total_allocated = plan.adapter + plan.layer_inputs + plan.workspace;
    return kt_give(ex->ctx, out, &plan, KT_SIZED(kt_memory_plan));
}

static kt_status reserve(struct kt_executor *ex, const struct trial *t, int64_t tokens)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        KT_TRY(kt_block_reserve(ex->sites[i].device, &ex->inputs[i],
                                kt_step_inputs_size(ex, &t->step, i, tokens)));
    return kt_workspace_reserve(&ex->workspace, &t->step.pass);
}

kt_status kt_executor_reserve(kt_executor *ex, size_t num_tokens)
{
    struct trial t = {.inputs = 0};
    KT_ENTER(ex, "executor");
    KT_TRY(check(ex, num_tokens, 0));
    ex->step.batch = NULL;
    kt_status status = measure(ex, (int64_t)num_tokens, (int64_t)num_tokens, &t);
    if (status == KT_OK)
        status = reserve(ex, &t, (int64_t)num_tokens);
    free_trial(&t);
    return status;
}
