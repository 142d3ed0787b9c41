/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/context.h
 * The context from inside: log, progress, cancellation; with it come errors, handles and sized
 * structs. */
#ifndef KT_CORE_CONTEXT_H
#define KT_CORE_CONTEXT_H

#include <kt/context.h>
#include <stdatomic.h>

#include "core/cgroup.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/handle.h"
#include "core/sized.h"
#include "core/threads.h"

struct kt_context {
    kt_context_options options;
    void *log_user, *progress_user, *cancel_user;
    struct kt_cpu cpu;
    struct kt_topology topology;
    struct kt_cgroup_limits limits;
    struct kt_pool *pool;
    struct kt_trace *trace; /**< NULL = none (backend/trace.h) */
    _Atomic uint64_t memory_used, memory_peak;
    /* see core/handle.h */
    _Atomic(const void *) owner;         /**< the thread that is inside; NULL = none */
    int32_t depth;                       /**< of its calls */
    bool in_callback;                    /**< it runs a function of the host */
    atomic_int holders;                  /**< the host, running calls, handles */
    _Atomic(struct kt_handle *) waiting; /**< freed by the host while a call runs */
    atomic_bool cancelled;               /**< by kt_context_cancel */
    char error[KT_ERROR_TEXT];
    char cpu_description[256];
};

/** kt_context_create on a machine that has this topology, which the context takes and frees, also
 * on an error. For tests: with one that is not this system's nothing is bound, so threads of
 * several nodes, and more of them than there are cores, run anywhere. */
kt_status kt_context_create_on(const kt_context_options *options, struct kt_topology *topology,
                               kt_context **out);

/** Whether another thread is inside. */
bool kt_context_is_elsewhere(const kt_context *ctx);

void kt_log(kt_context *ctx, kt_log_level level, const char *format, ...) KT_PRINTF(3, 4);
void kt_progress(kt_context *ctx, const char *what, uint64_t done, uint64_t total);

/** KT_OK, or KT_ERROR_CANCELLED (recorded) when the host asks to stop. */
kt_status kt_check_cancel(kt_context *ctx);

#endif
