/* SPDX-License-Identifier: Apache-2.0 */
/* What events come to. They are added up when a call ends, so that a trace of any length takes the
 * memory of one call, and the file's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/trace_state.h"
#include "core/clock.h"

enum { WHOLE_PHASE = -1 };

static int32_t resource_of(int32_t track)
{
    static const int32_t of_queue[KT_QUEUES] = {[KT_QUEUE_COMPUTE] = KT_RESOURCE_COMPUTE,
                                                [KT_QUEUE_IN] = KT_RESOURCE_TO_DEVICE,
                                                [KT_QUEUE_OUT] = KT_RESOURCE_FROM_DEVICE,
                                                [KT_QUEUE_SUPPLY] = KT_RESOURCE_TO_DEVICE};
    if (track == KT_TRACK_HOST)
        return KT_RESOURCE_HOST;
    if (track == KT_TRACK_CPU)
        return KT_RESOURCE_CPU;
    int32_t device = (track - KT_TRACK_DEVICES) / KT_QUEUES;
    return device * KT_RESOURCES_OF_DEVICE + of_queue[(track - KT_TRACK_DEVICES) % KT_QUEUES];
}

static struct kt_trace_sum *find(struct kt_trace *t, int32_t phase, int32_t resource,
                                 const char *name)
{
    uint64_t key =
        (uint64_t)(uintptr_t)name * 31 + (uint64_t)(resource + 1) * KT_PHASES + (uint64_t)phase;
    uint64_t at = key * 0x9e3779b97f4a7c15ull >> 51;
    struct kt_trace_sum *sum = &t->sums[at];
    while (sum->count && (sum->phase != phase || sum->resource != resource || sum->name != name)) {
        at = (at + 1) % KT_TRACE_SUMS;
        sum = &t->sums[at];
    }
    sum->phase = phase;
    sum->resource = resource;
    sum->name = name;
    return sum;
}

static void add(struct kt_trace *t, int32_t phase, int32_t resource, const char *name,
                const struct kt_event *event, double seconds)
{
    struct kt_trace_sum *sum = find(t, phase, resource, name);
    sum->count++;
    sum->seconds += seconds;
    sum->bytes += event->bytes;
    sum->flops += event->flops;
}

/** All but the time of resources. */
static void add_event(struct kt_trace *t, const struct kt_event *e)
{
    int32_t resource = resource_of(e->track), phase = e->phase;
    double seconds = e->end - e->begin;
    if (e->encloses) {
        if (e->name == kt_phase_names[phase])
            add(t, phase, WHOLE_PHASE, NULL, e, seconds);
        return;
    }
    add(t, phase, resource, e->name, e, seconds);
    add(t, phase, resource, NULL, e, 0);
    if (resource == KT_RESOURCE_CPU ||
        (resource < KT_RESOURCE_CPU && resource % KT_RESOURCES_OF_DEVICE != KT_RESOURCE_COMPUTE))
        add(t, phase, KT_RESOURCE_MEMORY, NULL, &(struct kt_event){.bytes = e->bytes}, 0);
    if (phase != KT_PHASE_OTHER)
        return;
    if (!t->other_begin || e->begin < t->other_begin)
        t->other_begin = e->begin;
    if (e->end > t->other_end)
        t->other_end = e->end;
}

/** The events of a track in their order, which is that of their times. */
struct chain {
    struct kt_event *next, *last;
};

static void chain_events(struct kt_trace *t, uint64_t end, struct chain *chains)
{
    memset(chains, 0, KT_TRACE_TRACKS * sizeof *chains);
    for (uint64_t i = t->folded; i < end; i++) {
        struct kt_event *e = &t->events[i];
        struct chain *chain = &chains[e->track];
        e->next = UINT32_MAX;
        if (e->encloses)
            continue;
        if (chain->last)
            chain->last->next = (uint32_t)i;
        else
            chain->next = e;
        chain->last = e;
    }
}

/** The earliest event of the tracks of a resource, taken from its chain; NULL = none is left. */
static struct kt_event *take_first(struct kt_trace *t, int32_t resource, struct chain *chains)
{
    struct chain *first = NULL;
    int32_t num_tracks = KT_TRACK_DEVICES + t->num_devices * KT_QUEUES;
    for (int32_t track = 0; track < num_tracks; track++) {
        struct chain *chain = &chains[track];
        if (chain->next && resource_of(track) == resource &&
            (!first || chain->next->begin < first->next->begin))
            first = chain;
    }
    if (!first)
        return NULL;
    struct kt_event *e = first->next;
    first->next = e->next == UINT32_MAX ? NULL : &t->events[e->next];
    return e;
}

