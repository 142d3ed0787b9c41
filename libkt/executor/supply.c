/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/supply.h"

#include <stdlib.h>
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "executor/supplied.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#include "placement/residency.h"

enum { BUFFERS = KT_SUPPLY_BUFFERS, MAX_WEIGHTS = 16 };

struct buffer {
    char *memory;
    int32_t unit;  /**< that was sent to it; -1 = none */
    kt_mark ready; /**< on SUPPLY */
};

struct unit {
    struct kt_supplied weights[MAX_WEIGHTS]; /**< in the unit's buffer */
    int32_t num_weights;
    uint64_t bytes;
    struct buffer home; /**< where it stays on the device; without memory it travels */
};

struct kt_supply {
    const kt_model *model;
    struct kt_device *device;
    struct unit *units; /**< [num_hidden_layers + 1] */
    uint64_t *bytes;    /**< their bytes */
    bool *resident;     /**< those that should have a home */
    struct buffer buffers[BUFFERS];
    int32_t latest;               /**< of the buffers, the one that was sent to last */
    const struct buffer *current; /**< of the unit that was entered */
    struct kt_pages *pages;       /**< of the checkpoint, in the host's memory */
    uint8_t *pinned; /**< [num_files] of the checkpoint: the device copies from it at full speed */
    bool settles;    /**< see kt_supply_settle: nothing is given up */
};

static int32_t num_units(const kt_model *model)
{
    return model->config.num_hidden_layers + 1;
}

static void add_weight(struct unit *unit, const struct kt_weight *w)
{
    if (!w || !w->data)
        return;
    unit->weights[unit->num_weights++] = kt_supplied_place(w, &unit->bytes);
}

static void add_linears(struct unit *unit, const struct kt_layer *layer)
{
    const struct kt_linear *linears[] = {layer->q_proj, layer->q_a,      layer->q_b,
                                         layer->kv_a,   layer->kv_b,     layer->k_proj,
                                         layer->v_proj, layer->o,        layer->mlp.gate,
                                         layer->mlp.up, layer->mlp.down, layer->shared_gate};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        add_weight(unit, linears[i] ? &linears[i]->weight : NULL);
    add_weight(unit, &layer->router);
}

static kt_status list_pages(struct kt_supply *supply, int32_t u)
{
    const struct unit *unit = &supply->units[u];
    const struct kt_weight *weights[MAX_WEIGHTS];
    const kt_model *model = supply->model;
    for (int32_t i = 0; i < unit->num_weights; i++)
        weights[i] = unit->weights[i].weight;
    return kt_pages_add(supply->pages, u, weights, unit->num_weights,
                        u < model->config.num_hidden_layers ? &model->layers[u] : NULL);
}

static kt_status list_units(struct kt_supply *supply, const uint8_t *units)
{
    const kt_model *model = supply->model;
    int32_t layers = model->config.num_hidden_layers;
    for (int32_t u = 0; u <= layers; u++) {
        struct unit *unit = &supply->units[u];
        if (!units[u])
            continue;
        if (u < layers)
            add_linears(unit, &model->layers[u]);
        else
            add_weight(unit, &model->lm_head->weight);
        KT_TRY(list_pages(supply, u));
    }
    return KT_OK;
}

uint64_t kt_supply_weights(const struct kt_supply *supply)
{
    uint64_t bytes = 0;
    for (int32_t u = 0; u < num_units(supply->model); u++) {
        const struct unit *unit = &supply->units[u];
        for (int32_t i = 0; i < unit->num_weights; i++)
            bytes += unit->weights[i].data_bytes + unit->weights[i].scale_bytes;
    }
    return bytes;
}

static void free_buffer(struct kt_supply *supply, struct buffer *buffer, uint64_t bytes)
{
    kt_device_free(supply->device, KT_MEMORY_DEVICE, buffer->memory, bytes);
    *buffer = (struct buffer){.unit = -1};
}

static void free_buffers(struct kt_supply *supply)
{
    for (int i = 0; i < BUFFERS && supply->bytes; i++)
        free_buffer(supply, &supply->buffers[i],
                    kt_residency_buffer(supply->bytes, num_units(supply->model)));
}

static kt_status allocate(struct kt_supply *supply, struct buffer *buffer, uint64_t bytes)
{
    void *memory;
    if (buffer->memory)
        return KT_OK;
    KT_TRY(kt_device_alloc(supply->device, KT_MEMORY_DEVICE, bytes, "the weights of a layer",
                           &memory));
    *buffer = (struct buffer){.memory = memory, .unit = -1};
    return KT_OK;
}

/** Files stay pinned as long as the supply lives, where memory holds them all. */
static void pin_files(struct kt_supply *supply)
{
    const struct kt_checkpoint *c = supply->model->checkpoint;
    const struct kt_device *device = supply->device;
    if (!device->ops->pin || kt_pages_overflow(supply->model))
        return;
    for (size_t i = 0; i < c->num_files; i++) {
        supply->pinned[i] =
            c->files[i].map && device->ops->pin(supply->device, c->files[i].map, c->files[i].size);
        if (supply->pinned[i])
            kt_pages_pinned(supply->pages);
    }
}

