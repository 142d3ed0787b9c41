/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/trace_state.h
 * A trace, for the files that it is made of. */
#ifndef KT_BACKEND_TRACE_STATE_H
#define KT_BACKEND_TRACE_STATE_H

#include "backend/trace.h"

enum {
    KT_TRACE_DEVICES = 24, /**< that have tracks */
    KT_TRACE_TRACKS = KT_TRACK_DEVICES + KT_TRACE_DEVICES * KT_QUEUES,
    KT_TRACE_SUMS = 1 << 13 /**< a power of two */
};

/** A device's resources come first, three of each. */
enum {
    KT_RESOURCE_COMPUTE,
    KT_RESOURCE_TO_DEVICE,
    KT_RESOURCE_FROM_DEVICE,
    KT_RESOURCES_OF_DEVICE,
    KT_RESOURCE_CPU = KT_TRACE_DEVICES * KT_RESOURCES_OF_DEVICE,
    KT_RESOURCE_MEMORY,
    KT_RESOURCE_HOST,
    KT_TRACE_RESOURCES
};

struct kt_trace_device {
    struct kt_device *device; /**< NULL = closed */
    char name[16];
};

/** What a phase, a resource or an operation comes to; see kt_trace_row. */
struct kt_trace_sum {
    int32_t phase, resource; /**< -1 = the phase as a whole */
    const char *name;        /**< NULL = the resource as a whole */
    uint64_t count;          /**< 0 = a free place */
    double seconds, bytes, flops;
};

struct kt_trace {
    KT_HANDLE;
    struct kt_atomic_file *file; /**< NULL = none */
    double origin;               /**< when it began */
    bool finished;
    struct kt_trace_device devices[KT_TRACE_DEVICES];
    int32_t num_devices;
    enum kt_phase phase;
    int32_t layer;
    struct kt_scope of_layer;

    /* Those from `folded` on are in no sum yet. When all are, those from `most` on make room. */
    struct kt_event *events; /**< [capacity] */
    uint64_t used, folded, most, capacity;
    uint64_t beyond; /**< that are in sums alone */
    uint64_t lost;   /**< for which there was no room, or whose time is not known */

    struct kt_trace_sum *sums;              /**< [KT_TRACE_SUMS], hashed */
    double covered[KT_TRACE_RESOURCES];     /**< until when a resource's time is counted */
    double other_begin, other_end;          /**< of the events outside of phases */
    char resources[KT_TRACE_RESOURCES][32]; /**< names, made when it ends */
    kt_trace_row *rows;
    size_t num_rows;
};

extern const char *const kt_phase_names[KT_PHASES];

/* trace_sum.c */

/** Adds up the events whose time is known, up to the first of which it is not. */
void kt_trace_fold(struct kt_trace *trace);
/** Makes the rows. Errors: OUT_OF_MEMORY. */
kt_status kt_trace_make_rows(struct kt_trace *trace);

/* trace_file.c */

/** Writes the events. Errors: IO. */
kt_status kt_trace_write(const struct kt_trace *trace);

#endif
