/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/plugin.h
 * Devices in libraries of their own, libkt-KIND.so, which libkt opens when one is asked for: what
 * they need (a GPU's runtime) is then needed only there. A module does not link with libkt; what it
 * uses of libkt it is given. */
#ifndef KT_BACKEND_PLUGIN_H
#define KT_BACKEND_PLUGIN_H

#include "backend/device.h"
#include "core/context.h"

/** What libkt does for a module; valid while the process lives. See the functions of these names
 * in core/context.h, core/memory.h and core/threads.h. */
struct kt_backend_host {
    kt_status (*fail)(kt_context *ctx, kt_status status, const char *format, ...) KT_PRINTF(3, 4);
    void (*log)(kt_context *ctx, kt_log_level level, const char *format, ...) KT_PRINTF(3, 4);
    kt_status (*buffer_alloc)(kt_context *ctx, uint64_t count, size_t size, const char *what,
                              void **out);
    void (*buffer_free)(kt_context *ctx, void *buffer);
    struct kt_pool *(*pool)(kt_context *ctx); /**< for the thread that called libkt alone */
    int32_t (*pool_num_threads)(const struct kt_pool *pool);
    void (*parallel_for)(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg);
};

struct kt_backend {
    /** Opens device `index` of the machine. Errors: NOT_FOUND (there is none), recorded, as are all
     * others. */
    kt_status (*open)(kt_context *ctx, int32_t index, struct kt_device **out);
};

/** What a module exports, as kt_backend_module. NULL where it was not built for `abi`. */
typedef const struct kt_backend *(*kt_backend_module_fn)(uint32_t abi,
                                                         const struct kt_backend_host *host);

#endif
