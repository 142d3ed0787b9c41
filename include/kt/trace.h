/* SPDX-License-Identifier: Apache-2.0 */
/** \file trace.h
 * What ran when: every operation, copy, task of the CPU and wait of a context's calls, with the
 * clock of the device that ran it, and how busy that kept each resource. */
#ifndef KT_TRACE_H
#define KT_TRACE_H

#include <kt/types.h>

KT_BEGIN_DECLS

#ifdef KT_EXPERIMENTAL
typedef struct kt_trace kt_trace;

typedef struct kt_trace_options {
    size_t size;         /**< sizeof(kt_trace_options), set by the init function */
    const char *path;    /**< where the events go, in the JSON form that chrome://tracing and
                              ui.perfetto.dev open; NULL = nowhere, there is the summary alone */
    uint64_t max_events; /**< the file has the first so many (1048576, of 56 bytes of memory each);
                              later ones count in the summary alone */
    uint64_t reserved[4];
} kt_trace_options;

/** Fills `options` with the defaults above. */
KT_API void kt_trace_options_init(kt_trace_options *options, size_t size);

/** Begins: from now on calls of the context are traced, a little slower than else and with the same
 * results. Make it after the executor, to have no events of loading. Errors: STATE (the context has
 * a trace already), IO (the file cannot be made), OUT_OF_MEMORY. */
KT_API kt_status kt_trace_create(kt_context *ctx, const kt_trace_options *options, kt_trace **out);

/** Ends it, writes the file, whole or not at all, and makes the rows of the summary. Logs a warning
 * if the file or the summary lacks events. Errors: STATE (it has ended), IO. */
KT_API kt_status kt_trace_finish(kt_trace *trace);

/** Ends it too. What was not finished is not written. */
KT_API void kt_trace_free(kt_trace *trace);

/** A line of the summary. A phase ("forward", "backward", "prompt", "decode", "optimizer"; "other"
 * = outside of these) comes first, then its resources, each followed by its operations, those that
 * took longest first. Resources are the queues of devices ("cuda:0 compute", "cuda:0 to device",
 * "cuda:0 from device"), the threads ("CPU": operations and experts, all threads at a time; "host
 * thread": the one that calls) and "host memory". */
typedef struct kt_trace_row {
    size_t size;           /**< sizeof(kt_trace_row), set by the caller */
    const char *phase;     /**< strings live as long as the trace */
    const char *resource;  /**< NULL = the phase as a whole */
    const char *operation; /**< NULL = the resource as a whole */
    uint64_t count;        /**< calls of the phase, or events */
    double seconds;        /**< of a phase: what its calls took; of a resource: while something ran
                                on it, never more than its phase took ("host thread": while it
                                worked; "host memory": 0, unknown); of an operation: the sum */
    double bytes, flops;   /**< moved and computed meanwhile, each operand counted once */
    uint64_t reserved[4];
} kt_trace_row;

/** Rows of the summary; 0 before kt_trace_finish. */
KT_API size_t kt_trace_num_rows(const kt_trace *trace);
KT_API kt_status kt_trace_get_row(const kt_trace *trace, size_t index, kt_trace_row *out);
#endif

KT_END_DECLS
#endif
