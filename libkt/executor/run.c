/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"
#include "executor/batch.h"
#include "executor/executor.h"

kt_status kt_executor_reserve_tokens(struct kt_executor *ex, size_t tokens)
{
    if (tokens <= ex->token_capacity)
        return KT_OK;
    free(ex->positions);
    free(ex->logprobs);
    ex->token_capacity = 0;
    ex->positions = malloc(tokens * sizeof *ex->positions);
    ex->logprobs = malloc(tokens * sizeof *ex->logprobs);
    if (!ex->positions || !ex->logprobs)
        return kt_fail_memory(ex->ctx, tokens * 8, "the positions of a step");
    ex->token_capacity = tokens;
    return KT_OK;
}

static kt_status check_batch(const struct kt_executor *ex, const kt_batch *batch)
{
    int32_t vocab = ex->model->config.vocab_size;
    if (batch->num_tokens == 0)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT, "the batch has no tokens");
    for (size_t i = 0; i < batch->num_padding; i++)
        if (batch->padding_ids[i] < 0 || batch->padding_ids[i] >= vocab)
            return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                           "padding id %d is not in the model's vocabulary of %d ids",
                           batch->padding_ids[i], vocab);
    for (size_t t = 0; t < batch->num_tokens; t++)
        if (batch->input_ids[t] < 0 || batch->input_ids[t] >= vocab || batch->labels[t] >= vocab)
            return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                           "token %zu of the batch has id %d and label %d, but the model's "
                           "vocabulary has %d ids; check that tokenizer and model belong together",
                           t, batch->input_ids[t], batch->labels[t], vocab);
    return KT_OK;
}

bool kt_executor_runs_padding(const struct kt_executor *ex)
{
    for (int32_t i = 0; ex->lora && i < ex->lora->num_attached; i++)
        if (ex->model->linears[ex->lora->attached[i]].role == KT_ROLE_ROUTED_EXPERT)
            return true;
    return false;
}

/** Slots are counted in 32 bits. */
static kt_status check_slots(const struct kt_executor *ex, int64_t tokens)
{
    int32_t topk = ex->model->config.router.topk;
    if (topk && tokens > INT32_MAX / topk)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a step over a model with %d experts a token takes at most %d tokens; run "
                       "fewer sequences in one step",
                       topk, INT32_MAX / topk);
    return KT_OK;
}

static kt_status find_memory(struct kt_executor *ex, struct kt_step *step, const kt_batch *batch,
                             enum kt_pass_kind kind)
{
    KT_TRACE_HOST(ex->ctx, "plan");
    struct kt_pass *pass = &step->pass;
    int64_t tokens = (int64_t)batch->num_tokens;
    bool runs_padding = step->mode != KT_FORWARD_EVAL && kt_executor_runs_padding(ex);
    int64_t padding = runs_padding ? (int64_t)batch->num_padding : 0;
    KT_TRY(check_slots(ex, tokens + padding));
    KT_TRY(kt_executor_reserve_tokens(ex, (size_t)(tokens + padding)));
    kt_pass_init(pass, ex, KT_PASS_MEASURE);
    kt_pass_prefer(pass);
    pass->tokens = tokens + padding;
    pass->padding = padding;
    pass->training = step->mode != KT_FORWARD_EVAL;
    KT_TRY(kt_step_feed(ex, step, batch, padding));
    KT_TRY(kt_step_measure(ex, step));
    KT_TRY(kt_step_reserve(ex, step, tokens));
    kt_workspace_enter(&ex->workspace, ex, pass, kind, 0);
    return KT_OK;
}

/** Everything a step over the batch needs, memory and scratch of all devices among it, before
 * anything is computed. What a step got that was too large does not stay, so that a smaller one
 * finds the room it would have found without it. */
static kt_status prepare(struct kt_executor *ex, struct kt_step *step, const kt_batch *batch,
                         enum kt_pass_kind kind)
{
    kt_status status = find_memory(ex, step, batch, kind);
    if (status == KT_ERROR_OUT_OF_MEMORY)
        kt_executor_let_go(ex);
    return status;
}

static void key_dropout(struct kt_executor *ex, uint64_t step)
{
    for (int32_t i = 0; ex->lora && i < ex->lora->num_attached; i++) {
        int32_t linear = ex->lora->attached[i];
        uint32_t words[4];
        kt_philox(ex->lora->seed, (uint64_t)linear, step, words);
        ex->lora->slots[linear].dropout_key = (uint64_t)words[0] << 32 | words[1];
    }
}

/** The host's gradient instead of the mean's. */
static void set_dlogprobs(struct kt_executor *ex, const struct kt_step *step,
                          const float *dlogprobs)
{
    const struct kt_targets *targets = &step->targets;
    float *to = ex->workspace.feed.dlogprobs;
    for (int64_t i = 0; i < targets->num_runs; i++)
        for (int64_t k = 0; k < targets->runs[i].count; k++)
            *to++ = dlogprobs[targets->runs[i].begin + k + 1];
}

/** Spreads the rows' log-probabilities over the batch; their negated sum. */
static double spread_logprobs(struct kt_executor *ex, const struct kt_step *step)
{
    const struct kt_targets *targets = &step->targets;
    const float *from = ex->workspace.feed.logprobs;
    double sum = 0;
    memset(ex->logprobs, 0, (size_t)step->pass.tokens * sizeof *ex->logprobs);
    for (int64_t i = 0; i < targets->num_runs; i++) {
        for (int64_t k = 0; k < targets->runs[i].count; k++, from++) {
            ex->logprobs[targets->runs[i].begin + k + 1] = *from;
            sum -= *from;
        }
    }
    return sum;
}