static void unpin_files(struct kt_supply *supply)
{
    const struct kt_checkpoint *c = supply->model->checkpoint;
    for (size_t i = 0; supply->pinned && i < c->num_files; i++)
        if (supply->pinned[i])
            supply->device->ops->unpin(supply->device, c->files[i].map, c->files[i].size);
    free(supply->pinned);
}

bool kt_supply_reclaim(struct kt_supply *supply, uint64_t bytes)
{
    int32_t num = num_units(supply->model);
    uint64_t freed = 0;
    if (supply->settles)
        return false;
    if (!supply->buffers[0].memory)
        bytes += BUFFERS * kt_residency_buffer(supply->bytes, num);
    for (int32_t u = num - 1; u >= 0 && freed < bytes; u--) {
        freed += supply->units[u].home.memory ? supply->bytes[u] : 0;
        free_buffer(supply, &supply->units[u].home, supply->bytes[u]);
        supply->resident[u] = false;
    }
    return freed;
}

uint64_t kt_supply_fit(const struct kt_supply *supply, uint64_t room, bool *resident)
{
    return kt_residency_fit(supply->bytes, num_units(supply->model), room, resident);
}

kt_status kt_supply_create(const kt_model *model, struct kt_device *device, const uint8_t *units,
                           struct kt_supply **out)
{
    struct kt_supply *supply = calloc(1, sizeof *supply);
    *out = NULL;
    if (!supply)
        return kt_fail_memory(model->ctx, sizeof *supply, "an executor");
    supply->model = model;
    supply->device = device;
    supply->units = calloc((size_t)num_units(model), sizeof *supply->units);
    supply->bytes = calloc((size_t)num_units(model), sizeof *supply->bytes);
    supply->resident = calloc((size_t)num_units(model), sizeof *supply->resident);
    supply->pinned = calloc(model->checkpoint->num_files + 1, sizeof *supply->pinned);
    if (!supply->units || !supply->bytes || !supply->resident || !supply->pinned) {
        kt_supply_free(supply);
        return kt_fail_memory(model->ctx, (uint64_t)num_units(model) * sizeof(struct unit),
                              "an executor");
    }
    for (int i = 0; i < BUFFERS; i++)
        supply->buffers[i].unit = -1;
    kt_status status = kt_pages_create(model, num_units(model), &supply->pages);
    if (status == KT_OK)
        status = list_units(supply, units);
    if (status != KT_OK) {
        kt_supply_free(supply);
        return status;
    }
    for (int32_t u = 0; u < num_units(model); u++)
        supply->bytes[u] = supply->units[u].bytes;
    pin_files(supply);
    *out = supply;
    return KT_OK;
}

void kt_supply_free(struct kt_supply *supply)
{
    if (!supply)
        return;
    kt_pages_free(supply->pages);
    unpin_files(supply);
    free_buffers(supply);
    for (int32_t u = 0; supply->units && u < num_units(supply->model); u++)
        free_buffer(supply, &supply->units[u].home, supply->units[u].bytes);
    free(supply->units);
    free(supply->bytes);
    free(supply->resident);
    free(supply);
}

/** Sends a unit into a buffer once nothing that is queued reads what was in it. */
static void send(const struct kt_supply *supply, const struct kt_runner *run, int32_t unit,
                 struct buffer *buffer)
{
    const struct unit *u = &supply->units[unit];
    int32_t before = kt_trace_layer(run->device->ctx, unit);
    kt_run_order(run, KT_QUEUE_SUPPLY, KT_QUEUE_COMPUTE);
    for (int32_t i = 0; i < u->num_weights; i++)
        kt_supplied_send(&u->weights[i], run, buffer->memory);
    buffer->unit = unit;
    buffer->ready = kt_run_mark(run, KT_QUEUE_SUPPLY);
    kt_trace_layer(run->device->ctx, before);
}

/** Where a unit is, or NULL. */
static struct buffer *place_of(struct kt_supply *supply, int32_t unit)
{
    struct unit *u = &supply->units[unit];
    if (u->home.memory)
        return u->home.unit == unit ? &u->home : NULL;
    for (int i = 0; i < BUFFERS; i++)
        if (supply->buffers[i].unit == unit)
            return &supply->buffers[i];
    return NULL;
}

/** Where it comes to: its home, or the buffer that was not sent to last, unless that is in use. */
static struct buffer *place_for(struct kt_supply *supply, int32_t unit)
{
    if (supply->units[unit].home.memory)
        return &supply->units[unit].home;
    int32_t next = (supply->latest + 1) % BUFFERS;
    supply->latest = &supply->buffers[next] == supply->current ? (next + 1) % BUFFERS : next;
    return &supply->buffers[supply->latest];
}

