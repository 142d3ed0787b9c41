/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"

#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/memory.h"

uint32_t kt_version(void)
{
    return KT_VERSION;
}

uint32_t kt_api_version(void)
{
    return KT_API_VERSION;
}

void kt_log(kt_context *ctx, kt_log_level level, const char *format, ...)
{
    if (!ctx->options.log)
        return;
    char line[KT_ERROR_TEXT];
    va_list args;
    va_start(args, format);
    kt_format(line, sizeof line, format, args);
    va_end(args);
    bool before = kt_callback_begin(ctx);
    ctx->options.log(ctx->log_user, (int32_t)level, line);
    kt_callback_end(ctx, before);
}

void kt_progress(kt_context *ctx, const char *what, uint64_t done, uint64_t total)
{
    if (!ctx->options.progress)
        return;
    bool before = kt_callback_begin(ctx);
    ctx->options.progress(ctx->progress_user, what, done, total);
    kt_callback_end(ctx, before);
}

static bool host_cancels(kt_context *ctx)
{
    if (!ctx->options.cancel)
        return false;
    bool before = kt_callback_begin(ctx);
    int32_t answer = ctx->options.cancel(ctx->cancel_user);
    kt_callback_end(ctx, before);
    return answer != 0;
}

kt_status kt_check_cancel(kt_context *ctx)
{
    if (atomic_exchange(&ctx->cancelled, false) || host_cancels(ctx))
        return kt_fail(ctx, KT_ERROR_CANCELLED, "cancelled by the host application");
    return KT_OK;
}

void kt_context_options_init(kt_context_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_context_options){.pin_threads = 1}, sizeof *options);
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
    kt_status status =
        kt_pool_create(&ctx->topology, threads, ctx->options.pin_threads, &ctx->pool);
    if (status != KT_OK)
        return kt_fail(ctx, status, "cannot start %d threads: %s; ask for fewer (num_threads)",
                       threads, kt_status_string(status));
    kt_pool_affinity(ctx->pool, &refused);
    if (refused)
        kt_log(ctx, KT_LOG_DEBUG, "%d of %d threads could not be bound to their cores", refused,
               threads);
    return KT_OK;
}

static kt_status check_options(kt_context *ctx)
{
    const kt_context_options *o = &ctx->options;
    if (o->num_threads < 0)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_context_options: num_threads is %d; give 0 (all cores) or more",
                       o->num_threads);
    if (!o->alloc != !o->free)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_context_options: give both alloc and free, or neither");
    return KT_OK;
}

static kt_status open_context(kt_context *ctx, const kt_context_options *options)
{
    kt_context_options_init(&ctx->options, sizeof ctx->options);
    KT_TRY(kt_options_copy(ctx, &ctx->options, options, KT_SIZED(kt_context_options)));
    KT_TRY(check_options(ctx));
    ctx->log_user = ctx->progress_user = ctx->cancel_user = ctx->options.user;
    kt_cpu_detect(&ctx->cpu, ctx->options.isa_mask);
    KT_TRY(start_threads(ctx));
    kt_cpu_describe(&ctx->cpu, &ctx->topology, ctx->pool, ctx->cpu_description,
                    sizeof ctx->cpu_description);
    return KT_OK;
}

kt_status kt_context_create_on(const kt_context_options *options, struct kt_topology *topology,
                               kt_context **out)
{
    kt_context *ctx = calloc(1, sizeof *ctx);
    *out = NULL;
    if (!ctx) {
        kt_topology_free(topology);
        return kt_fail_memory(NULL, sizeof *ctx, "a context");
    }
    ctx->topology = *topology;
    atomic_init(&ctx->holders, 1);
    kt_cgroup_read("", &ctx->limits);
    kt_error_forget(ctx);
    kt_status status = open_context(ctx, options);
    if (status == KT_OK)
        *out = ctx;
    else {
        kt_fail(NULL, status, "%s", ctx->error);
        kt_context_free(ctx);
    }
    return status;
}

kt_status kt_context_create(const kt_context_options *options, kt_context **out)
{
    struct kt_topology topology;
    KT_TRY(kt_check_out(NULL, out, __func__));
    *out = NULL;
    kt_status status = kt_topology_detect(&topology);
    if (status != KT_OK)
        return kt_fail(NULL, status, "cannot find out what processors there are: %s",
                       kt_status_string(status));
    return kt_context_create_on(options, &topology, out);
}

void kt_context_hold(kt_context *ctx)
{
    atomic_fetch_add(&ctx->holders, 1);
}

void kt_context_drop(kt_context *ctx)
{
    if (atomic_fetch_sub(&ctx->holders, 1) > 1)
        return;
    kt_error_forget(ctx);
    kt_pool_free(ctx->pool);
    kt_topology_free(&ctx->topology);
    free(ctx);
}

void kt_context_free(kt_context *ctx)
{
    if (ctx)
        kt_context_drop(ctx);
}

void kt_context_cancel(kt_context *ctx)
{
    if (ctx)
        atomic_store(&ctx->cancelled, true);
}

void kt_context_clear_cancel(kt_context *ctx)
{
    if (ctx)
        atomic_store(&ctx->cancelled, false);
}

kt_status kt_context_set_log(kt_context *ctx, kt_log_callback log, void *user)
{
    KT_ENTER_CONTEXT(ctx);
    ctx->options.log = log;
    ctx->log_user = user;
    return KT_OK;
}

kt_status kt_context_set_progress(kt_context *ctx, kt_progress_callback progress, void *user)
{
    KT_ENTER_CONTEXT(ctx);
    ctx->options.progress = progress;
    ctx->progress_user = user;
    return KT_OK;
}

kt_status kt_context_set_cancel(kt_context *ctx, kt_cancel_callback cancel, void *user)
{
    KT_ENTER_CONTEXT(ctx);
    ctx->options.cancel = cancel;
    ctx->cancel_user = user;
    return KT_OK;
}

int32_t kt_context_num_threads(const kt_context *ctx)
{
    return ctx ? kt_pool_num_threads(ctx->pool) : 0;
}

const char *kt_context_cpu_description(const kt_context *ctx)
{
    return ctx ? ctx->cpu_description : "";
}

uint64_t kt_context_memory_used(const kt_context *ctx)
{
    return ctx ? ctx->memory_used : 0;
}

uint64_t kt_context_memory_peak(const kt_context *ctx)
{
    return ctx ? ctx->memory_peak : 0;
}

uint64_t kt_context_host_memory(const kt_context *ctx)
{
    uint64_t installed = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return ctx && ctx->limits.memory < installed ? ctx->limits.memory : installed;
}

void kt_free(void *pointer)
{
    free(pointer);
}
