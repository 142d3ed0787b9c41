/* SPDX-License-Identifier: Apache-2.0 */
/* The form is Chrome's trace events: an object with a list, complete events ("X") with microseconds
 * from the trace's begin, one thread a track. */
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>

#include "backend/trace_state.h"
#include "core/clock.h"
#include "formats/atomic_file.h"

enum { LINE = 512 };

static kt_status write_text(const struct kt_trace *t, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static kt_status write_text(const struct kt_trace *t, const char *format, ...)
{
    char line[LINE];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return kt_atomic_write(t->file, line, (size_t)length);
}

static kt_status write_track(const struct kt_trace *t, int32_t track, const char *device,
                             const char *name)
{
    return write_text(t,
                      "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\","
                      "\"args\":{\"name\":\"%s%s%s\"}},\n"
                      "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_sort_index\","
                      "\"args\":{\"sort_index\":%d}},\n",
                      track + 1, device, *device ? " " : "", name, track + 1, track);
}

static kt_status write_tracks(const struct kt_trace *t)
{
    static const char *const queues[KT_QUEUES] = {[KT_QUEUE_COMPUTE] = "compute",
                                                  [KT_QUEUE_IN] = "copies in",
                                                  [KT_QUEUE_OUT] = "copies out",
                                                  [KT_QUEUE_SUPPLY] = "supply of weights"};
    KT_TRY(write_track(t, KT_TRACK_HOST, "", "host thread"));
    KT_TRY(write_track(t, KT_TRACK_CPU, "", "CPU"));
    for (int32_t i = 0; i < t->num_devices * KT_QUEUES; i++)
        KT_TRY(write_track(t, KT_TRACK_DEVICES + i, t->devices[i / KT_QUEUES].name,
                           queues[i % KT_QUEUES]));
    return KT_OK;
}

/** What it moved and computed, and how fast. */
static kt_status write_work(const struct kt_trace *t, const struct kt_event *e)
{
    double seconds = e->end - e->begin;
    if (e->bytes > 0)
        KT_TRY(write_text(t, ",\"bytes\":%.0f", e->bytes));
    if (e->bytes > 0 && seconds > 0)
        KT_TRY(write_text(t, ",\"GB/s\":%.4g", 1e-9 * e->bytes / seconds));
    if (e->flops > 0)
        KT_TRY(write_text(t, ",\"flops\":%.0f", e->flops));
    if (e->flops > 0 && seconds > 0)
        KT_TRY(write_text(t, ",\"TFLOP/s\":%.4g", 1e-12 * e->flops / seconds));
    return KT_OK;
}

static kt_status write_event(const struct kt_trace *t, const struct kt_event *e)
{
    KT_TRY(write_text(t,
                      "{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"%s\",\"ts\":%.3f,"
                      "\"dur\":%.3f,\"args\":{\"phase\":\"%s\"",
                      e->track + 1, e->name, 1e6 * (e->begin - t->origin),
                      1e6 * (e->end - e->begin), kt_phase_names[e->phase]));
    if (e->layer >= 0)
        KT_TRY(write_text(t, ",\"layer\":%d", e->layer));
    KT_TRY(write_work(t, e));
    return write_text(t, "}},\n");
}

static kt_status write_all(const struct kt_trace *t)
{
    KT_TRY(write_text(t, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n"));
    KT_TRY(write_tracks(t));
    for (uint64_t i = 0; i < t->used; i++)
        KT_TRY(write_event(t, &t->events[i]));
    return write_text(t,
                      "{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{\"name\":"
                      "\"libkt\"}}],\n\"otherData\":{\"events left out\":%llu}}\n",
                      (unsigned long long)(t->beyond + t->lost));
}

kt_status kt_trace_write(const struct kt_trace *t)
{
    locale_t c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0); /* whatever the host has set */
    locale_t before = c ? uselocale(c) : (locale_t)0;
    kt_status status = write_all(t);
    if (c) {
        uselocale(before);
        freelocale(c);
    }
    return status;
}
