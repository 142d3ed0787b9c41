/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/trace.h
 * The trace of a context (kt/trace.h) from inside: the front notes an event for all that it lets
 * through, those who call it note what the host does meanwhile. Without a trace each costs a
 * branch. Events are noted by the thread of the call alone; devices fill in their times. */
#ifndef KT_BACKEND_TRACE_H
#define KT_BACKEND_TRACE_H

#include <kt/trace.h>

#include "backend/device.h"
#include "core/context.h"

enum kt_phase {
    KT_PHASE_OTHER,
    KT_PHASE_FORWARD,
    KT_PHASE_BACKWARD,
    KT_PHASE_PROMPT,
    KT_PHASE_DECODE,
    KT_PHASE_OPTIMIZER,
    KT_PHASES
};

/** The tracks that a trace has without devices. */
enum { KT_TRACK_HOST, KT_TRACK_CPU, KT_TRACK_DEVICES };

struct kt_event {
    double begin, end; /**< of kt_clock; 0 = not there yet */
    double bytes, flops;
    const char *name; /**< constant */
    uint32_t next;    /**< of its track, while they are added up */
    int32_t layer;    /**< -1 = none */
    uint8_t track, phase;
    bool encloses; /**< it stands for those inside it */
};

/** Names of what the host does not work in: its waits, and what takes a device long to queue. */
extern const char kt_trace_wait[], kt_trace_queue_full[];

/** A new event in the current phase and layer, or NULL where there is no room. */
struct kt_event *kt_trace_event(struct kt_trace *trace, int32_t track, const char *name,
                                double bytes, double flops);

/** The track of a queue: of a device with host memory the CPU's; -1 where the device has none. */
int32_t kt_trace_track(struct kt_trace *trace, struct kt_device *dev, enum kt_queue queue);

/** The device, which has nothing queued any more, is closed. */
void kt_trace_forget(struct kt_trace *trace, const struct kt_device *dev);

/** What the host does from here to the end of a block. */
struct kt_scope {
    struct kt_trace *trace; /**< NULL = none */
    struct kt_event *event;
    bool is_phase;
};

struct kt_scope kt_trace_begin(struct kt_trace *trace, int32_t track, const char *name,
                               double bytes, double flops);
struct kt_scope kt_trace_begin_phase(struct kt_trace *trace, enum kt_phase phase);
void kt_trace_end(struct kt_scope *scope);
/** Ends the layer before and begins another; -1 = none. */
void kt_trace_begin_layer(struct kt_trace *trace, int32_t layer, const char *name);
int32_t kt_trace_swap_layer(struct kt_trace *trace, int32_t layer);

#define KT_SCOPE_END __attribute__((cleanup(kt_trace_end), unused))

static inline struct kt_scope kt_scope(const kt_context *ctx, int32_t track, const char *name)
{
    return ctx->trace ? kt_trace_begin(ctx->trace, track, name, 0, 0) : (struct kt_scope){0};
}

/** To the end of the block the calling thread does `name`, or the pool's threads do. */
#define KT_TRACE_HOST(ctx, name)                                                                   \
    KT_SCOPE_END struct kt_scope kt_scope_ = kt_scope((ctx), KT_TRACK_HOST, (name))
#define KT_TRACE_CPU(ctx, name)                                                                    \
    KT_SCOPE_END struct kt_scope kt_scope_ = kt_scope((ctx), KT_TRACK_CPU, (name))

/** The rest of a public function is a call of this phase; nothing may be queued when it ends. */
#define KT_TRACE_PHASE(context, phase)                                                             \
    KT_SCOPE_END struct kt_scope kt_phase_ =                                                       \
        (context)->trace ? kt_trace_begin_phase((context)->trace, (phase)) : (struct kt_scope)     \
    {                                                                                              \
        0                                                                                          \
    }

/** What follows belongs to this layer; returns the one before. */
static inline int32_t kt_trace_layer(const kt_context *ctx, int32_t layer)
{
    return ctx->trace ? kt_trace_swap_layer(ctx->trace, layer) : -1;
}

#endif
