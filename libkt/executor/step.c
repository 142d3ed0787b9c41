/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/batch.h"
#include "executor/executor.h"

/** Activations that a step may keep instead of recomputing them, from the last layer down. */
enum { KEPT_BYTES = 768 << 20 };

static int keeps_inputs(const struct kt_step *step)
{
    return step->mode != KT_FORWARD_EVAL;
}

uint64_t kt_step_inputs_size(const struct kt_executor *executor, const struct kt_step *step,
                             int64_t tokens)
{
    const struct kt_model_config *config = &executor->model->config;
    uint64_t layers = (uint64_t)(config->num_hidden_layers - step->lowest);
    uint64_t element = executor->compute == KT_COMPUTE_BF16 ? 2 : 4, size;
    if (!keeps_inputs(step))
        return 0;
    if (!kt_mul_u64((uint64_t)tokens * (uint64_t)config->hidden_size, layers * element, &size))
        return UINT64_MAX;
    return size;
}

/** Keeps x as the input of a layer. In bfloat16 x goes on as rounded, so that backward recomputes
 * from what forward used. */
static kt_status keep_input(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_device_ops *ops = pass->device->ops;
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens - pass->padding;
    int64_t n = tokens * hidden, at = n * (layer - step->lowest);
    if (!keeps_inputs(step) || layer < step->lowest)
        return KT_OK;
    if (pass->compute != KT_COMPUTE_BF16)
        return ops->add(pass->device, tokens, hidden, 1, step->x, hidden, 0,
                        (float *)step->inputs + at, hidden);
    KT_TRY(ops->pack_bf16(pass->device, n, step->x, (uint16_t *)step->inputs + at));
    return ops->unpack_bf16(pass->device, n, (uint16_t *)step->inputs + at, step->x);
}

/** The kept input of a layer; in bfloat16 it is widened into step->x. */
static kt_status kept_input(struct kt_step *step, int32_t layer, const float **x)
{
    struct kt_pass *pass = &step->pass;
    int64_t n = pass->tokens * pass->model->config.hidden_size;
    int64_t at = n * (layer - step->lowest);
    if (pass->compute != KT_COMPUTE_BF16) {
        *x = (float *)step->inputs + at;
        return KT_OK;
    }
    *x = step->x;
    return pass->device->ops->unpack_bf16(pass->device, n, (uint16_t *)step->inputs + at, step->x);
}

static kt_status embed(const struct kt_step *step)
{
    const struct kt_pass *pass = &step->pass;
    const struct kt_batch *batch = step->batch;
    int64_t hidden = pass->model->config.hidden_size, tokens = pass->tokens - pass->padding;
    const struct kt_weight *table = &pass->model->embed_tokens;
    KT_TRY(pass->device->ops->embedding(pass->device, table, tokens,
                                        batch ? batch->input_ids : NULL, step->x, hidden));
    return pass->device->ops->embedding(pass->device, table, pass->padding,
                                        batch ? batch->padding_ids : NULL,
                                        step->x + tokens * hidden, hidden);
}

kt_status kt_step_forward(const struct kt_executor *executor, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_model *model = pass->model;
    int64_t hidden = model->config.hidden_size;
    int32_t layers = model->config.num_hidden_layers;
    step->x = kt_arena_floats(&pass->arena, pass->tokens, hidden);
    step->h = kt_arena_floats(&pass->arena, step->targets.num_rows, hidden);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(embed(step));
    for (int32_t l = 0; l < layers; l++) {
        KT_TRY(kt_pass_tick(pass, "forward", l));
        KT_TRY(keep_input(step, l));
        if (l >= step->first_kept)
            KT_TRY(kt_layer_forward_keeping(pass, &model->layers[l], &step->kept[l], step->x));
        else
            KT_TRY(kt_layer_forward(pass, &model->layers[l], NULL, step->x));
    }
    KT_TRY(kt_pass_tick(pass, "forward", layers));
    pass->tokens -= pass->padding;
    pass->padding = 0;
    KT_TRY(kt_head_norm(pass, &step->targets, step->x, step->h));
    KT_TRY(kt_head_loss(pass, &step->targets, executor->logits_chunk, step->fused, step->h));
    return step->logits
               ? kt_head_logits(pass, pass->tokens, executor->logits_chunk, step->x, step->logits)
               : KT_OK;
}

kt_status kt_step_backward(const struct kt_executor *executor, struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_model *model = pass->model;
    int32_t layers = model->config.num_hidden_layers;
    uint64_t mark = pass->arena.used;
    if (!step->fused) {
        KT_TRY(kt_head_norm(pass, &step->targets, step->x, step->h));
        KT_TRY(kt_head_loss(pass, &step->targets, executor->logits_chunk, 1, step->h));
    }
    float *dy = kt_arena_floats(&pass->arena, pass->tokens, model->config.hidden_size);
    KT_TRY(kt_arena_check(pass->ctx, &pass->arena));
    KT_TRY(kt_head_norm_backward(pass, &step->targets, step->x, step->h, dy));
    for (int32_t l = layers - 1; l >= step->lowest; l--) {
        const float *x;
        KT_TRY(kt_pass_tick(pass, "backward", layers - 1 - l));
        KT_TRY(kept_input(step, l, &x));
        KT_TRY(kt_layer_backward(pass, &model->layers[l],
                                 l >= step->first_kept ? &step->kept[l] : NULL, x, dy,
                                 l > step->lowest));
    }
    KT_TRY(kt_pass_tick(pass, "backward", layers));
    pass->arena.used = mark;
    return KT_OK;
}

static kt_status measure(const struct kt_executor *executor, const struct kt_step *step,
                         int64_t tokens, int64_t padding, uint64_t *peak)
{
    struct kt_step trial = *step;
    trial.batch = NULL;
    trial.inputs = (void *)(uintptr_t)64;
    trial.pass = kt_executor_pass(executor, KT_PASS_MEASURE);
    trial.pass.training = keeps_inputs(step);
    trial.pass.padding = padding;
    trial.pass.tokens = tokens + padding;
    trial.pass.arena = kt_arena_measuring();
    KT_TRY(kt_step_forward(executor, &trial));
    if (keeps_inputs(step) && executor->lora)
        KT_TRY(kt_step_backward(executor, &trial));
    *peak = trial.pass.arena.peak;
    return KT_OK;
}

kt_status kt_step_measure(const struct kt_executor *executor, struct kt_step *step, int64_t tokens,
                          int64_t padding, uint64_t *peak)
{
    uint64_t least, more;
    step->first_kept = executor->model->config.num_hidden_layers;
    KT_TRY(measure(executor, step, tokens, padding, &least));
    *peak = least;
    if (!keeps_inputs(step) || !executor->lora || executor->ctx->options.memory_limit)
        return KT_OK;
    for (; step->first_kept > step->lowest; *peak = more) {
        step->first_kept--;
        kt_status status = measure(executor, step, tokens, padding, &more);
        if (status != KT_OK || more - least > KEPT_BYTES) {
            step->first_kept++;
            break;
        }
    }
    return KT_OK;
}
