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
    if (!targets->runs || !targets->ids) {
        kt_targets_free(targets);
        return kt_fail_memory(ctx, tokens * 20, "the targets of a step");
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
    *targets = (struct kt_targets){0};
}

void kt_head_norm(struct kt_pass *pass, const struct kt_targets *targets, struct kt_view x,
                  struct kt_view h)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t row = 0;
    for (int64_t i = 0; i < targets->num_runs; i++) {
        struct kt_target_run run = targets->runs[i];
        kt_norm(pass, run.count, config->hidden_size, config->rms_norm_eps, pass->model->final_norm,
                kt_view_at(x, run.begin, 0), kt_view_at(h, row, 0));
        row += run.count;
    }
}

void kt_head_norm_backward(struct kt_pass *pass, const struct kt_targets *targets, struct kt_view x,
                           struct kt_view dh, struct kt_view dx)
{
    const struct kt_model_config *config = &pass->model->config;
    int64_t hidden = config->hidden_size, row = 0;
    kt_zero(pass, pass->tokens, hidden, dx);
    for (int64_t i = 0; i < targets->num_runs; i++) {
        struct kt_target_run run = targets->runs[i];
        kt_norm_backward(pass, run.count, hidden, config->rms_norm_eps, pass->model->final_norm,
                         kt_view_at(x, run.begin, 0), kt_view_at(dh, row, 0), false,
                         kt_view_at(dx, run.begin, 0));
        row += run.count;
    }
}

kt_status kt_head_loss(struct kt_pass *pass, const struct kt_targets *targets, int64_t chunk,
                       bool backward, struct kt_view h)
{
    const struct kt_linear *head = pass->model->lm_head;
    const struct kt_feed *feed = &pass->stage->feed;
    int64_t vocab = head->weight.rows;
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view logits = kt_take(pass, kt_min_i64(chunk, targets->num_rows), vocab);
    for (int64_t row = 0; row < targets->num_rows; row += chunk) {
        struct kt_view x = kt_view_at(h, row, 0);
        struct kt_cross_entropy_args loss = {.tokens = kt_min_i64(chunk, targets->num_rows - row),
                                             .vocab = vocab,
                                             .logits = logits,
                                             .targets = feed->targets + row,
                                             .dlogprobs = backward ? feed->dlogprobs + row : NULL,
                                             .logprobs = feed->logprobs + row};
        KT_TRY(kt_pass_measures(pass) ? KT_OK : kt_check_cancel(pass->ctx));
        pass->dropout_row = row;
        kt_linear_forward(pass, head, loss.tokens, x, false, logits);
        kt_run_cross_entropy(&pass->stage->run, &loss);
        if (backward)
            kt_linear_backward(pass, head, loss.tokens, x, logits, false, x);
    }
    pass->dropout_row = 0;
    kt_pass_release(pass, mark);
    return KT_OK;
}

void kt_head_logits(struct kt_pass *pass, int64_t tokens, int64_t chunk, struct kt_view x,
                    float *logits)
{
    const struct kt_model_config *config = &pass->model->config;
    const struct kt_linear *head = pass->model->lm_head;
    bool direct = kt_device_is_host(pass->stage->site->device);
    int64_t vocab = head->weight.rows, most = kt_min_i64(chunk, tokens);
    uint64_t mark = kt_pass_mark(pass);
    struct kt_view h = kt_take(pass, most, config->hidden_size);
    struct kt_view y = direct ? kt_view_f32(logits, vocab) : kt_take(pass, most, vocab);
    for (int64_t t = 0; t < tokens; t += chunk) {
        int64_t rows = kt_min_i64(chunk, tokens - t);
        kt_norm(pass, rows, config->hidden_size, config->rms_norm_eps, pass->model->final_norm,
                kt_view_at(x, t, 0), h);
        kt_linear_forward(pass, head, rows, h, false, direct ? kt_view_at(y, t, 0) : y);
        if (direct)
            continue;
        kt_words_to_host(pass, logits + t * vocab, y.data, rows * vocab);
        kt_run_order(&pass->stage->run, KT_QUEUE_COMPUTE, KT_QUEUE_OUT);
    }
    kt_pass_release(pass, mark);
}
