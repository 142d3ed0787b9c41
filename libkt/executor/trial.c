/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/trial.h"

#include <stdlib.h>

#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"

void kt_trial_free(struct kt_trial *t)
{
    kt_targets_free(&t->step.targets);
    free(t->step.kept);
    free(t->cu_seqlens);
    free(t->positions);
}

static kt_status cut_sequences(const struct kt_executor *ex, struct kt_trial *t)
{
    struct kt_pass *pass = &t->step.pass;
    int64_t tokens = t->tokens - pass->padding, num = (tokens + t->longest - 1) / t->longest;
    t->cu_seqlens = calloc((size_t)num + 1, sizeof *t->cu_seqlens);
    if (!t->cu_seqlens)
        return kt_fail_memory(ex->ctx, (uint64_t)num * 4, "a plan");
    for (int64_t s = 1; s <= num; s++)
        t->cu_seqlens[s] = (int32_t)kt_min_i64(s * t->longest, tokens);
    pass->num_sequences = (int32_t)num;
    pass->cu_seqlens = pass->cu_keys = t->cu_seqlens;
    return KT_OK;
}

static kt_status place_padding(const struct kt_executor *ex, struct kt_trial *t)
{
    struct kt_pass *pass = &t->step.pass;
    t->positions = calloc((size_t)t->tokens, sizeof *t->positions);
    if (!t->positions)
        return kt_fail_memory(ex->ctx, (uint64_t)t->tokens * 4, "a plan");
    t->positions[t->tokens - 1] = (int32_t)t->tokens - 1;
    t->padding_offsets[1] = 1;
    t->padding_offsets[3] = (int32_t)t->tokens - 1;
    pass->padding = 1;
    pass->padding_offsets = t->padding_offsets;
    pass->padding_sequences = &t->padding_sequence;
    pass->positions = t->positions;
    return KT_OK;
}

static uint64_t feed_bytes(const struct kt_executor *ex, const struct kt_trial *t)
{
    struct kt_feed feed;
    struct kt_feed_sizes sizes =
        kt_step_feed_sizes(ex, t->tokens, t->longest, t->tokens, t->tokens, t->step.pass.padding);
    return kt_feed_place(&sizes, NULL, &feed);
}

static kt_status measure(const struct kt_executor *ex, struct kt_trial *t, bool padded)
{
    struct kt_pass *pass = &t->step.pass;
    int32_t layers = ex->model->config.num_hidden_layers;
    kt_pass_init(pass, ex, KT_PASS_MEASURE);
    kt_pass_prefer(pass);
    t->step.mode = t->mode;
    t->step.lowest = kt_executor_lowest_layer(ex);
    t->step.fused = kt_executor_fuses_loss(ex, t->mode);
    t->step.kept = calloc((size_t)layers, sizeof *t->step.kept);
    if (!t->step.kept)
        return kt_fail_memory(ex->ctx, (uint64_t)layers * sizeof *t->step.kept, "a plan");
    pass->tokens = t->tokens;
    pass->training = t->mode != KT_FORWARD_EVAL;
    if (padded)
        KT_TRY(place_padding(ex, t));
    KT_TRY(cut_sequences(ex, t));
    t->step.feed_bytes = feed_bytes(ex, t);
    KT_TRY(kt_targets_all(ex->ctx, &t->step.targets, t->tokens - pass->padding));
    KT_TRY(kt_step_measure(ex, &t->step));
    if (kt_workspace_size(pass) == UINT64_MAX)
        return kt_fail_memory(ex->ctx, UINT64_MAX, "the activations of a step");
    return KT_OK;
}

kt_status kt_trial_check(const struct kt_executor *ex, size_t tokens, size_t longest)
{
    if (tokens == 0 || tokens > INT32_MAX)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT, "a plan needs 1 to %d tokens",
                       INT32_MAX);
    if (longest > tokens)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a plan needs no sequence longer than all its tokens");
    return KT_OK;
}

kt_status kt_trial_measure(const struct kt_executor *ex, size_t tokens, size_t longest,
                           kt_forward_mode mode, struct kt_trial *t)
{
    *t = (struct kt_trial){
        .tokens = (int64_t)tokens, .longest = (int64_t)(longest ? longest : tokens), .mode = mode};
    KT_TRY(kt_trial_check(ex, tokens, longest));
    return measure(ex, t, false);
}

kt_status kt_trial_measure_padded(const struct kt_executor *ex, size_t tokens, struct kt_trial *t)
{
    *t = (struct kt_trial){
        .tokens = (int64_t)tokens, .longest = (int64_t)tokens, .mode = KT_FORWARD_TRAIN};
    return measure(ex, t, true);
}
