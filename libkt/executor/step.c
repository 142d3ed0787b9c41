/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/batch.h"
#include "executor/executor.h"

static bool keeps_inputs(const struct kt_step *step)
{
    return step->mode != KT_FORWARD_EVAL;
}

static kt_dtype input_dtype(const struct kt_executor *ex)
{
    return ex->compute == KT_COMPUTE_BF16 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

uint64_t kt_step_inputs_size(const struct kt_executor *ex, const struct kt_step *step,
                             int32_t device, int64_t tokens)
{
    const struct kt_model_config *config = &ex->model->config;
    uint64_t element = (uint64_t)kt_view_element(input_dtype(ex)), size;
    uint64_t layers =
        (uint64_t)kt_layout_layers(&ex->layout, device, step->lowest, config->num_hidden_layers);
    if (!keeps_inputs(step))
        return 0;
    if (!kt_mul_u64((uint64_t)tokens * (uint64_t)config->hidden_size, layers * element, &size))
        return UINT64_MAX;
    return size;
}

/** Where the input of a layer is kept, on the current device. */
static struct kt_view place_of_input(const struct kt_step *step, int32_t layer, int64_t tokens)
{
    const struct kt_executor *ex = step->pass.executor;
    int32_t device = ex->layout.device[layer];
    struct kt_view view = {.data = kt_pass_measures(&step->pass)
                                       ? (void *)step->pass.stage->arena.base
                                       : ex->inputs[device].memory,
                           .ld = ex->model->config.hidden_size,
                           .dtype = input_dtype(ex)};
    return kt_view_at(view, tokens * kt_layout_layers(&ex->layout, device, step->lowest, layer), 0);
}

static void convert(struct kt_pass *pass, int64_t tokens, struct kt_view x, struct kt_view y)
{
    struct kt_rows_args args = {
        .tokens = tokens, .dim = pass->model->config.hidden_size, .alpha = 1, .x = x, .y = y};
    if (x.dtype == y.dtype)
        kt_run_add(&pass->stage->run, &args);
    else
        kt_run_convert(&pass->stage->run, &args);
}

/** Keeps x as the input of a layer where backward will need it. In bfloat16 x goes on as rounded,
 * so that backward recomputes from what forward used; where nothing is kept it is rounded too, so
 * that log-probabilities depend neither on the mode nor on where LoRA is. */
static void keep_input(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    struct kt_view x = pass->stage->x, kept;
    int64_t tokens = pass->tokens - pass->padding;
    bool keeps = keeps_inputs(step) && layer >= step->lowest;
    uint64_t mark = kt_pass_mark(pass);
    if (keeps)
        kept = place_of_input(step, layer, tokens);
    else if (input_dtype(pass->executor) == KT_DTYPE_BF16)
        kept = kt_take_as(pass, KT_DTYPE_BF16, tokens, x.ld);
    else
        return;
    convert(pass, tokens, x, kept);
    if (kept.dtype != x.dtype)
        convert(pass, tokens, kept, x);
    kt_pass_release(pass, mark);
}

/** The kept input of a layer; in bfloat16 it is widened into the stage's x. */
static struct kt_view kept_input(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    struct kt_view kept = place_of_input(step, layer, pass->tokens);
    if (kept.dtype == KT_DTYPE_F32)
        return kept;
    convert(pass, pass->tokens, kept, pass->stage->x);
    return pass->stage->x;
}

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
        keep_input(step, l);
        if (l >= step->first_kept)
            KT_TRY(
                kt_layer_forward_keeping(pass, &model->layers[l], &step->kept[l], pass->stage->x));
        else
            KT_TRY(kt_layer_forward(pass, &model->layers[l], NULL, pass->stage->x));
    }
    return kt_pass_tick(pass, "forward", layers);
}

kt_status kt_step_forward(const struct kt_executor *ex, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    int32_t layers = pass->model->config.num_hidden_layers;
    const struct kt_feed *host = &ex->workspace.feed;
    kt_pass_begin(pass, keeps_inputs(step) ? step->lowest : layers,
                  keeps_inputs(step) ? layers - step->lowest + 1 : 1);
    step->h = kt_take_on(&pass->stages[ex->layout.device[layers]], step->targets.num_rows,
                         pass->model->config.hidden_size);
    KT_TRY(embed(step));
    KT_TRY(forward_layers(step));
    KT_TRY(kt_pass_enter(pass, layers, layers - 1, KT_STREAM_X));
    pass->tokens -= pass->padding;
    pass->padding = 0;
    kt_head_norm(pass, &step->targets, pass->stage->x, step->h);
    KT_TRY(kt_head_loss(pass, &step->targets, ex->logits_chunk, step->fused, step->h));
    kt_words_to_host(pass, host->logprobs, pass->stage->feed.logprobs, step->targets.num_rows);
    if (step->logits)
        kt_head_logits(pass, pass->tokens, ex->logits_chunk, pass->stage->x, step->logits);
    return kt_pass_finish(pass);
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
        struct kt_view x = kept_input(step, l);
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
    send_gradients(ex, step);
    KT_TRY(
        kt_pass_enter(pass, config->num_hidden_layers, config->num_hidden_layers - 1, KT_STREAM_X));
    if (!step->fused) {
        kt_head_norm(pass, &step->targets, pass->stage->x, step->h);
        KT_TRY(kt_head_loss(pass, &step->targets, ex->logits_chunk, true, step->h));
    }
    for (int32_t i = 0; i < pass->num_stages; i++)
        pass->stages[i].dy = kt_take_on(&pass->stages[i], pass->tokens, config->hidden_size);
    kt_head_norm_backward(pass, &step->targets, pass->stage->x, step->h, pass->stage->dy);
    KT_TRY(backward_layers(step));
    for (int32_t i = 0; i < pass->num_stages; i++)
        kt_site_grad_out(pass->stages[i].site, &pass->stages[i].run, pass->lora);
    return kt_pass_finish(pass);
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
    if (keeps_inputs(step) && ex->lora)
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
    *does = size != UINT64_MAX && size - least <= ex->kept_bytes && stays_reserved(ex, step);
    return KT_OK;
}

kt_status kt_step_measure(const struct kt_executor *ex, struct kt_step *step)
{
    int32_t all = ex->model->config.num_hidden_layers, low = step->lowest, high = all;
    uint64_t least;
    bool does = true;
    step->first_kept = all;
    KT_TRY(walk(ex, step, &least));
    if (!keeps_inputs(step) || !ex->lora || ex->ctx->options.memory_limit || least == UINT64_MAX)
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

kt_status kt_step_reserve(struct kt_executor *ex, const struct kt_step *step, int64_t tokens)
{
    for (int32_t i = 0; i < step->pass.num_stages; i++)
        KT_TRY(kt_block_reserve(ex->sites[i].device, &ex->inputs[i],
                                kt_step_inputs_size(ex, step, i, tokens)));
    return kt_workspace_reserve(&ex->workspace, &step->pass);
}
