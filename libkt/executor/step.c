/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/batch.h"
#include "executor/executor.h"
#include "executor/sharing.h"

static kt_status embed(struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_batch *batch = step->batch;
    int64_t tokens = pass->tokens - pass->padding;
    struct kt_marks marks = kt_pass_marks(pass);
    KT_TRY(kt_pass_embed(pass, batch ? batch->input_ids : NULL, tokens, pass->stage->x));
    KT_TRY(kt_pass_embed(pass, batch ? batch->padding_ids : NULL, pass->padding,
                         kt_view_at(pass->stage->x, tokens, 0)));
    kt_pass_release_marks(pass, marks);
    return KT_OK;
}

static kt_status forward_layers(struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_model *model = pass->model;
    int32_t layers = model->config.num_hidden_layers;
    for (int32_t l = 0; l < layers; l++) {
        KT_TRY(kt_pass_tick(pass, "forward", l));
        KT_TRY(kt_pass_enter(pass, l, l + 1, KT_STREAM_X));
        kt_inputs_keep(step, l);
        if (l >= step->first_kept)
            KT_TRY(
                kt_layer_forward_keeping(pass, &model->layers[l], &step->kept[l], pass->stage->x));
        else
            KT_TRY(kt_layer_forward(pass, &model->layers[l], NULL, pass->stage->x));
    }
    return kt_pass_tick(pass, "forward", layers);
}

/** Behind what layers kept: h on top, where backward gives it up before it is at the layers. */
static void take_head(const struct kt_executor *ex, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    int64_t hidden = pass->model->config.hidden_size;
    for (int32_t i = 0; kt_step_goes_back(step) && ex->lora && i < pass->num_stages; i++)
        pass->stages[i].dy = kt_take_on(&pass->stages[i], pass->tokens, hidden);
    step->below_h = kt_pass_mark(pass);
    step->h = kt_take(pass, step->targets.num_rows, hidden);
}

kt_status kt_step_forward(const struct kt_executor *ex, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    int32_t layers = pass->model->config.num_hidden_layers;
    const struct kt_feed *host = &ex->workspace.feed;
    kt_sharing_begin(pass, false);
    pass->walk = kt_step_goes_back(step) ? KT_WALK_UP_DOWN : KT_WALK_UP_UP;
    kt_pass_begin(pass, kt_step_goes_back(step) ? step->lowest : layers,
                  kt_step_goes_back(step) ? layers - step->lowest + 1 : 1);
    kt_inputs_begin(step);
    KT_TRY(embed(step));
    KT_TRY(forward_layers(step));
    KT_TRY(kt_pass_enter(pass, layers, layers - 1, KT_STREAM_X));
    pass->tokens -= pass->padding;
    pass->padding = 0;
    take_head(ex, step);
    kt_head_norm(pass, &step->targets, pass->stage->x, step->h);
    KT_TRY(kt_head_loss(pass, &step->targets, ex->logits_chunk, step->fused, step->h));
    kt_words_to_host(pass, host->logprobs, pass->stage->feed.logprobs, step->targets.num_rows);
    if (step->logits)
        kt_head_logits(pass, pass->tokens, ex->logits_chunk, pass->stage->x, step->logits);
    KT_TRY(kt_pass_finish(pass));
    kt_sharing_end(pass, false);
    return KT_OK;
}

/** Gradients of the adapter, and those of the host's own loss, to the devices. */
static void send_gradients(const struct kt_executor *ex, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    for (int32_t i = 0; i < pass->num_stages; i++) {
        const struct kt_stage *stage = &pass->stages[i];
        kt_run_copy(&stage->run, KT_QUEUE_IN, stage->feed.dlogprobs, ex->workspace.feed.dlogprobs,
                    (uint64_t)step->targets.num_rows * sizeof(float));
        kt_site_grad_in(stage->site, &stage->run, pass->lora);
    }
}

static kt_status backward_layers(struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_model *model = pass->model;
    int32_t layers = model->config.num_hidden_layers;
    for (int32_t l = layers - 1; l >= step->lowest; l--) {
        KT_TRY(kt_pass_tick(pass, "backward", layers - 1 - l));
        KT_TRY(kt_pass_enter(pass, l, l > step->lowest ? l - 1 : -1, KT_STREAM_DY));
        struct kt_view x = kt_inputs_get(step, l);
        KT_TRY(kt_layer_backward(pass, &model->layers[l],
                                 l >= step->first_kept ? &step->kept[l] : NULL, x, pass->stage->dy,
                                 l > step->lowest));
    }
    return kt_pass_tick(pass, "backward", layers);
}

