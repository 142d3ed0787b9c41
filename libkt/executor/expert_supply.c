/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/expert_supply.h"

#include <stdlib.h>
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "executor/supplied.h"

enum { LEAST_PLACES = 2, NONE = -1 };

/** Memory of one expert. A place of the ring is free, or sent and not yet taken, or taken. */
struct place {
    int32_t layer, expert; /**< NONE = nothing was sent there */
    kt_mark ready;         /**< on SUPPLY; 0 = COMPUTE waited for it */
    kt_mark used;          /**< on COMPUTE: it may be written to after that */
};

/** Places of the ring, first in, first out. */
struct places {
    int32_t *at; /**< [num_ring] */
    int32_t first, num;
};

struct kt_expert_supply {
    const kt_model *model;
    struct kt_device *device;
    uint8_t *layers; /**< [num_hidden_layers] 1 = one of its */
    int32_t num_layers, num_experts;
    uint64_t place_bytes;
    char *memory;
    struct place *places; /**< [num_places], the ring first */
    int32_t num_places, num_ring;
    int32_t own;       /**< experts below it have a place of their own in every layer */
    int32_t *position; /**< [num_hidden_layers] of a layer among its layers */
    struct places sent, free;
    struct place *taken[KT_EXPERTS_TOGETHER]; /**< what is in use */
    int32_t num_taken;
    /* what is sent next */
    int32_t layer, next_expert; /**< of the layer that was entered; num_experts = all are sent */
    int32_t then, then_expert;  /**< of the one behind it */
    int32_t then_end;           /**< experts from here on do not travel before it is entered */
    uint8_t *chosen;            /**< [num_experts] of the layer that was entered */
};

/** Where the three weights of an expert lie in its place; bytes altogether. */
static uint64_t lay_out(const kt_model *model, int32_t layer, int32_t expert,
                        struct kt_supplied weights[KT_EXPERT_LINEARS])
{
    uint64_t bytes = 0;
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        weights[k] = kt_supplied_place(&model->layers[layer].expert_weights[k][expert], &bytes);
    return bytes;
}

static uint64_t largest_expert(const struct kt_expert_supply *s)
{
    struct kt_supplied weights[KT_EXPERT_LINEARS];
    uint64_t most = 0;
    for (int32_t l = 0; l < s->model->config.num_hidden_layers; l++)
        for (int32_t e = 0; s->layers[l] && e < s->num_experts; e++) {
            uint64_t bytes = lay_out(s->model, l, e, weights);
            most = bytes > most ? bytes : most;
        }
    return most;
}

static void list_layers(struct kt_expert_supply *s, const uint8_t *layers)
{
    for (int32_t l = 0; l < s->model->config.num_hidden_layers; l++) {
        s->layers[l] = layers[l] && s->model->layers[l].is_moe;
        s->position[l] = s->num_layers;
        s->num_layers += s->layers[l];
    }
}

static bool does_nothing(const struct kt_expert_supply *s)
{
    return !s || !s->num_layers || kt_device_is_host(s->device);
}

uint64_t kt_expert_supply_taken(const struct kt_expert_supply *s)
{
    return does_nothing(s) ? 0 : (uint64_t)s->num_places * s->place_bytes;
}

/** Nothing is queued that uses it. */
static void free_places(struct kt_expert_supply *s)
{
    kt_device_free(s->device, KT_MEMORY_DEVICE, s->memory, kt_expert_supply_taken(s));
    free(s->places);
    free(s->sent.at);
    free(s->free.at);
    s->memory = NULL;
    s->places = NULL;
    s->sent = s->free = (struct places){0};
    s->num_places = s->num_ring = s->own = s->num_taken = 0;
}

static void push(const struct kt_expert_supply *s, struct places *to, int32_t place)
{
    to->at[(to->first + to->num++) % s->num_ring] = place;
}

static struct place *pop(const struct kt_expert_supply *s, struct places *from)
{
    struct place *place = &s->places[from->at[from->first]];
    from->first = (from->first + 1) % s->num_ring;
    from->num--;
    return place;
}

/** The i-th of those that were sent. */
static struct place *sent_place(const struct kt_expert_supply *s, int32_t i)
{
    return &s->places[s->sent.at[(s->sent.first + i) % s->num_ring]];
}

kt_status kt_expert_supply_create(const kt_model *model, struct kt_device *device,
                                  const uint8_t *layers, struct kt_expert_supply **out)
{
    struct kt_expert_supply *s = calloc(1, sizeof *s);
    size_t num = (size_t)model->config.num_hidden_layers;
    size_t experts = (size_t)model->config.n_routed_experts;
    *out = s;
    if (s) {
        s->layers = calloc(num, sizeof *s->layers);
        s->position = calloc(num, sizeof *s->position);
        s->chosen = calloc(experts + 1, sizeof *s->chosen);
    }
    if (!s || !s->layers || !s->position || !s->chosen)
        return kt_fail_memory(model->ctx, 5 * num + experts, "an executor");
    s->model = model;
    s->device = device;
    s->num_experts = model->config.n_routed_experts;
    s->layer = s->then = NONE;
    s->next_expert = s->num_experts;
    list_layers(s, layers);
    s->place_bytes = largest_expert(s);
    return KT_OK;
}

