/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/site.h"

#include <stdlib.h>

#include "backends/registry.h"
#include "core/context.h"

kt_status kt_block_reserve(struct kt_device *device, struct kt_block *block, uint64_t size)
{
    if (size <= block->size)
        return KT_OK;
    kt_block_free(device, block);
    KT_TRY(kt_device_alloc(device, block->kind, size, block->what, &block->memory));
    block->size = size;
    return KT_OK;
}

void kt_block_free(struct kt_device *device, struct kt_block *block)
{
    kt_device_free(device, block->kind, block->memory, block->size);
    block->memory = NULL;
    block->size = 0;
}

static bool is_mirrored(const kt_model *model, const struct kt_linear *linear, const uint8_t *units)
{
    int32_t unit = kt_linear_unit(model, linear);
    if (linear->role == KT_ROLE_ROUTED_EXPERT)
        return false;
    if (linear->role == KT_ROLE_SHARED_EXPERT && model->layers[unit].shared_gate)
        return false; /* computed on the host too */
    return units[unit];
}

/** Lists what the site has of the adapter; neighbours become one piece. */
static kt_status list_mirrored(const kt_lora *lora, const uint8_t *units, struct kt_site *site)
{
    const kt_model *model = lora->model;
    site->mirrored = calloc((size_t)lora->num_attached + 1, sizeof *site->mirrored);
    if (!site->mirrored)
        return kt_fail_memory(model->ctx, (uint64_t)lora->num_attached * 16, "an executor");
    for (int32_t i = 0; i < lora->num_attached; i++) {
        const struct kt_linear *linear = &model->linears[lora->attached[i]];
        uint64_t begin = kt_adapter_pair_offset(lora, i), count = kt_adapter_pair_size(lora, i);
        struct kt_mirrored *last =
            site->num_mirrored ? &site->mirrored[site->num_mirrored - 1] : NULL;
        if (!is_mirrored(model, linear, units))
            continue;
        if (last && last->begin + last->count == begin)
            last->count += count;
        else
            site->mirrored[site->num_mirrored++] = (struct kt_mirrored){begin, count};
    }
    return KT_OK;
}

static kt_status copy_in(struct kt_site *site, const kt_model *model, const kt_lora *lora)
{
    struct kt_runner run = {.device = site->device};
    uint64_t bytes = model->num_vectors * sizeof *model->vectors;
    KT_TRY(kt_block_reserve(site->device, &site->vectors, bytes));
    kt_run_copy(&run, KT_QUEUE_IN, site->vectors.memory, model->vectors, bytes);
    if (lora) {
        KT_TRY(kt_block_reserve(site->device, &site->lora, lora->num_parameters * sizeof(float)));
        KT_TRY(
            kt_block_reserve(site->device, &site->lora_grad, lora->num_parameters * sizeof(float)));
    }
    return kt_run_sync(&run, kt_run_mark(&run, KT_QUEUE_IN));
}

kt_status kt_site_open(kt_model *model, const kt_lora *lora, const char *name, const uint8_t *units,
                       uint64_t limit, struct kt_site *site)
{
    *site = (struct kt_site){
        .vectors = {.kind = KT_MEMORY_DEVICE, .what = "norms and biases on a device"},
        .lora = {.kind = KT_MEMORY_DEVICE, .what = "the adapter on a device"},
        .lora_grad = {.kind = KT_MEMORY_DEVICE, .what = "gradients on a device"}};
    KT_TRY(kt_device_open(model->ctx, name, &site->device));
    if (!kt_device_is_host(site->device))
        site->device->limit = limit;
    KT_TRY(kt_supply_create(model, site->device, units, &site->supply));
    if (kt_device_is_host(site->device))
        return KT_OK;
    if (lora)
        KT_TRY(list_mirrored(lora, units, site));
    return copy_in(site, model, lora);
}

void kt_site_close(struct kt_site *site)
{
    if (!site->device)
        return;
    (void)kt_device_drain(site->device);
    kt_block_free(site->device, &site->vectors);
    kt_block_free(site->device, &site->lora);
    kt_block_free(site->device, &site->lora_grad);
    kt_supply_free(site->supply);
    kt_device_close(site->device);
    free(site->mirrored);
}

static void copy_mirrored(const struct kt_site *site, const struct kt_runner *run,
                          enum kt_queue queue, void *to, const void *from)
{
    for (int32_t i = 0; i < site->num_mirrored; i++) {
        uint64_t begin = site->mirrored[i].begin * sizeof(float);
        kt_run_copy(run, queue, (char *)to + begin, (const char *)from + begin,
                    site->mirrored[i].count * sizeof(float));
    }
}

/** After what computes with the copy so far, and before what is to. */
static void send_mirrored(const struct kt_site *site, const struct kt_runner *run, void *to,
                          const float *from)
{
    kt_run_order(run, KT_QUEUE_IN, KT_QUEUE_COMPUTE);
    copy_mirrored(site, run, KT_QUEUE_IN, to, from);
    kt_run_order(run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
}

void kt_site_lora_in(struct kt_site *site, const struct kt_runner *run, const kt_lora *lora,
                     uint64_t fingerprint)
{
    if (!fingerprint || site->adapter != fingerprint)
        send_mirrored(site, run, site->lora.memory, lora->data);
    site->adapter = fingerprint;
}

void kt_site_grad_in(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora)
{
    send_mirrored(site, run, site->lora_grad.memory, lora->grad);
}

void kt_site_grad_out(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora)
{
    kt_run_order(run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    copy_mirrored(site, run, KT_QUEUE_OUT, lora->grad, site->lora_grad.memory);
}

/** The same place in the copy of an array. */
static void *moved(void *copy, const float *array, const float *at)
{
    return copy && at ? (char *)copy + ((const char *)at - (const char *)array)
                      : (void *)(uintptr_t)at;
}

const float *kt_site_vector(const struct kt_site *site, const kt_model *model, const float *vector)
{
    return moved(site->vectors.memory, model->vectors, vector);
}

const float *kt_site_lora(const struct kt_site *site, const kt_lora *lora, const float *data)
{
    return moved(site->lora.memory, lora->data, data);
}

float *kt_site_grad(const struct kt_site *site, const kt_lora *lora, float *grad)
{
    return moved(site->lora_grad.memory, lora->grad, grad);
}
