/* SPDX-License-Identifier: Apache-2.0 */
#include "placement/layout.h"

#include <kt/rule.h>
#include <stdlib.h>
#include <string.h>

#include "backends/registry.h"
#include "core/context.h"

/** Devices that the rule names and that are not here: told once each. */
struct missing {
    const char *names[KT_MAX_DEVICES];
    int32_t num;
    const char *best; /**< what "auto" is; NULL = nobody asked yet */
};

static bool is_missing(const struct missing *missing, const char *name)
{
    for (int32_t i = 0; i < missing->num; i++)
        if (strcmp(missing->names[i], name) == 0)
            return true;
    return false;
}

/** Whether the layout has the device already. */
static bool is_here(const struct kt_layout *layout, const char *name)
{
    for (int32_t i = 0; i < layout->num_devices; i++)
        if (strcmp(layout->devices[i], name) == 0)
            return true;
    return false;
}

/** The first GPU, or the CPU where there is none. */
static const char *best_device(const kt_model *model, struct missing *missing)
{
    if (!missing->best)
        missing->best = kt_device_probe(model->ctx, "cuda:0") == KT_OK ? "cuda:0" : "cpu";
    return missing->best;
}

/** The device that a module runs on: what the rule says, or the CPU where that is not here. */
static kt_status device_of(const kt_model *model, const kt_rule *rule,
                           const struct kt_layout *layout, struct missing *missing,
                           const char *module, const char **device)
{
    const char *name = rule ? kt_rule_device(rule, module) : "cpu";
    if (strcmp(name, "auto") == 0)
        name = best_device(model, missing);
    *device = strcmp(name, "cpu:0") == 0 || is_missing(missing, name) ? "cpu" : name;
    if (*device != name || is_here(layout, name))
        return KT_OK;
    kt_status status = kt_device_probe(model->ctx, name);
    if (status != KT_ERROR_NOT_FOUND)
        return status;
    kt_log(model->ctx, KT_LOG_WARNING, "the rule's device \"%s\" is not here; using the CPU (%s)",
           name, kt_last_error(model->ctx));
    if (missing->num < KT_MAX_DEVICES)
        missing->names[missing->num++] = name;
    *device = "cpu";
    return KT_OK;
}

static kt_status index_of(const kt_model *model, struct kt_layout *layout, const char *name,
                          uint8_t *index)
{
    for (int32_t i = 0; i < layout->num_devices; i++) {
        if (strcmp(layout->devices[i], name) == 0) {
            *index = (uint8_t)i;
            return KT_OK;
        }
    }
    if (layout->num_devices == KT_MAX_DEVICES || strlen(name) >= KT_DEVICE_NAME)
        return kt_fail(model->ctx, KT_ERROR_UNSUPPORTED,
                       "the rule names more than %d devices, \"%s\" among them", KT_MAX_DEVICES,
                       name);
    *index = (uint8_t)layout->num_devices;
    strcpy(layout->devices[layout->num_devices++], name);
    return KT_OK;
}

static kt_status place_layer(const kt_model *model, const kt_rule *rule, struct missing *missing,
                             int32_t l, struct kt_layout *layout)
{
    const struct kt_layer *layer = &model->layers[l];
    const struct kt_linear *linears[] = {layer->q_proj,   layer->q_a,        layer->q_b,
                                         layer->kv_a,     layer->kv_b,       layer->k_proj,
                                         layer->v_proj,   layer->mlp.gate,   layer->mlp.up,
                                         layer->mlp.down, layer->shared_gate};
    const char *name, *other;
    KT_TRY(device_of(model, rule, layout, missing, layer->o->name, &name));
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        if (!linears[i])
            continue;
        KT_TRY(device_of(model, rule, layout, missing, linears[i]->name, &other));
        if (strcmp(other, name) != 0)
            return kt_fail(model->ctx, KT_ERROR_UNSUPPORTED,
                           "the rule places %s on \"%s\" but %s on \"%s\"; a layer is computed on "
                           "one device (its routed experts apart): give both the same",
                           linears[i]->name, other, layer->o->name, name);
    }
    return index_of(model, layout, name, &layout->device[l]);
}

static kt_status place_all(const kt_model *model, const kt_rule *rule, struct kt_layout *layout)
{
    struct missing missing = {0};
    int32_t layers = model->config.num_hidden_layers;
    for (int32_t l = 0; l < layers; l++)
        KT_TRY(place_layer(model, rule, &missing, l, layout));
    const char *head;
    KT_TRY(device_of(model, rule, layout, &missing, model->lm_head->name, &head));
    return index_of(model, layout, head, &layout->device[layers]);
}

kt_status kt_layout_create(const kt_model *model, const kt_rule *rule, struct kt_layout *out)
{
    size_t units = (size_t)model->config.num_hidden_layers + 1;
    *out = (struct kt_layout){.device = calloc(units, sizeof *out->device)};
    if (!out->device)
        return kt_fail_memory(model->ctx, units, "a layout");
    kt_status status = place_all(model, rule, out);
    if (status != KT_OK)
        kt_layout_free(out);
    return status;
}

void kt_layout_free(struct kt_layout *layout)
{
    free(layout->device);
    *layout = (struct kt_layout){0};
}

int64_t kt_layout_layers(const struct kt_layout *layout, int32_t device, int32_t begin, int32_t end)
{
    int64_t num = 0;
    for (int32_t l = begin; l < end; l++)
        num += layout->device[l] == device;
    return num;
}