void kt_expert_supply_free(struct kt_expert_supply *s)
{
    if (!s)
        return;
    if (s->device)
        free_places(s);
    free(s->layers);
    free(s->position);
    free(s->chosen);
    free(s);
}

uint64_t kt_expert_supply_bytes(const struct kt_expert_supply *s, uint64_t bytes)
{
    if (does_nothing(s))
        return 0;
    uint64_t most = (uint64_t)s->num_layers * (uint64_t)s->num_experts + LEAST_PLACES;
    uint64_t places = bytes / s->place_bytes;
    places = places > most ? most : places < LEAST_PLACES ? LEAST_PLACES : places;
    return places * s->place_bytes;
}

/** A ring of a quarter of the places, but no more than a layer's experts; the rest is for experts
 * that stay, of every layer as many. */
static void divide(struct kt_expert_supply *s)
{
    int64_t places = s->num_places, ring = kt_min_i64(places / 4, s->num_experts);
    ring = kt_max_i64(ring, LEAST_PLACES);
    if (places >= (int64_t)s->num_layers * s->num_experts + LEAST_PLACES)
        ring = LEAST_PLACES;
    s->own = (int32_t)kt_min_i64((places - ring) / s->num_layers, s->num_experts);
    s->num_ring = (int32_t)(places - (int64_t)s->own * s->num_layers);
    for (int32_t i = 0; i < s->num_places; i++)
        s->places[i] = (struct place){.layer = NONE};
    s->num_taken = 0;
    for (int32_t i = 0; i < s->num_ring; i++)
        push(s, &s->free, i);
}

bool kt_expert_supply_give_up(struct kt_expert_supply *s)
{
    if (!kt_expert_supply_taken(s))
        return false;
    (void)kt_device_drain(s->device);
    free_places(s);
    return true;
}

kt_status kt_expert_supply_reserve(struct kt_expert_supply *s, uint64_t bytes)
{
    void *memory;
    bytes = kt_expert_supply_bytes(s, bytes);
    if (bytes == kt_expert_supply_taken(s))
        return KT_OK;
    (void)kt_expert_supply_give_up(s);
    int32_t num = (int32_t)(bytes / s->place_bytes);
    s->places = calloc((size_t)num, sizeof *s->places);
    s->sent.at = calloc((size_t)num, sizeof *s->sent.at);
    s->free.at = calloc((size_t)num, sizeof *s->free.at);
    kt_status status = KT_OK;
    if (!s->places || !s->sent.at || !s->free.at)
        status = kt_fail_memory(s->model->ctx, (uint64_t)num * sizeof *s->places, "an executor");
    if (status == KT_OK)
        status = kt_device_alloc(s->device, KT_MEMORY_DEVICE, bytes, "routed experts", &memory);
    if (status != KT_OK) {
        free_places(s);
        return status;
    }
    s->memory = memory;
    s->num_places = num;
    divide(s);
    return KT_OK;
}

kt_status kt_expert_supply_settle(struct kt_expert_supply *s)
{
    const struct kt_device *device = s ? s->device : NULL;
    if (does_nothing(s) || !device->limit)
        return KT_OK;
    uint64_t others = device->allocated - kt_expert_supply_taken(s);
    return kt_expert_supply_reserve(s, device->limit > others ? device->limit - others : 0);
}

/** The place of an expert that has one of its own, or NULL. */
static struct place *own_place(const struct kt_expert_supply *s, int32_t layer, int32_t expert)
{
    if (expert >= s->own)
        return NULL;
    return &s->places[s->num_places - 1 - (s->position[layer] * s->own + expert)];
}

static bool is_sent(const struct kt_expert_supply *s, int32_t layer, int32_t expert)
{
    for (int32_t i = 0; i < s->sent.num; i++)
        if (sent_place(s, i)->layer == layer && sent_place(s, i)->expert == expert)
            return true;
    return false;
}

uint64_t kt_expert_supply_distance(const struct kt_expert_supply *s, int32_t layer, int32_t expert)
{
    struct kt_supplied weights[KT_EXPERT_LINEARS];
    if (does_nothing(s) || own_place(s, layer, expert))
        return 0;
    return lay_out(s->model, layer, expert, weights);
}

bool kt_expert_supply_coming(const struct kt_expert_supply *s, int32_t layer, int32_t expert)
{
    return does_nothing(s) || own_place(s, layer, expert) || is_sent(s, layer, expert);
}

static char *memory_of(const struct kt_expert_supply *s, const struct place *place)
{
    return s->memory + (uint64_t)(place - s->places) * s->place_bytes;
}

