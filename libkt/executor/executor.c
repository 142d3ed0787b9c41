/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/executor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kt/rule.h>

#include "backends/registry.h"
#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"
#include "executor/sharing.h"

/** Logits at one time: about 64 MB, and rows enough that lm_head's weights are read seldom. */
enum {
    LOGITS_BYTES = 64 << 20,
    MIN_LOGITS_CHUNK = 256,
    MODULE_BYTES = 256,
    KEPT_BYTES = 768 << 20
};

void kt_executor_options_init(kt_executor_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_executor_options){.compute = KT_COMPUTE_BF16},
                    sizeof *options);
}

/** What a rule asks for may be missing here; what the host names itself must exist. */
static kt_status open_experts_of(struct kt_executor *ex, const kt_executor_options *options,
                                 const char *name, struct kt_experts **out)
{
    kt_status status = kt_experts_open(ex->ctx, name, out);
    if (status != KT_ERROR_NOT_FOUND || options->experts_backend)
        return status;
    KT_TRY(kt_experts_open(ex->ctx, "auto", out));
    kt_log(ex->ctx, KT_LOG_WARNING, "the rule's experts backend \"%s\" is not here; using \"%s\"",
           name, (*out)->ops->name);
    return KT_OK;
}

/** The module of a layer's experts: the path of an expert's linear without its last two parts. */
static void experts_module(const struct kt_layer *layer, char module[MODULE_BYTES])
{
    snprintf(module, MODULE_BYTES, "%s", layer->experts[0]->name);
    for (int i = 0; i < 2; i++) {
        char *dot = strrchr(module, '.');
        if (dot)
            *dot = '\0';
    }
}

static const char *experts_name(const kt_executor_options *options, const struct kt_layer *layer)
{
    char module[MODULE_BYTES];
    if (options->experts_backend)
        return options->experts_backend;
    if (!options->rule)
        return "auto";
    experts_module(layer, module);
    return kt_rule_experts_backend(options->rule, module);
}

/** "device" is the layer's device; beside it the host has the fastest backend there is. */
static const char *host_experts_name(const kt_executor_options *options,
                                     const struct kt_layer *layer)
{
    const char *name = experts_name(options, layer);
    return strcmp(name, "device") == 0 ? "auto" : name;
}

/** Who may compute the experts of a layer on a device: "auto" means both. */
static enum kt_experts_where experts_where(const char *name, const struct kt_device *device)
{
    if (strcmp(name, "device") == 0)
        return KT_EXPERTS_DEVICE;
    return strcmp(name, "auto") == 0 && !kt_device_is_host(device) ? KT_EXPERTS_SHARED
                                                                   : KT_EXPERTS_HOST;
}

/** What the layers before this one have under the name; NULL = nothing. */
static struct kt_experts *opened_before(const struct kt_executor *ex,
                                        const kt_executor_options *options, int32_t layer,
                                        const char *name)
{
    for (int32_t l = 0; l < layer; l++)
        if (ex->experts[l] && strcmp(host_experts_name(options, &ex->model->layers[l]), name) == 0)
            return ex->experts[l];
    return NULL;
}

/** Layers whose rule names the same backend share it, and its scratch. */
static kt_status open_experts(struct kt_executor *ex, const kt_executor_options *options)
{
    for (int32_t l = 0; l < ex->model->config.num_hidden_layers; l++) {
        if (!ex->model->layers[l].is_moe)
            continue;
        const char *name = host_experts_name(options, &ex->model->layers[l]);
        ex->experts[l] = opened_before(ex, options, l, name);
        if (!ex->experts[l])
            KT_TRY(open_experts_of(ex, options, name, &ex->experts[l]));
        ex->where[l] = experts_where(experts_name(options, &ex->model->layers[l]),
                                     ex->sites[ex->layout.device[l]].device);
    }
    return KT_OK;
}

bool kt_executor_opened_at(const struct kt_executor *ex, int32_t layer)
{
    int32_t first = 0;
    while (ex->experts[first] != ex->experts[layer])
        first++;
    return ex->experts[layer] && first == layer;
}

/** From the last layer down, since kt_executor_opened_at looks at those before. */
static void close_experts(struct kt_executor *ex)
{
    for (int32_t l = ex->model->config.num_hidden_layers - 1; ex->experts && l >= 0; l--)
        if (kt_executor_opened_at(ex, l))
            kt_experts_close(ex->experts[l]);
    free(ex->experts);
}

static int64_t default_logits_chunk(const struct kt_model *model)
{
    int64_t row = (int64_t)model->config.vocab_size * (int64_t)sizeof(float);
    return kt_max_i64(LOGITS_BYTES / row, MIN_LOGITS_CHUNK);
}

/** The units of a device; and those of its layers whose routed experts it may compute, if it has
 * no host memory. */
static void list_units(const struct kt_executor *ex, const kt_executor_options *options,
                       int32_t device, uint8_t *units, uint8_t *experts)
{
    int32_t layers = ex->model->config.num_hidden_layers;
    for (int32_t u = 0; u <= layers; u++) {
        units[u] = ex->layout.device[u] == device;
        experts[u] = false;
        if (!units[u] || u == layers || !ex->model->layers[u].is_moe)
            continue;
        const char *name = experts_name(options, &ex->model->layers[u]);
        experts[u] = strcmp(name, "device") == 0 || strcmp(name, "auto") == 0;
    }
}

