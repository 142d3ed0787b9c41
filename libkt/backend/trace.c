/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/trace_state.h"
#include "core/clock.h"
#include "formats/atomic_file.h"

/** Events that a file holds unless the host says how many, and those of one call. */
enum { MOST_EVENTS = 1 << 20, EVENTS_OF_A_CALL = 1 << 18 };

const char kt_trace_wait[] = "wait", kt_trace_queue_full[] = "queue full";

const char *const kt_phase_names[KT_PHASES] = {
    [KT_PHASE_OTHER] = "other",       [KT_PHASE_FORWARD] = "forward",
    [KT_PHASE_BACKWARD] = "backward", [KT_PHASE_PROMPT] = "prompt",
    [KT_PHASE_DECODE] = "decode",     [KT_PHASE_OPTIMIZER] = "optimizer",
};

/* -- events ------------------------------------------------------------------------------------ */

struct kt_event *kt_trace_event(struct kt_trace *t, int32_t track, const char *name, double bytes,
                                double flops)
{
    if (track < 0 || t->used == t->capacity) {
        t->lost++;
        return NULL;
    }
    struct kt_event *event = &t->events[t->used++];
    *event = (struct kt_event){.bytes = bytes,
                               .flops = flops,
                               .name = name,
                               .layer = t->layer,
                               .track = (uint8_t)track,
                               .phase = (uint8_t)t->phase};
    return event;
}

/** The place of a device; a name that was closed may be opened again. */
static int32_t place_of(struct kt_trace *t, struct kt_device *dev)
{
    int32_t i = 0;
    while (i < t->num_devices && t->devices[i].device != dev)
        i++;
    if (i < t->num_devices)
        return i;
    for (i = 0; i < t->num_devices; i++)
        if (!t->devices[i].device && strcmp(t->devices[i].name, dev->ops->name) == 0)
            break;
    if (i == KT_TRACE_DEVICES)
        return -1;
    t->num_devices += i == t->num_devices;
    t->devices[i].device = dev;
    snprintf(t->devices[i].name, sizeof t->devices[i].name, "%s", dev->ops->name);
    return i;
}

int32_t kt_trace_track(struct kt_trace *t, struct kt_device *dev, enum kt_queue queue)
{
    if (kt_device_is_host(dev))
        return KT_TRACK_CPU;
    int32_t place = dev->ops->stamp ? place_of(t, dev) : -1;
    return place < 0 ? -1 : KT_TRACK_DEVICES + place * KT_QUEUES + (int32_t)queue;
}

/** They store what they know. */
static void ask_devices(const struct kt_trace *t)
{
    for (int32_t i = 0; i < t->num_devices; i++) {
        struct kt_device *dev = t->devices[i].device;
        if (dev && dev->ops->stamped)
            dev->ops->stamped(dev);
    }
}

void kt_trace_forget(struct kt_trace *t, const struct kt_device *dev)
{
    ask_devices(t);
    for (int32_t i = 0; i < t->num_devices; i++)
        if (t->devices[i].device == dev)
            t->devices[i].device = NULL;
}

/* -- what the host does ------------------------------------------------------------------------ */

struct kt_scope kt_trace_begin(struct kt_trace *t, int32_t track, const char *name, double bytes,
                               double flops)
{
    struct kt_scope scope = {.trace = t, .event = kt_trace_event(t, track, name, bytes, flops)};
    if (scope.event)
        scope.event->begin = kt_clock();
    return scope;
}

struct kt_scope kt_trace_begin_phase(struct kt_trace *t, enum kt_phase phase)
{
    t->phase = phase;
    struct kt_scope scope = kt_trace_begin(t, KT_TRACK_HOST, kt_phase_names[phase], 0, 0);
    scope.is_phase = true;
    if (scope.event)
        scope.event->encloses = true;
    return scope;
}

static void end_phase(struct kt_trace *t)
{
    t->phase = KT_PHASE_OTHER;
    t->layer = -1;
    ask_devices(t);
    kt_trace_fold(t);
}

void kt_trace_end(struct kt_scope *scope)
{
    if (!scope->trace)
        return;
    if (scope->is_phase)
        kt_trace_end(&scope->trace->of_layer);
    if (scope->event)
        kt_time_store(&scope->event->end, kt_clock());
    if (scope->is_phase)
        end_phase(scope->trace);
    *scope = (struct kt_scope){0};
}

void kt_trace_begin_layer(struct kt_trace *t, int32_t layer, const char *name)
{
    kt_trace_end(&t->of_layer);
    t->layer = layer;
    if (layer < 0)
        return;
    t->of_layer = kt_trace_begin(t, KT_TRACK_HOST, name, 0, 0);
    if (t->of_layer.event)
        t->of_layer.event->encloses = true;
}

int32_t kt_trace_swap_layer(struct kt_trace *t, int32_t layer)
{
    int32_t before = t->layer;
    t->layer = layer;
    return before;
}

