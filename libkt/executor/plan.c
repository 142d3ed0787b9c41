/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/executor.h"

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/** Most scratch that the backend of a layer takes in it. */
static uint64_t layer_scratch(const struct kt_executor *ex, int32_t l, int64_t tokens)
{
    const struct kt_model_config *config = &ex->model->config;
    const struct kt_layer *of = &ex->model->layers[l];
    struct kt_experts *experts = ex->experts[l];
    struct kt_pass pass = kt_executor_pass(ex, KT_PASS_MEASURE);
    struct kt_expert_layer layer = {.num_experts = config->n_routed_experts,
                                    .hidden_size = config->hidden_size,
                                    .intermediate_size = config->moe_intermediate_size,
                                    .activation = config->activation};
    for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
        layer.weights[k] = of->expert_weights[k];
        if (ex->lora)
            layer.lora[k] = &ex->lora->slots[of->experts[k][0].index];
    }
    uint64_t most = experts->ops->scratch_bytes(experts, &layer, tokens, config->router.topk);
    if (!of->shared_gate)
        return most;
    layer = kt_shared_expert_layer(&pass, of);
    return larger(most, experts->ops->scratch_bytes(experts, &layer, tokens, 1));
}

/** Each backend keeps what its widest layer took. */
static uint64_t experts_scratch(const struct kt_executor *ex, int64_t tokens)
{
    int32_t layers = ex->model->config.num_hidden_layers;
    uint64_t sum = 0;
    for (int32_t first = 0; first < layers; first++) {
        uint64_t most = 0;
        if (!kt_executor_opened_at(ex, first))
            continue;
        for (int32_t l = first; l < layers; l++)
            if (ex->experts[l] == ex->experts[first])
                most = larger(most, layer_scratch(ex, l, tokens));
        sum += most;
    }
    return sum;
}

/** Scratch that the device keeps for its widest operation. */
static uint64_t device_scratch(const struct kt_executor *ex, int64_t tokens)
{
    const struct kt_model_config *config = &ex->model->config;
    struct kt_extent extent = {.tokens = tokens,
                               .widest = config->n_routed_experts,
                               .num_heads = config->num_attention_heads,
                               .head_dim = kt_attention_of(ex->model)->head_dim(config)};
    for (int32_t i = 0; i < ex->model->num_linears; i++) {
        extent.widest = kt_max_i64(extent.widest, ex->model->linears[i].weight.rows);
        extent.widest = kt_max_i64(extent.widest, ex->model->linears[i].weight.cols);
    }
    return ex->device->ops->scratch_bytes(ex->device, &extent);
}

/** Bytes of a training step's inputs and workspace. */
static kt_status measure(const struct kt_executor *ex, size_t num_tokens, uint64_t *inputs,
                         uint64_t *workspace)
{
    struct kt_step step = {.mode = KT_FORWARD_TRAIN,
                           .kept = ex->step.kept,
                           .lowest = kt_executor_lowest_layer(ex),
                           .fused = kt_executor_fuses_loss(ex, KT_FORWARD_TRAIN)};
    int64_t tokens = (int64_t)num_tokens;
    if (num_tokens == 0 || num_tokens > INT32_MAX)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT, "a plan needs 1 to %d tokens",
                       INT32_MAX);
    KT_TRY(kt_targets_all(ex->ctx, &step.targets, tokens));
    kt_status status = kt_step_measure(ex, &step, tokens, 0, workspace);
    kt_targets_free(&step.targets);
    *inputs = kt_step_inputs_size(ex, &step, tokens);
    return status;
}

kt_status kt_executor_plan_memory(const kt_executor *ex, size_t num_tokens, size_t max_sequence,
                                  kt_memory_plan *out)
{
    KT_ENTER(ex, "executor");
    KT_TRY(kt_check_sized(ex->ctx, out, KT_SIZED(kt_memory_plan)));
    kt_memory_plan plan = {.weights_mapped = ex->model->num_bytes};
    int64_t tokens = (int64_t)num_tokens;
    if (max_sequence > num_tokens)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a plan needs no sequence longer than all its tokens");
    KT_TRY(measure(ex, num_tokens, &plan.layer_inputs, &plan.workspace));
    plan.workspace += experts_scratch(ex, tokens) + device_scratch(ex, tokens);
    plan.adapter = ex->lora ? ex->lora->num_parameters * 4 * sizeof(float) : 0;
    plan.total_allocated = plan.adapter + plan.layer_inputs + plan.workspace;
    return kt_give(ex->ctx, out, &plan, KT_SIZED(kt_memory_plan));
}

kt_status kt_executor_reserve(kt_executor *ex, size_t num_tokens)
{
    uint64_t inputs, workspace;
    KT_ENTER(ex, "executor");
    ex->step.batch = NULL;
    KT_TRY(measure(ex, num_tokens, &inputs, &workspace));
    KT_TRY(kt_block_reserve(ex, &ex->inputs, inputs));
    return kt_block_reserve(ex, &ex->workspace, workspace);
}
