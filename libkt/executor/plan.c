/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/plan.h>
#include <string.h>

#include "core/context.h"
#include "executor/trial.h"

struct kt_plan {
    KT_HANDLE;
    kt_device_plan devices[KT_MAX_DEVICES + 1], total;
    char names[KT_MAX_DEVICES + 1][KT_DEVICE_NAME];
    int32_t num_devices;
};

void kt_plan_options_init(kt_plan_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_plan_options){.mode = KT_FORWARD_TRAIN}, sizeof *options);
}

static void destroy(void *handle)
{
    (void)handle;
}

static kt_device_plan *add_device(struct kt_plan *plan, const char *name)
{
    int32_t i = 0;
    while (i < plan->num_devices && strcmp(plan->names[i], name) != 0)
        i++;
    if (i == plan->num_devices)
        strcpy(plan->names[plan->num_devices++], name);
    plan->devices[i].name = plan->names[i];
    return &plan->devices[i];
}

/** Copies run while the device computes. */
static void count_work(const struct kt_tally *tally, kt_device_plan *device)
{
    device->flops += tally->flops;
    device->bytes += tally->bytes;
    device->seconds += tally->seconds > tally->copy_seconds ? tally->seconds : tally->copy_seconds;
}

/** Adds what is allocated up; false where that overflows. */
static bool add_kinds(kt_device_plan *d)
{
    const uint64_t kinds[] = {d->supplied,    d->adapter, d->layer_inputs,
                              d->activations, d->scratch, d->feed};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (__builtin_add_overflow(d->total_allocated, kinds[i], &d->total_allocated))
            return false;
    return true;
}

/** What a step leaves of the device's limit. */
static uint64_t room_left(const struct kt_device *device, const kt_device_plan *plan)
{
    kt_device_plan others = *plan;
    if (!device->limit)
        return UINT64_MAX;
    if (!add_kinds(&others) || others.total_allocated > device->limit)
        return 0;
    return device->limit - others.total_allocated;
}

static uint64_t room_for_weights(const struct kt_site *site, const kt_device_plan *plan)
{
    uint64_t room = room_left(site->device, plan), least = kt_room_weights(site);
    return room > least ? room : least;
}

/** Those that do not stay on the device are the host's. */
static void count_inputs(const struct kt_executor *ex, const struct kt_trial *t, int32_t i,
                         kt_device_plan *device, kt_device_plan *host)
{
    kt_device_plan others = *device;
    int64_t layers = kt_inputs_layers(ex, &t->step, i), here = 0;
    if (add_kinds(&others))
        here = kt_inputs_here(ex, &t->step, i, t->tokens, others.total_allocated);
    device->layer_inputs += kt_inputs_size(ex, t->tokens, here);
    host->layer_inputs += kt_inputs_size(ex, t->tokens, layers - here);
}

static void count_stage(const struct kt_executor *ex, const struct kt_trial *t, int32_t i,
                        kt_device_plan *device, kt_device_plan *host)
{
    const struct kt_stage *stage = &t->step.pass.stages[i];
    const struct kt_site *site = stage->site;
    device->weights = kt_supply_weights(site->supply);
    device->activations = stage->arena.peak;
    device->scratch = stage->tally.scratch;
    count_work(&stage->tally, device);
    if (!kt_device_is_host(site->device)) {
        device->adapter = site->lora.size + site->lora_grad.size;
        device->feed = t->step.feed_bytes;
        device->supplied = site->vectors.size;
    }
    if (kt_device_is_host(site->device))
        return count_inputs(ex, t, i, device, host);
    kt_device_plan others = *device;
    uint64_t least = add_kinds(&others) ? kt_room_experts(site, others.total_allocated) : 0;
    device->supplied += least;
    count_inputs(ex, t, i, device, host);
    device->supplied += kt_supply_fit(site->supply, room_for_weights(site, device), NULL);
    if (site->device->limit)
        device->supplied +=
            kt_expert_supply_bytes(site->experts, room_left(site->device, device) + least) - least;
}

/** Weights of no other device; the table of tied embeddings is the host's in any case. */
static uint64_t weights_of_host(const struct kt_plan *plan, const struct kt_executor *ex,
                                const kt_device_plan *host)
{
    const kt_model *model = ex->model;
    uint64_t others = 0;
    for (int32_t i = 0; i < plan->num_devices; i++)
        others += &plan->devices[i] == host ? 0 : plan->devices[i].weights;
    uint64_t rest = others < model->num_bytes ? model->num_bytes - others : 0;
    bool tied = model->lm_head->weight.data == model->embed_tokens.data;
    const char *head = ex->layout.devices[ex->layout.device[model->config.num_hidden_layers]];
    if (tied && strcmp(head, "cpu") != 0)
        rest += (uint64_t)kt_weight_bytes(&model->embed_tokens);
    return rest;
}