/* -- the handle -------------------------------------------------------------------------------- */

void kt_trace_options_init(kt_trace_options *options, size_t size)
{
    const kt_trace_options defaults = {.max_events = MOST_EVENTS};
    kt_options_init(options, size, &defaults, sizeof defaults);
}

/** Devices hold no address of an event when they have nothing queued. */
static void end(struct kt_trace *t)
{
    t->ctx->trace = NULL;
    t->finished = true;
    for (int32_t i = 0; i < t->num_devices; i++)
        if (t->devices[i].device)
            (void)kt_device_drain(t->devices[i].device);
    ask_devices(t);
}

static void destroy(void *handle)
{
    struct kt_trace *t = handle;
    if (!t->finished && t->ctx->trace == t)
        end(t);
    kt_atomic_discard(t->file);
    free(t->events);
    free(t->sums);
    free(t->rows);
}

static kt_status open_trace(struct kt_trace *t, const kt_trace_options *options)
{
    kt_context *ctx = t->ctx;
    t->most = options->path ? options->max_events : 0;
    if (t->most > UINT32_MAX - EVENTS_OF_A_CALL)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_trace_options: max_events is %llu; give at most %u",
                       (unsigned long long)t->most, UINT32_MAX - EVENTS_OF_A_CALL);
    t->capacity = t->most + EVENTS_OF_A_CALL;
    t->events = malloc(t->capacity * sizeof *t->events);
    t->sums = calloc(KT_TRACE_SUMS, sizeof *t->sums);
    if (!t->events || !t->sums)
        return kt_fail_memory(ctx, t->capacity * sizeof *t->events, "the events of a trace");
    if (options->path)
        KT_TRY(kt_atomic_open(ctx, options->path, &t->file));
    t->layer = -1;
    t->origin = kt_clock();
    ctx->trace = t;
    return KT_OK;
}

kt_status kt_trace_create(kt_context *ctx, const kt_trace_options *given, kt_trace **out)
{
    KT_ENTER_CONTEXT_OUT(ctx, out);
    kt_trace_options options;
    kt_trace_options_init(&options, sizeof options);
    KT_TRY(kt_options_copy(ctx, &options, given, KT_SIZED(kt_trace_options)));
    if (ctx->trace)
        return kt_fail(ctx, KT_ERROR_STATE, "the context has a trace already; finish that first");
    struct kt_trace *t;
    KT_TRY(kt_handle_new(ctx, sizeof *t, destroy, "a trace", (void **)&t));
    kt_status status = open_trace(t, &options);
    if (status == KT_OK)
        *out = t;
    else
        kt_handle_drop(t);
    return status;
}

/** Says what the file and the rows lack. */
static void tell(const struct kt_trace *t, bool has_file)
{
    if (has_file && t->beyond)
        kt_log(t->ctx, KT_LOG_WARNING,
               "the trace has the first %llu events; %llu later ones count in its summary alone "
               "(max_events)",
               (unsigned long long)t->used, (unsigned long long)t->beyond);
    if (t->lost)
        kt_log(t->ctx, KT_LOG_WARNING,
               "the trace and its summary lack %llu events for which there was no room in a call, "
               "or whose time no device has told",
               (unsigned long long)t->lost);
}

/** Events whose time a device has not told, as it broke. */
static void drop_untold(struct kt_trace *t)
{
    uint64_t kept = t->folded;
    for (uint64_t i = t->folded; i < t->used; i++)
        if (kt_time_load(&t->events[i].end) > 0)
            t->events[kept++] = t->events[i];
    t->lost += t->used - kept;
    t->used = kept;
}

kt_status kt_trace_finish(kt_trace *t)
{
    KT_ENTER(t, "trace");
    if (t->finished)
        return kt_fail(t->ctx, KT_ERROR_STATE, "the trace is finished already");
    end(t);
    drop_untold(t);
    kt_trace_fold(t);
    bool has_file = t->file;
    KT_TRY(kt_trace_make_rows(t));
    if (has_file) {
        KT_TRY(kt_trace_write(t));
        struct kt_atomic_file *file = t->file;
        t->file = NULL;
        KT_TRY(kt_atomic_commit(file));
    }
    tell(t, has_file);
    return KT_OK;
}

void kt_trace_free(kt_trace *t)
{
    kt_handle_free(t);
}

size_t kt_trace_num_rows(const kt_trace *t)
{
    return t ? t->num_rows : 0;
}

kt_status kt_trace_get_row(const kt_trace *t, size_t index, kt_trace_row *out)
{
    KT_TRY(kt_check_handle(t, __func__, "trace"));
    if (index >= t->num_rows)
        return kt_fail(t->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the trace has %zu rows; there is no row %zu", t->num_rows, index);
    return kt_give(t->ctx, out, &t->rows[index], KT_SIZED(kt_trace_row));
}