/** A site for each device of the layout, and the host's own. */
static kt_status open_sites(struct kt_executor *ex, const kt_executor_options *options)
{
    int32_t num_units = ex->model->config.num_hidden_layers + 1;
    uint8_t *units = calloc(2 * (size_t)num_units, sizeof *units);
    kt_status status = KT_OK;
    if (!units)
        return kt_fail_memory(ex->ctx, 2 * (uint64_t)num_units, "an executor");
    for (int32_t i = 0; status == KT_OK && i < ex->layout.num_devices; i++) {
        uint8_t *experts = units + num_units;
        list_units(ex, options, i, units, experts);
        status = kt_site_open(ex->model, ex->lora, ex->layout.devices[i], units, experts,
                              options->device_memory, &ex->sites[i]);
        ex->inputs[i] =
            (struct kt_block){.kind = KT_MEMORY_DEVICE, .what = "the kept layer inputs of a step"};
        ex->pinned_inputs[i] = ex->inputs[i];
        ex->pinned_inputs[i].kind = KT_MEMORY_PINNED;
    }
    free(units);
    KT_TRY(status);
    return kt_device_open(ex->ctx, "cpu", &ex->host.device);
}

static kt_status open_executor(struct kt_executor *ex, const kt_executor_options *options)
{
    int32_t layers = ex->model->config.num_hidden_layers;
    KT_TRY(kt_layout_create(ex->model, options->rule, &ex->layout));
    KT_TRY(open_sites(ex, options));
    ex->experts = calloc((size_t)layers, sizeof(*ex->experts));
    ex->where = calloc((size_t)layers, sizeof(*ex->where));
    ex->step.kept = calloc((size_t)layers, sizeof(*ex->step.kept));
    if (!ex->experts || !ex->where || !ex->step.kept)
        return kt_fail_memory(ex->ctx, (uint64_t)layers * 8, "an executor");
    KT_TRY(kt_sharing_create(ex->ctx, &ex->sharing));
    KT_TRY(kt_experts_open(ex->ctx, "cpu", &ex->general));
    return open_experts(ex, options);
}

static void close_sites(struct kt_executor *ex)
{
    if (ex->host.device)
        kt_workspace_free(&ex->workspace, ex);
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        if (ex->sites[i].device) {
            kt_block_free(ex->sites[i].device, &ex->inputs[i]);
            kt_block_free(ex->sites[i].device, &ex->pinned_inputs[i]);
        }
        kt_site_close(&ex->sites[i]);
    }
    kt_site_close(&ex->host);
}

static void destroy(void *handle)
{
    struct kt_executor *ex = handle;
    close_experts(ex);
    kt_experts_close(ex->general);
    kt_sharing_free(ex->sharing);
    close_sites(ex);
    kt_layout_free(&ex->layout);
    kt_targets_free(&ex->step.targets);
    kt_rotary_free(&ex->rotary);
    free(ex->step.kept);
    free(ex->where);
    free(ex->positions);
    free(ex->logprobs);
    kt_handle_drop((void *)ex->held_batch);
    kt_handle_drop(ex->lora);
    kt_handle_drop(ex->model);
}

kt_status kt_executor_create(kt_model *model, kt_lora *lora, const kt_executor_options *given,
                             kt_executor **out)
{
    KT_ENTER_OUT(model, "model", out);
    kt_context *ctx = model->ctx;
    kt_executor_options options;
    kt_executor_options_init(&options, sizeof options);
    KT_TRY(kt_options_copy(ctx, &options, given, KT_SIZED(kt_executor_options)));
    if (lora && lora->model != model)
        return kt_fail(ctx, KT_ERROR_MISMATCH,
                       "the adapter was made for another model handle; attach it to this one");
    if (options.logits_chunk < 0 || options.compute < KT_COMPUTE_F32 ||
        options.compute > KT_COMPUTE_BF16)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_executor_options: compute %d, logits_chunk %d; use KT_COMPUTE_F32 or "
                       "KT_COMPUTE_BF16 and a chunk of 0 or more tokens",
                       options.compute, options.logits_chunk);
    struct kt_executor *ex;
    KT_TRY(kt_handle_new(ctx, sizeof *ex, destroy, "an executor", (void **)&ex));
    ex->model = model;
    ex->lora = lora;
    kt_handle_hold(model);
    kt_handle_hold(lora);
    ex->compute = (kt_compute)options.compute;
    ex->logits_chunk = options.logits_chunk ? options.logits_chunk : default_logits_chunk(model);
    ex->kept_bytes = KEPT_BYTES;
    ex->least_pieces = 1;
    kt_workspace_init(&ex->workspace, "the activations of a step");
    kt_status status = open_executor(ex, &options);
    if (status != KT_OK) {
        kt_executor_free(ex);
        return status;
    }
    *out = ex;
    return KT_OK;
}

void kt_executor_free(kt_executor *ex)
{
    kt_handle_free(ex);
}

const char *kt_executor_experts_backend(const kt_executor *ex, int32_t layer)
{
    if (!ex || layer < 0 || layer >= ex->model->config.num_hidden_layers || !ex->experts[layer])
        return NULL;
    if (ex->where[layer] == KT_EXPERTS_HOST)
        return ex->experts[layer]->ops->name;
    return ex->where[layer] == KT_EXPERTS_DEVICE ? "device" : "auto";
}

kt_status kt_executor_set_step(kt_executor *ex, uint64_t step)
{
    KT_ENTER(ex, "executor");
    ex->step_number = step;
    return KT_OK;
}

int32_t kt_executor_lowest_layer(const struct kt_executor *ex)
{
    return ex->lora ? kt_adapter_lowest_layer(ex->lora) : ex->model->config.num_hidden_layers;
}

bool kt_executor_fuses_loss(const struct kt_executor *ex, kt_forward_mode mode)
{
    return mode == KT_FORWARD_TRAIN && ex->lora && !kt_adapter_has(ex->lora, ex->model->lm_head);
}