/** Adds the time in which anything ran on a resource: each moment once. */
static void cover(struct kt_trace *t, int32_t resource, struct chain *chains)
{
    double *covered = &t->covered[resource];
    struct kt_event *e;
    while ((e = take_first(t, resource, chains))) {
        double begin = e->begin > *covered ? e->begin : *covered;
        if (e->end <= begin)
            continue;
        find(t, e->phase, resource, NULL)->seconds += e->end - begin;
        *covered = e->end;
    }
}

void kt_trace_fold(struct kt_trace *t)
{
    struct chain chains[KT_TRACE_TRACKS];
    uint64_t end = t->folded;
    while (end < t->used && kt_time_load(&t->events[end].end) > 0)
        end++;
    for (uint64_t i = t->folded; i < end; i++)
        add_event(t, &t->events[i]);
    chain_events(t, end, chains);
    for (int32_t r = 0; r < t->num_devices * KT_RESOURCES_OF_DEVICE; r++)
        cover(t, r, chains);
    cover(t, KT_RESOURCE_CPU, chains);
    t->folded = end;
    if (end == t->used && t->used > t->most) {
        t->beyond += t->used - t->most;
        t->used = t->folded = t->most;
    }
}

/* -- rows -------------------------------------------------------------------------------------- */

static void name_resources(struct kt_trace *t)
{
    static const char *const of_device[] = {[KT_RESOURCE_COMPUTE] = "compute",
                                            [KT_RESOURCE_TO_DEVICE] = "to device",
                                            [KT_RESOURCE_FROM_DEVICE] = "from device"};
    for (int32_t r = 0; r < t->num_devices * KT_RESOURCES_OF_DEVICE; r++)
        snprintf(t->resources[r], sizeof t->resources[r], "%s %s",
                 t->devices[r / KT_RESOURCES_OF_DEVICE].name,
                 of_device[r % KT_RESOURCES_OF_DEVICE]);
    snprintf(t->resources[KT_RESOURCE_CPU], sizeof t->resources[0], "CPU");
    snprintf(t->resources[KT_RESOURCE_MEMORY], sizeof t->resources[0], "host memory");
    snprintf(t->resources[KT_RESOURCE_HOST], sizeof t->resources[0], "host thread");
}

/** The time of what lies outside of calls, and that in which the host worked. */
static void complete(struct kt_trace *t)
{
    if (t->other_end)
        add(t, KT_PHASE_OTHER, WHOLE_PHASE, NULL, &(struct kt_event){0},
            t->other_end - t->other_begin);
    for (int32_t phase = 0; phase < KT_PHASES; phase++) {
        struct kt_trace_sum whole = *find(t, phase, WHOLE_PHASE, NULL);
        struct kt_trace_sum wait = *find(t, phase, KT_RESOURCE_HOST, kt_trace_wait);
        struct kt_trace_sum full = *find(t, phase, KT_RESOURCE_HOST, kt_trace_queue_full);
        struct kt_trace_sum *host = find(t, phase, KT_RESOURCE_HOST, NULL);
        if (whole.count && !host->count) /* it did nothing that has a name */
            host->count = whole.count;
        host->seconds = whole.seconds - wait.seconds - full.seconds;
    }
}

static int in_order(const void *a, const void *b)
{
    const struct kt_trace_sum *x = a, *y = b;
    if (x->phase != y->phase)
        return x->phase < y->phase ? -1 : 1;
    if (x->resource != y->resource)
        return x->resource < y->resource ? -1 : 1;
    if (!x->name != !y->name)
        return x->name ? 1 : -1;
    return x->seconds == y->seconds ? 0 : x->seconds > y->seconds ? -1 : 1;
}

kt_status kt_trace_make_rows(struct kt_trace *t)
{
    size_t num = 0;
    complete(t);
    name_resources(t);
    for (size_t i = 0; i < KT_TRACE_SUMS; i++)
        if (t->sums[i].count)
            t->sums[num++] = t->sums[i];
    t->rows = calloc(num + 1, sizeof *t->rows);
    if (!t->rows)
        return kt_fail_memory(t->ctx, num * sizeof *t->rows, "the summary of a trace");
    qsort(t->sums, num, sizeof *t->sums, in_order);
    for (size_t i = 0; i < num; i++) {
        const struct kt_trace_sum *s = &t->sums[i];
        t->rows[i] = (kt_trace_row){.phase = kt_phase_names[s->phase],
                                    .resource = s->resource < 0 ? NULL : t->resources[s->resource],
                                    .operation = s->name,
                                    .count = s->count,
                                    .seconds = s->seconds,
                                    .bytes = s->bytes,
                                    .flops = s->flops};
    }
    t->num_rows = num;
    return KT_OK;
}
