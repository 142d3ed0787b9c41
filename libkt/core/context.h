/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/context.h
 * The context from inside: errors, log, progress, cancellation. */
#ifndef KT_CORE_CONTEXT_H
#define KT_CORE_CONTEXT_H

#include <kt/context.h>
#include <stdatomic.h>

#include "core/cgroup.h"
#include "core/cpu.h"
#include "core/threads.h"

struct kt_context {
    kt_context_options options;
    struct kt_cpu cpu;
    struct kt_topology topology;
    struct kt_cgroup_limits limits;
    struct kt_pool *pool;
    _Atomic uint64_t memory_used, memory_peak;
    char error[1024];
    char cpu_description[256];
};

/** kt_context_create on a machine that has this topology, which the context takes and frees, also
 * on an error. For tests: with one that is not this system's nothing is bound, so threads of
 * several nodes, and more of them than there are cores, run anywhere. */
kt_status kt_context_create_on(const kt_context_options *options, struct kt_topology *topology,
                               kt_context **out);

#define KT_PRINTF(text, first) __attribute__((format(printf, text, first)))

/** Records the sentence of a failure and returns `status`, so that callers write
 * `return kt_fail(ctx, KT_ERROR_IO, "%s: ...", path)`. Main thread of the context only. */
kt_status kt_fail(kt_context *ctx, kt_status status, const char *format, ...) KT_PRINTF(3, 4);

enum { KT_SIZE_TEXT = 24 };

/** Writes a number of bytes as people read it, such as "1.5 GiB"; returns `text`. */
const char *kt_size_text(uint64_t bytes, char text[KT_SIZE_TEXT]);

/** kt_fail for memory: "cannot allocate 1.5 GiB for `what`" and what to do about it; 0 bytes =
 * nobody knows how many. */
kt_status kt_fail_memory(kt_context *ctx, uint64_t bytes, const char *what);

void kt_log(kt_context *ctx, kt_log_level level, const char *format, ...) KT_PRINTF(3, 4);
void kt_progress(kt_context *ctx, const char *what, uint64_t done, uint64_t total);

/** KT_OK, or KT_ERROR_CANCELLED (recorded) when the host asks to stop. */
kt_status kt_check_cancel(kt_context *ctx);

/** `return` the status of a failed call to the caller. */
#define KT_TRY(call)                                                                               \
    do {                                                                                           \
        kt_status kt_try_status_ = (call);                                                         \
        if (kt_try_status_ != KT_OK)                                                               \
            return kt_try_status_;                                                                 \
    } while (0)

/** INVALID_ARGUMENT when what the host must give, a text or an array, is NULL. */
kt_status kt_check_given(kt_context *ctx, const void *pointer, const char *what);

/** Copies min(size, known) bytes of a caller's sized struct over defaults; see the _init functions.
 */
kt_status kt_options_copy(kt_context *ctx, void *known, size_t known_size, const void *given,
                          const char *what);

#endif
