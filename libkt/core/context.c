/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"

uint32_t kt_version(void)
{
    return 0x000100;
}

const char *kt_status_string(kt_status status)
{
    switch (status) {
    case KT_OK:
        return "ok";
    case KT_ERROR_INVALID_ARGUMENT:
        return "invalid argument";
    case KT_ERROR_OUT_OF_MEMORY:
        return "out of memory";
    case KT_ERROR_IO:
        return "input/output error";
    case KT_ERROR_FORMAT:
        return "malformed file";
    case KT_ERROR_UNSUPPORTED:
        return "not supported";
    case KT_ERROR_NOT_FOUND:
        return "not found";
    case KT_ERROR_MISMATCH:
        return "mismatch";
    case KT_ERROR_CANCELLED:
        return "cancelled";
    case KT_ERROR_STATE:
        return "call out of order";
    case KT_ERROR_NUMERIC:
        return "not a finite number";
    case KT_ERROR_INTERNAL:
        return "internal error";
    default:
        return "unknown status";
    }
}

kt_status kt_fail(kt_context *ctx, kt_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(ctx->error, sizeof ctx->error, format, args);
    va_end(args);
    return status;
}

const char *kt_size_text(uint64_t bytes, char text[KT_SIZE_TEXT])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)bytes;
    int unit = 0;
    for (; size >= 1024 && unit < 4; unit++)
        size /= 1024;
    snprintf(text, KT_SIZE_TEXT, "%.*f %s", unit ? 1 : 0, size, units[unit]);
    return text;
}

kt_status kt_fail_memory(kt_context *ctx, uint64_t bytes, const char *what)
{
    char size[KT_SIZE_TEXT] = "memory";
    return kt_fail(ctx, KT_ERROR_OUT_OF_MEMORY,
                   "cannot allocate %s for %s; use shorter or fewer sequences in a step, or a "
                   "machine with more memory",
                   bytes ? kt_size_text(bytes, size) : size, what);
}

void kt_log(kt_context *ctx, kt_log_level level, const char *format, ...)
{
    if (!ctx->options.log)
        return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    ctx->options.log(ctx->options.user, level, line);
}

void kt_progress(kt_context *ctx, const char *what, uint64_t done, uint64_t total)
{
    if (ctx->options.progress)
        ctx->options.progress(ctx->options.user, what, done, total);
}

kt_status kt_check_cancel(kt_context *ctx)
{
    if (ctx->options.cancel && ctx->options.cancel(ctx->options.user))
        return kt_fail(ctx, KT_ERROR_CANCELLED, "cancelled by the host application");
    return KT_OK;
}

kt_status kt_check_given(kt_context *ctx, const void *pointer, const char *what)
{
    return pointer ? KT_OK : kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s must not be NULL", what);
}

kt_status kt_options_copy(kt_context *ctx, void *known, size_t known_size, const void *given,
                          const char *what)
{
    size_t size;
    if (!given)
        return KT_OK;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > (1u << 16))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: size field is %zu; fill the struct with its _init function first", what,
                       size);
    memcpy(known, given, size < known_size ? size : known_size);
    return KT_OK;
}

void kt_context_options_init(kt_context_options *options, size_t size)
{
    kt_context_options defaults = {.size = size, .pin_threads = 1};
    memcpy(options, &defaults, size < sizeof defaults ? size : sizeof defaults);
}

static int32_t choose_threads(kt_context *ctx)
{
    int32_t wanted = ctx->options.num_threads, most = ctx->topology.num_pus;
    if (!wanted)
        wanted = (int32_t)kt_min_i64(ctx->topology.num_cores, ctx->limits.cpus);
    if (wanted <= most)
        return wanted;
    kt_log(ctx, KT_LOG_WARNING,
           "num_threads: %d threads are more than the %d hardware threads (%d cores) that this "
           "process may use; %d are started",
           wanted, most, ctx->topology.num_cores, most);
    return most;
}

static kt_status start_threads(kt_context *ctx)
{
    int32_t threads = choose_threads(ctx), refused;
    KT_TRY(kt_pool_create(&ctx->topology, threads, ctx->options.pin_threads, &ctx->pool));
    kt_pool_affinity(ctx->pool, &refused);
    if (refused)
        kt_log(ctx, KT_LOG_DEBUG, "%d of %d threads could not be bound to their cores", refused,
               threads);
    return KT_OK;
}

kt_status kt_context_create_on(const kt_context_options *options, struct kt_topology *topology,
                               kt_context **out)
{
    kt_context *ctx = calloc(1, sizeof *ctx);
    *out = NULL;
    if (!ctx) {
        kt_topology_free(topology);
        return KT_ERROR_OUT_OF_MEMORY;
    }
    ctx->topology = *topology;
    kt_cgroup_read("", &ctx->limits);
    kt_context_options_init(&ctx->options, sizeof ctx->options);
    kt_status status =
        kt_options_copy(ctx, &ctx->options, sizeof ctx->options, options, "kt_context_options");
    if (status == KT_OK && ctx->options.num_threads < 0)
        status = KT_ERROR_INVALID_ARGUMENT;
    if (status == KT_OK) {
        kt_cpu_detect(&ctx->cpu, ctx->options.isa_mask);
        status = start_threads(ctx);
    }
    if (status != KT_OK) {
        kt_context_free(ctx);
        return status;
    }
    kt_cpu_describe(&ctx->cpu, &ctx->topology, ctx->pool, ctx->cpu_description,
                    sizeof ctx->cpu_description);
    *out = ctx;
    return KT_OK;
}

kt_status kt_context_create(const kt_context_options *options, kt_context **out)
{
    struct kt_topology topology;
    *out = NULL;
    KT_TRY(kt_topology_detect(&topology));
    return kt_context_create_on(options, &topology, out);
}

void kt_context_free(kt_context *ctx)
{
    if (!ctx)
        return;
    kt_pool_free(ctx->pool);
    kt_topology_free(&ctx->topology);
    free(ctx);
}

const char *kt_last_error(const kt_context *ctx)
{
    return ctx->error;
}

int32_t kt_context_num_threads(const kt_context *ctx)
{
    return kt_pool_num_threads(ctx->pool);
}

const char *kt_context_cpu_description(const kt_context *ctx)
{
    return ctx->cpu_description;
}

uint64_t kt_context_memory_used(const kt_context *ctx)
{
    return ctx->memory_used;
}

uint64_t kt_context_memory_peak(const kt_context *ctx)
{
    return ctx->memory_peak;
}

uint64_t kt_context_host_memory(const kt_context *ctx)
{
    uint64_t installed = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return installed < ctx->limits.memory ? installed : ctx->limits.memory;
}

void kt_free(void *pointer)
{
    free(pointer);
}