/** Experts take the time that their backends say. */
static void count_host(const struct kt_plan *plan, const struct kt_executor *ex,
                       const struct kt_trial *t, kt_device_plan *host)
{
    const struct kt_stage *stage = &t->step.pass.host;
    uint64_t copies = t->mode == KT_FORWARD_EVAL ? 2 : 4;
    host->weights = weights_of_host(plan, ex, host);
    host->adapter = ex->lora ? ex->lora->num_parameters * copies * sizeof(float) : 0;
    host->activations += stage->arena.peak;
    host->scratch += stage->tally.scratch;
    host->feed = t->step.feed_bytes;
    count_work(&stage->tally, host);
    host->seconds += t->step.pass.experts_seconds;
}

static bool add_to_total(const kt_device_plan *d, kt_device_plan *total)
{
    total->supplied += d->supplied;
    total->adapter += d->adapter;
    total->layer_inputs += d->layer_inputs;
    total->activations += d->activations;
    total->scratch += d->scratch;
    total->feed += d->feed;
    total->flops += d->flops;
    total->bytes += d->bytes;
    total->seconds += d->seconds;
    return !__builtin_add_overflow(total->total_allocated, d->total_allocated,
                                   &total->total_allocated);
}

static kt_status fill(struct kt_plan *plan, const struct kt_executor *ex, const struct kt_trial *t)
{
    bool fits = true;
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        add_device(plan, ex->layout.devices[i]);
    kt_device_plan *host = add_device(plan, ex->host.device->ops->name);
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        count_stage(ex, t, i, &plan->devices[i], host);
    count_host(plan, ex, t, host);
    plan->total.weights = ex->model->num_bytes;
    for (int32_t i = 0; i < plan->num_devices; i++)
        fits =
            fits && add_kinds(&plan->devices[i]) && add_to_total(&plan->devices[i], &plan->total);
    return fits ? KT_OK : kt_fail_memory(ex->ctx, UINT64_MAX, "a step");
}

static kt_status make(struct kt_plan *plan, const struct kt_executor *ex,
                      const kt_plan_options *options)
{
    struct kt_trial t;
    if (options->mode != KT_FORWARD_EVAL && options->mode != KT_FORWARD_TRAIN &&
        options->mode != KT_FORWARD_CUSTOM)
        return kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_plan_options: forward has no mode %d", options->mode);
    kt_status status = kt_trial_measure(ex, options->num_tokens, options->max_sequence,
                                        (kt_forward_mode)options->mode, &t);
    if (status == KT_OK)
        status = fill(plan, ex, &t);
    kt_trial_free(&t);
    return status;
}

kt_status kt_plan_create(const kt_executor *ex, const kt_plan_options *given, kt_plan **out)
{
    KT_ENTER_OUT(ex, "executor", out);
    kt_plan_options options;
    struct kt_plan *plan;
    kt_plan_options_init(&options, sizeof options);
    KT_TRY(kt_options_copy(ex->ctx, &options, given, KT_SIZED(kt_plan_options)));
    KT_TRY(kt_handle_new(ex->ctx, sizeof *plan, destroy, "a plan", (void **)&plan));
    kt_status status = make(plan, ex, &options);
    if (status != KT_OK) {
        kt_plan_free(plan);
        return status;
    }
    *out = plan;
    return KT_OK;
}

void kt_plan_free(kt_plan *plan)
{
    kt_handle_free(plan);
}

size_t kt_plan_num_devices(const kt_plan *plan)
{
    return plan ? (size_t)plan->num_devices : 0;
}

kt_status kt_plan_get_device(const kt_plan *plan, size_t index, kt_device_plan *out)
{
    KT_TRY(kt_check_handle(plan, __func__, "plan"));
    if (index >= (size_t)plan->num_devices)
        return kt_fail(plan->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the plan has no device %zu; it has %d", index, plan->num_devices);
    return kt_give(plan->ctx, out, &plan->devices[index], KT_SIZED(kt_device_plan));
}

kt_status kt_plan_get_total(const kt_plan *plan, kt_device_plan *out)
{
    KT_TRY(kt_check_handle(plan, __func__, "plan"));
    return kt_give(plan->ctx, out, &plan->total, KT_SIZED(kt_device_plan));
}