static void send(struct kt_expert_supply *s, const struct kt_runner *run, struct place *place,
                 int32_t layer, int32_t expert)
{
    struct kt_supplied weights[KT_EXPERT_LINEARS];
    int32_t before = kt_trace_layer(run->device->ctx, layer);
    lay_out(s->model, layer, expert, weights);
    kt_run_wait(run, KT_QUEUE_SUPPLY, place->used);
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        kt_supplied_send(&weights[k], run, memory_of(s, place));
    *place = (struct place){layer, expert, kt_run_mark(run, KT_QUEUE_SUPPLY), 0};
    kt_trace_layer(run->device->ctx, before);
}

/** The expert that the ring should get next; false when nobody knows of one. */
static bool next_wanted(struct kt_expert_supply *s, int32_t *layer, int32_t *expert)
{
    while (s->next_expert < s->num_experts) {
        int32_t e = s->next_expert++;
        if (s->chosen[e] && e >= s->own) {
            *layer = s->layer;
            *expert = e;
            return true;
        }
    }
    if (s->then == NONE || s->then_expert >= s->then_end)
        return false;
    *layer = s->then;
    *expert = s->then_expert++;
    return true;
}

static void fill_ring(struct kt_expert_supply *s, const struct kt_runner *run)
{
    int32_t layer, expert;
    while (s->free.num && next_wanted(s, &layer, &expert)) {
        struct place *place = pop(s, &s->free);
        send(s, run, place, layer, expert);
        push(s, &s->sent, (int32_t)(place - s->places));
    }
}

/** Of what was sent, keeps what is wanted of the layer that is entered, and goes on behind it. */
static void keep_wanted(struct kt_expert_supply *s)
{
    s->next_expert = 0;
    for (int32_t left = s->sent.num; left > 0; left--) {
        struct place *place = pop(s, &s->sent);
        bool of_layer = place->layer == s->layer;
        if (of_layer)
            s->next_expert = place->expert + 1;
        push(s, of_layer && s->chosen[place->expert] ? &s->sent : &s->free,
             (int32_t)(place - s->places));
    }
}

void kt_expert_supply_enter(struct kt_expert_supply *s, const struct kt_runner *run, int32_t layer,
                            const uint8_t *chosen, int32_t then, int32_t most)
{
    if (does_nothing(s) || run->tally)
        return;
    memcpy(s->chosen, chosen, (size_t)s->num_experts);
    s->layer = layer;
    s->then = then >= 0 && s->layers[then] ? then : NONE;
    s->then_expert = s->own;
    s->then_end = (int32_t)kt_min_i64((int64_t)s->own + most, s->num_experts);
    keep_wanted(s);
    fill_ring(s, run);
}

int32_t kt_expert_supply_moving(const struct kt_expert_supply *s)
{
    if (does_nothing(s))
        return KT_EXPERTS_TOGETHER;
    return (int32_t)kt_max_i64(kt_min_i64(s->num_ring / 3, KT_EXPERTS_TOGETHER), 1);
}

bool kt_expert_supply_stays(const struct kt_expert_supply *s, int32_t expert)
{
    return does_nothing(s) || expert < s->own;
}

void kt_expert_supply_take(struct kt_expert_supply *s, const struct kt_runner *run, int32_t expert)
{
    if (does_nothing(s) || run->tally)
        return;
    struct place *place = own_place(s, s->layer, expert);
    if (!place)
        place = pop(s, &s->sent);
    else if (place->layer == NONE)
        send(s, run, place, s->layer, expert);
    kt_run_wait(run, KT_QUEUE_COMPUTE, place->ready);
    place->ready = 0;
    s->taken[s->num_taken++] = place;
}

void kt_expert_supply_give_back(struct kt_expert_supply *s, const struct kt_runner *run)
{
    kt_mark used = 0;
    if (does_nothing(s) || run->tally)
        return;
    for (int32_t i = 0; i < s->num_taken; i++) {
        int32_t place = (int32_t)(s->taken[i] - s->places);
        if (place >= s->num_ring)
            continue;
        if (!used)
            used = kt_run_mark(run, KT_QUEUE_COMPUTE);
        s->places[place].used = used;
        push(s, &s->free, place);
    }
    s->num_taken = 0;
    fill_ring(s, run);
}

bool kt_expert_supply_find(const struct kt_expert_supply *s, const struct kt_weight *weight,
                           struct kt_weight *out)
{
    struct kt_supplied weights[KT_EXPERT_LINEARS];
    for (int32_t i = 0; !does_nothing(s) && i < s->num_taken; i++) {
        const struct kt_layer *layer = &s->model->layers[s->taken[i]->layer];
        for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
            if (layer->expert_weights[k][s->taken[i]->expert].data != weight->data)
                continue;
            lay_out(s->model, s->taken[i]->layer, s->taken[i]->expert, weights);
            *out = kt_supplied_weight(&weights[k], memory_of(s, s->taken[i]));
            return true;
        }
    }
    return false;
}