/** What a unit sends, were it in no buffer. One that stays is sent once. */
static void measure(const struct kt_supply *supply, const struct kt_runner *run, int32_t unit)
{
    const struct unit *u = &supply->units[unit];
    bool travels = !kt_device_is_host(supply->device) && !supply->resident[unit];
    for (int32_t i = 0; travels && i < u->num_weights; i++)
        kt_run_copy(run, KT_QUEUE_IN, NULL, NULL,
                    u->weights[i].data_bytes + u->weights[i].scale_bytes);
}

kt_status kt_supply_enter(struct kt_supply *supply, const struct kt_runner *run, int32_t unit,
                          int32_t then, struct kt_pages_walk walk)
{
    if (run->tally) {
        measure(supply, run, unit);
        return KT_OK;
    }
    KT_TRY(kt_pages_enter(supply->pages, walk, unit, then));
    if (kt_device_is_host(supply->device))
        return KT_OK;
    struct buffer *at = place_of(supply, unit);
    if (!at) {
        at = place_for(supply, unit);
        send(supply, run, unit, at);
    }
    supply->current = at;
    kt_run_wait(run, KT_QUEUE_COMPUTE, at->ready);
    if (then < 0 || place_of(supply, then) || kt_pages_lack(supply->pages, then))
        return KT_OK;
    KT_TRY(kt_pages_check(supply->pages, then));
    send(supply, run, then, place_for(supply, then));
    return KT_OK;
}

bool kt_supply_lacks(const struct kt_supply *supply, int32_t unit)
{
    return supply && kt_pages_lack(supply->pages, unit);
}

kt_status kt_supply_experts(const struct kt_supply *supply, const struct kt_layer *layer,
                            const struct kt_routing *routing)
{
    return supply ? kt_pages_experts(supply->pages, layer, routing) : KT_OK;
}

kt_status kt_supply_rows(const struct kt_supply *supply, const struct kt_weight *table,
                         const int32_t *ids, int64_t num)
{
    return kt_pages_rows(supply->pages, table, ids, num);
}

struct kt_weight kt_supply_take(const struct kt_supply *supply, const struct kt_weight *weight)
{
    const struct buffer *buffer = supply->current;
    const struct unit *u = &supply->units[buffer->unit];
    for (int32_t i = 0; i < u->num_weights; i++)
        if (u->weights[i].weight->data == weight->data)
            return kt_supplied_weight(&u->weights[i], buffer->memory);
    return *weight;
}

uint64_t kt_supply_taken(const struct kt_supply *supply)
{
    int32_t num = num_units(supply->model);
    uint64_t bytes = 0;
    for (int32_t u = 0; u < num; u++)
        bytes += supply->units[u].home.memory ? supply->bytes[u] : 0;
    for (int i = 0; i < BUFFERS; i++)
        bytes += supply->buffers[i].memory ? kt_residency_buffer(supply->bytes, num) : 0;
    return bytes;
}

/** What weights may take: what they have, and what is left. */
static uint64_t room_of(const struct kt_supply *supply)
{
    const struct kt_device *device = supply->device;
    uint64_t others = device->allocated - kt_supply_taken(supply);
    if (!device->limit)
        return UINT64_MAX;
    return device->limit > others ? device->limit - others : 0;
}

/** Homes of the units that should have one, as far as the device has memory; false where it has
 * not enough. */
static bool allocate_homes(struct kt_supply *supply)
{
    int32_t num = num_units(supply->model);
    bool all = true;
    for (int32_t u = 0; u < num; u++)
        if (!supply->resident[u])
            free_buffer(supply, &supply->units[u].home, supply->bytes[u]);
    for (int32_t u = 0; u < num; u++) {
        if (supply->resident[u])
            all = all && allocate(supply, &supply->units[u].home, supply->bytes[u]) == KT_OK;
        supply->resident[u] = supply->units[u].home.memory;
    }
    return all;
}

/** Whether a unit of the device has no home. */
static bool any_travels(const struct kt_supply *supply)
{
    bool any = false;
    for (int32_t u = 0; u < num_units(supply->model); u++)
        any = any || (supply->bytes[u] && !supply->resident[u]);
    return any;
}

static kt_status settle(struct kt_supply *supply)
{
    uint64_t bytes = kt_residency_buffer(supply->bytes, num_units(supply->model));
    kt_supply_fit(supply, room_of(supply), supply->resident);
    if (!any_travels(supply))
        free_buffers(supply);
    if (allocate_homes(supply) && !any_travels(supply))
        return KT_OK;
    supply->settles = false;
    for (int i = 0; i < BUFFERS; i++)
        KT_TRY(allocate(supply, &supply->buffers[i], bytes));
    return KT_OK;
}

kt_status kt_supply_settle(struct kt_supply *supply)
{
    if (!supply || kt_device_is_host(supply->device))
        return KT_OK;
    supply->settles = true;
    kt_status status = settle(supply);
    supply->settles = false;
    return status;
}