kt_status kt_step_backward(const struct kt_executor *ex, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_model_config *config = &pass->model->config;
    kt_sharing_begin(pass, true);
    pass->walk = KT_WALK_DOWN_UP;
    send_gradients(ex, step);
    KT_TRY(
        kt_pass_enter(pass, config->num_hidden_layers, config->num_hidden_layers - 1, KT_STREAM_X));
    if (!step->fused) {
        kt_head_norm(pass, &step->targets, pass->stage->x, step->h);
        KT_TRY(kt_head_loss(pass, &step->targets, ex->logits_chunk, true, step->h));
    }
    kt_head_norm_backward(pass, &step->targets, pass->stage->x, step->h, pass->stage->dy);
    kt_pass_release(pass, step->below_h);
    KT_TRY(backward_layers(step));
    for (int32_t i = 0; i < pass->num_stages; i++)
        kt_site_grad_out(pass->stages[i].site, &pass->stages[i].run, pass->lora);
    KT_TRY(kt_pass_finish(pass));
    kt_sharing_end(pass, true);
    return KT_OK;
}

/** Walks a step whose pass has its tokens; the bytes that its arenas come to. */
static kt_status walk(const struct kt_executor *ex, struct kt_step *step, uint64_t *size)
{
    struct kt_pass *pass = &step->pass;
    int64_t tokens = pass->tokens, padding = pass->padding;
    for (int32_t i = 0; i < pass->num_stages; i++) {
        pass->stages[i].arena = kt_arena_measuring();
        pass->stages[i].tally = (struct kt_tally){0};
    }
    pass->host.arena = kt_arena_measuring();
    pass->host.tally = (struct kt_tally){0};
    pass->experts_seconds = 0;
    KT_TRY(kt_step_forward(ex, step));
    if (kt_step_goes_back(step) && ex->lora)
        KT_TRY(kt_step_backward(ex, step));
    pass->tokens = tokens;
    pass->padding = padding;
    *size = kt_workspace_size(pass);
    return KT_OK;
}

/** Whether a walked step that was reserved for needs no more than that. */
static bool stays_reserved(const struct kt_executor *ex, const struct kt_step *step)
{
    const struct kt_pass *pass = &step->pass;
    bool stays = pass->host.arena.peak <= ex->workspace.crossing.size;
    for (int32_t i = 0; i < pass->num_stages; i++)
        stays = stays && pass->stages[i].arena.peak <= ex->workspace.activations[i].size;
    return stays || pass->tokens > ex->reserved_tokens;
}

/** Whether the activations of layers from `first` on fit in what may be kept. */
static kt_status fits(const struct kt_executor *ex, struct kt_step *step, int32_t first,
                      uint64_t least, bool *does)
{
    uint64_t size;
    step->first_kept = first;
    KT_TRY(walk(ex, step, &size));
    *does = size != UINT64_MAX && size - least <= ex->kept_bytes && stays_reserved(ex, step) &&
            kt_room_suffices(ex, step, true);
    return KT_OK;
}

/** The fewest pieces with which the devices have room for the step, beside the share of routed
 * experts if possible. A power of two: groups of heads begin where scales of weights do. */
static kt_status count_pieces(const struct kt_executor *ex, struct kt_step *step)
{
    int32_t *pieces = &step->pass.pieces;
    uint64_t size;
    for (int for_experts = 1; for_experts >= 0; for_experts--)
        for (*pieces = ex->least_pieces; *pieces <= KT_MOST_PIECES; *pieces *= 2) {
            KT_TRY(walk(ex, step, &size));
            if (size == UINT64_MAX || kt_room_suffices(ex, step, for_experts))
                return KT_OK;
        }
    *pieces = KT_MOST_PIECES;
    return KT_OK;
}

/** In EVAL as in TRAIN, so that log-probabilities are the same bits. */
static kt_status choose_pieces(const struct kt_executor *ex, struct kt_step *step)
{
    kt_forward_mode mode = step->mode;
    bool training = step->pass.training, limited = false;
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        limited = limited || ex->sites[i].device->limit;
    if (!limited)
        return KT_OK;
    step->mode = ex->lora ? KT_FORWARD_TRAIN : mode;
    step->pass.training = step->mode != KT_FORWARD_EVAL;
    kt_status status = count_pieces(ex, step);
    step->mode = mode;
    step->pass.training = training;
    return status;
}

kt_status kt_step_measure(const struct kt_executor *ex, struct kt_step *step)
{
    int32_t all = ex->model->config.num_hidden_layers, low = step->lowest, high = all;
    uint64_t least;
    bool does = true;
    step->first_kept = all;
    KT_TRY(choose_pieces(ex, step));
    KT_TRY(walk(ex, step, &least));
    if (step->pass.pieces > 1 || !kt_step_goes_back(step) || !ex->lora ||
        ex->ctx->options.memory_limit || least == UINT64_MAX)
        return KT_OK;
    for (int32_t first = low; low < high; first = low + (high - low) / 2) {
        KT_TRY(fits(ex, step, first, least, &does));
        if (does)
            high = first;
        else
            low = first + 1;
    }
    return step->first_kept == high ? KT_OK : fits(ex, step, high, least, &does);
}

kt_status kt_step_reserve(struct kt_executor *ex, struct kt_step *step, int64_t tokens)
{
    KT_TRY(kt_room_check(ex, step));
    kt_room_make(ex, step);
    for (int32_t i = 0; i < step->pass.num_stages; i++)
        KT_TRY(kt_inputs_reserve(ex, step, i, tokens));
    return kt_workspace_reserve(&ex->workspace, &step->pass);
}