static kt_status report_loss(kt_context *ctx, const struct kt_step *step, double sum, kt_loss *out)
{
    kt_loss loss = {.loss = step->num_targets ? sum / (double)step->num_targets : 0,
                    .loss_sum = sum,
                    .num_targets = (uint64_t)step->num_targets};
    return kt_give(ctx, out, &loss, KT_SIZED(kt_loss));
}

static kt_status check_forward(const struct kt_executor *ex, int32_t mode, const kt_loss *loss)
{
    if (mode != KT_FORWARD_EVAL && mode != KT_FORWARD_TRAIN && mode != KT_FORWARD_CUSTOM)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT, "forward has no mode %d", mode);
    return loss ? kt_check_sized(ex->ctx, loss, KT_SIZED(kt_loss)) : KT_OK;
}

/** Holds the batch of a forward instead of the one before, which no backward follows then. */
static kt_status hold_batch(struct kt_executor *ex, const kt_batch *batch)
{
    ex->step.batch = NULL;
    KT_TRY(kt_check_given(ex->ctx, batch, "batch"));
    if (batch->ctx != ex->ctx)
        return kt_fail(ex->ctx, KT_ERROR_MISMATCH,
                       "the batch was made from another context than the executor");
    kt_handle_hold(batch);
    kt_handle_drop((void *)ex->held_batch);
    ex->held_batch = batch;
    return KT_OK;
}

/** Nothing is left queued when it returns. */
static kt_status run_forward(struct kt_executor *ex, struct kt_step *step, const kt_batch *batch)
{
    step->batch = batch;
    kt_status status = kt_step_forward(ex, step);
    step->batch = NULL;
    if (status != KT_OK)
        (void)kt_pass_finish(&step->pass);
    return status;
}

kt_status kt_executor_forward(kt_executor *ex, const kt_batch *batch, int32_t mode, kt_loss *loss)
{
    KT_ENTER(ex, "executor");
    KT_TRACE_PHASE(ex->ctx, KT_PHASE_FORWARD);
    KT_TRY(hold_batch(ex, batch));
    struct kt_step *step = &ex->step;
    KT_TRY(check_forward(ex, mode, loss));
    KT_TRY(check_batch(ex, batch));
    if (mode == KT_FORWARD_TRAIN && batch->num_targets == 0)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "no token of the batch has a label, so there is nothing to train on");
    step->mode = (kt_forward_mode)mode;
    step->logits = NULL;
    step->num_targets = (int64_t)batch->num_targets;
    step->lowest = kt_executor_lowest_layer(ex);
    step->fused = kt_executor_fuses_loss(ex, step->mode);
    step->number = ex->step_number;
    KT_TRY(kt_targets_find(ex->ctx, &step->targets, batch));
    KT_TRY(prepare(ex, step, batch, KT_PASS_REPORTING));
    key_dropout(ex, step->number);
    KT_TRY(run_forward(ex, step, batch));
    double sum = spread_logprobs(ex, step);
    if (!isfinite(sum))
        return kt_fail(ex->ctx, KT_ERROR_NUMERIC,
                       "the loss is not finite; check the weights for NaN, or lower the learning "
                       "rate");
    if (loss)
        KT_TRY(report_loss(ex->ctx, step, sum, loss));
    if (mode != KT_FORWARD_EVAL)
        step->batch = batch;
    step->batch_version = batch->version;
    return KT_OK;
}

const float *kt_executor_logprobs(const kt_executor *ex)
{
    return ex ? ex->logprobs : NULL;
}

kt_status kt_executor_backward(kt_executor *ex, const float *dlogprobs)
{
    KT_ENTER(ex, "executor");
    KT_TRACE_PHASE(ex->ctx, KT_PHASE_BACKWARD);
    struct kt_step *step = &ex->step;
    if (!ex->lora)
        return kt_fail(ex->ctx, KT_ERROR_STATE, "backward needs an executor made with an adapter");
    if (!step->batch)
        return kt_fail(ex->ctx, KT_ERROR_STATE,
                       "backward needs a forward in mode TRAIN or CUSTOM before it");
    if (step->batch->version != step->batch_version)
        return kt_fail(ex->ctx, KT_ERROR_STATE,
                       "the batch was changed after its forward; leave it alone until backward");
    if (!dlogprobs && step->mode == KT_FORWARD_CUSTOM)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "backward of a custom loss needs its gradient dlogprobs");
    if (dlogprobs) {
        set_dlogprobs(ex, step, dlogprobs);
        step->fused = false;
    }
    KT_TRY(kt_workspace_reserve_scratch(&step->pass));
    key_dropout(ex, step->number);
    kt_status status = kt_step_backward(ex, step);
    step->batch = NULL;
    if (status != KT_OK) {
        (void)kt_pass_finish(&step->pass);
        kt_adapter_zero_grad(ex->lora);
    }
    return status;
}

kt_status kt_executor_logits(kt_executor *ex, const kt_batch *batch, float *logits)
{
    KT_ENTER(ex, "executor");
    KT_TRACE_PHASE(ex->ctx, KT_PHASE_FORWARD);
    KT_TRY(hold_batch(ex, batch));
    KT_TRY(kt_check_given(ex->ctx, logits, "logits"));
    struct kt_step *step = &ex->step;
    KT_TRY(check_batch(ex, batch));
    step->mode = KT_FORWARD_EVAL;
    step->fused = false;
    step->logits = logits;
    step->targets.num_rows = step->targets.num_runs = 0;
    step->lowest = ex->model->config.num_hidden_layers;
    KT_TRY(prepare(ex, step, batch, KT_PASS_QUIET));
    return run_forward(ex, step, batch);
}
