/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/head.h"

#include <stdlib.h>

#include "core/context.h"
#include "core/memory.h"

static kt_status reserve(kt_context *ctx, struct kt_targets *targets, size_t tokens)
{
    if ((int64_t)tokens <= targets->capacity)
        return KT_OK;
    kt_targets_free(targets);
    targets->runs = calloc(tokens, sizeof *targets->runs);
    targets->ids = calloc(tokens, sizeof *targets->ids);
    targets->logprobs = calloc(tokens, sizeof *targets->logprobs);
    targets->dlogprobs = calloc(tokens, sizeof *targets->dlogprobs);
    if (!targets->runs || !targets->ids || !targets->logprobs || !targets->dlogprobs) {
        kt_targets_free(targets);
        return kt_fail_memory(ctx, tokens * 28, "the targets of a step");
    }
    targets->capacity = (int64_t)tokens;
    return KT_OK;
}

static void extend_runs(struct kt_targets *targets, int64_t t)
{
    struct kt_target_run *last = targets->num_runs ? &targets->runs[targets->num_runs - 1] : NULL;
    if (last && last->begin + last->count == t)
        last->count++;
    else
        targets->runs[targets->num_runs++] = (struct kt_target_run){t, 1};
}

kt_status kt_targets_find(kt_context *ctx, struct kt_targets *targets, const kt_batch *batch)
{
    const int32_t *labels = kt_batch_labels(batch), *cu_seqlens = kt_batch_cu_seqlens(batch);
    KT_TRY(reserve(ctx, targets, kt_batch_num_tokens(batch)));
    targets->num_rows = targets->num_runs = 0;
    for (size_t s = 0; s < kt_batch_num_sequences(batch); s++) {
        for (int64_t t = cu_seqlens[s]; t + 1 < cu_seqlens[s + 1]; t++) {
            if (labels[t + 1] == KT_IGNORE_LABEL)
                continue;
            targets->ids[targets->num_rows++] = labels[t + 1];
            extend_runs(targets, t);
        }
    }
    return KT_OK;
}

kt_status kt_targets_all(kt_context *ctx, struct kt_targets *targets, int64_t tokens)
{
    KT_TRY(reserve(ctx, targets, (size_t)tokens));
    targets->num_rows = tokens;
    targets->num_runs = 1;
    targets->runs[0] = (struct kt_target_run){0, tokens};
    return KT_OK;
}

void kt_targets_free(struct kt_targets *targets)
{
    free(targets->runs);
    free(targets->ids);
    free(targets->logprobs);
    free(targets->dlogprobs);
    *targets = (struct kt_targets){0};
}

kt_status kt_head_norm(struct kt_pass *pass, const struct kt_targets *targets, const float *x,
                       float *h)
{
    int64_t hidden = pass->model->config.hidden_size, row = 0;
    for (int64_t i = 0; i < targets->num_runs; i++) {
        struct kt_target_run run = targets->runs[i];
        KT_TRY(pass->device->ops->rmsnorm_forward(
            pass->device, run.count, hidden, pass->model->config.rms_norm_eps,
            pass->model->final_norm, x + run.begin * hidden, hidden, h + row * hidden, hidden));
        row += run.count;
    }
    return KT_OK;
}

kt_status kt_head_norm_backward(struct kt_pass *pass, const struct kt_targets *targets,
                                const float *x, const float *dh, float *dx)
{
    int64_t hidden = pass->model->config.hidden_size, row = 0;
    KT_TRY(kt_zero(pass, pass->tokens, hidden, dx));
    for (int64_t i = 0; i < targets->num_runs; i++) {
        struct kt_target_run run = targets->runs[i];
        int64_t at = run.begin * hidden;
        KT_TRY(pass->device->ops->rmsnorm_backward(pass->device, run.count, hidden,
                                                   pass->model->config.rms_norm_eps,
                                                   pass->model->final_norm, x + at, hidden,
                                                   dh + row * hidden, hidden, 0, dx + at, hidden));
        row += run.count;
    }
    return KT_OK;
}

kt_status kt_head_loss(struct kt_pass *pass, const struct kt_targets *targets, int64_t chunk,
                       int backward, float *h)
{
    const struct kt_linear *head = pass->model->lm_head;
    int64_t hidden = head->weight.cols, vocab = head->weight.rows;
    uint64_t mark = pass->arena.used;
    float *logits = kt_arena_floats(&pass->arena, kt_min_i64(chunk, targets->num_rows), vocab);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    for (int64_t row = 0; row < targets->num_rows; row += chunk) {
        int64_t rows = kt_min_i64(chunk, targets->num_rows - row);
        float *x = h + row * hidden;
        KT_TRY(pass->kind == KT_PASS_MEASURE ? KT_OK : kt_check_cancel(pass->ctx));
        pass->dropout_row = row;
        KT_TRY(kt_linear_forward(pass, head, rows, x, hidden, 0, logits, vocab));
        KT_TRY(pass->device->ops->cross_entropy(
            pass->device, rows, vocab, logits, vocab, targets->ids + row,
            backward ? targets->dlogprobs + row : NULL, targets->logprobs + row));
        if (backward)
            KT_TRY(kt_linear_backward(pass, head, rows, x, hidden, logits, vocab, 0, x, hidden));
    }
    pass->dropout_row = 0;
    pass->arena.used = mark;
    return KT_OK;
}

kt_status kt_head_logits(struct kt_pass *pass, int64_t tokens, int64_t chunk, const float *x,
                         float *logits)
{
    const struct kt_linear *head = pass->model->lm_head;
    int64_t hidden = head->weight.cols, vocab = head->weight.rows;
    uint64_t mark = pass->arena.used;
    float *h = kt_arena_floats(&pass->arena, kt_min_i64(chunk, tokens), hidden);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    for (int64_t t = 0; t < tokens; t += chunk) {
        int64_t rows = kt_min_i64(chunk, tokens - t);
        KT_TRY(pass->device->ops->rmsnorm_forward(
            pass->device, rows, hidden, pass->model->config.rms_norm_eps, pass->model->final_norm,
            x + t * hidden, hidden, h, hidden));
        KT_TRY(kt_linear_forward(pass, head, rows, h, hidden, 0, logits + t * vocab, vocab));
    }
    pass->arena.used = mark;
    return KT_OK;
}
