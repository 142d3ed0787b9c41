/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/site.h"

#include <stdlib.h>

#include "backends/registry.h"
#include "core/context.h"

/** For routed experts on a device where nobody says how much of its memory there is to spare. */
enum { EXPERT_BYTES = 1 << 30 };

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
        return false; /* computed on the host */
    return units[unit];
}

static bool is_routed(const kt_model *model, const struct kt_linear *linear, const uint8_t *layers)
{
    return linear->role == KT_ROLE_ROUTED_EXPERT && layers[kt_linear_unit(model, linear)];
}

/** Lists what the site has of the adapter, by one of the questions above; neighbours become one
 * piece. */
static kt_status list_mirrored(const kt_lora *lora,
                               bool (*is)(const kt_model *, const struct kt_linear *,
                                          const uint8_t *),
                               const uint8_t *units, struct kt_mirrored **out, int32_t *num)
{
    const kt_model *model = lora->model;
    struct kt_mirrored *pieces = calloc((size_t)lora->num_attached + 1, sizeof *pieces);
    *out = pieces;
    if (!pieces)
        return kt_fail_memory(model->ctx, (uint64_t)lora->num_attached * 16, "an executor");
    for (int32_t i = 0; i < lora->num_attached; i++) {
        uint64_t begin = kt_adapter_pair_offset(lora, i), count = kt_adapter_pair_size(lora, i);
        struct kt_mirrored *last = *num ? &pieces[*num - 1] : NULL;
        if (!is(model, &model->linears[lora->attached[i]], units))
            continue;
        if (last && last->begin + last->count == begin)
            last->count += count;
        else
            pieces[(*num)++] = (struct kt_mirrored){begin, count};
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

/** Without a limit that is all they get. */
uint64_t kt_site_expert_least(const struct kt_site *site)
{
    uint64_t limit = site->device->limit;
    return kt_expert_supply_bytes(site->experts, limit ? limit / 8 : site->expert_bytes);
}

/** Experts that stay go first, then other weights. */
static bool reclaim(void *owner, uint64_t bytes)
{
    struct kt_site *site = owner;
    return kt_expert_supply_give_up(site->experts) || kt_supply_reclaim(site->supply, bytes);
}

/** What there is but for a margin, for the device's own needs and for others; 0 = not known. */
static uint64_t available(const struct kt_device *device)
{
    uint64_t bytes = device->ops->available ? device->ops->available(device) : 0;
    return bytes - bytes / 10;
}

kt_status kt_site_open(kt_model *model, const kt_lora *lora, const char *name, const uint8_t *units,
                       const uint8_t *experts, uint64_t limit, struct kt_site *site)
{
    *site = (struct kt_site){
        .vectors = {.kind = KT_MEMORY_DEVICE, .what = "norms and biases on a device"},
        .lora = {.kind = KT_MEMORY_DEVICE, .what = "the adapter on a device"},
        .lora_grad = {.kind = KT_MEMORY_DEVICE, .what = "gradients on a device"},
        .expert_bytes = EXPERT_BYTES};
    KT_TRY(kt_device_open(model->ctx, name, &site->device));
    if (!kt_device_is_host(site->device))
        site->device->limit = limit ? limit : available(site->device);
    KT_TRY(kt_supply_create(model, site->device, units, &site->supply));
    if (kt_device_is_host(site->device))
        return KT_OK;
    site->device->reclaim = reclaim;
    site->device->owner = site;
    KT_TRY(kt_expert_supply_create(model, site->device, experts, &site->experts));
    if (lora) {
        KT_TRY(list_mirrored(lora, is_mirrored, units, &site->mirrored, &site->num_mirrored));
        KT_TRY(list_mirrored(lora, is_routed, experts, &site->routed, &site->num_routed));
    }
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
    kt_expert_supply_free(site->experts);
    kt_supply_free(site->supply);
    kt_device_close(site->device);
    free(site->mirrored);
    free(site->routed);
}

static void copy_pieces(const struct kt_mirrored *pieces, int32_t num, const struct kt_runner *run,
                        enum kt_queue queue, void *to, const void *from)
{
    for (int32_t i = 0; i < num; i++) {
        uint64_t begin = pieces[i].begin * sizeof(float);
        kt_run_copy(run, queue, (char *)to + begin, (const char *)from + begin,
                    pieces[i].count * sizeof(float));
    }
}

/** To the device: after what computes with the copy so far, and before what is to. */
static void send_pieces(const struct kt_mirrored *pieces, int32_t num, const struct kt_runner *run,
                        void *to, const void *from)
{
    kt_run_order(run, KT_QUEUE_IN, KT_QUEUE_COMPUTE);
    copy_pieces(pieces, num, run, KT_QUEUE_IN, to, from);
    kt_run_order(run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
}

/** To the host, after what computes with them. */
static void fetch_pieces(const struct kt_mirrored *pieces, int32_t num, const struct kt_runner *run,
                         void *to, const void *from)
{
    kt_run_order(run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    copy_pieces(pieces, num, run, KT_QUEUE_OUT, to, from);
}

void kt_site_lora_in(struct kt_site *site, const struct kt_runner *run, const kt_lora *lora,
                     uint64_t fingerprint)
{
    if (fingerprint && site->adapter == fingerprint)
        return;
    send_pieces(site->mirrored, site->num_mirrored, run, site->lora.memory, lora->data);
    send_pieces(site->routed, site->num_routed, run, site->lora.memory, lora->data);
    site->adapter = fingerprint;
}

void kt_site_grad_in(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora)
{
    send_pieces(site->mirrored, site->num_mirrored, run, site->lora_grad.memory, lora->grad);
}

void kt_site_grad_out(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora)
{
    fetch_pieces(site->mirrored, site->num_mirrored, run, lora->grad, site->lora_grad.memory);
}

/** The pair's gradients, A's and B's, lie behind each other. */
static struct kt_mirrored gradients_of(const kt_lora *lora, const struct kt_linear *linear)
{
    const struct kt_lora_pair *pair = &lora->slots[linear->index];
    return (struct kt_mirrored){.begin = (uint64_t)(pair->da - lora->grad),
                                .count = (uint64_t)pair->rank *
                                         (uint64_t)(linear->weight.rows + linear->weight.cols)};
}

void kt_site_linear_grad_in(const struct kt_site *site, const struct kt_runner *run,
                            const kt_lora *lora, const struct kt_linear *linear)
{
    struct kt_mirrored piece = gradients_of(lora, linear);
    send_pieces(&piece, 1, run, site->lora_grad.memory, lora->grad);
}

void kt_site_linear_grad_out(const struct kt_site *site, const struct kt_runner *run,
                             const kt_lora *lora, const struct kt_linear *linear)
{
    struct kt_mirrored piece = gradients_of(lora, linear);
    fetch_pieces(&piece, 1, run, lora->grad, site->lora_grad.memory);
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
