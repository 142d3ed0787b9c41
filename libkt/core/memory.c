/* SPDX-License-Identifier: Apache-2.0 */
#include "core/memory.h"

#include <stdlib.h>

#include "core/context.h"

/* The size stands in front of the buffer, so that freeing can uncount it. */
enum { HEADER = 64 };

static void count_peak(kt_context *ctx, uint64_t used)
{
    uint64_t peak = ctx->memory_peak;
    while (used > peak && !atomic_compare_exchange_weak(&ctx->memory_peak, &peak, used))
        ;
}

static kt_status over_limit(kt_context *ctx, uint64_t bytes, const char *what)
{
    char need[KT_SIZE_TEXT], used[KT_SIZE_TEXT], limit[KT_SIZE_TEXT];
    return kt_fail(ctx, KT_ERROR_OUT_OF_MEMORY,
                   "%s: %s would go over the limit of %s, of which %s are in use; use shorter or "
                   "fewer sequences in a step, a smaller adapter, or raise the limit",
                   what, kt_size_text(bytes, need), kt_size_text(ctx->options.memory_limit, limit),
                   kt_size_text(ctx->memory_used, used));
}

static void *allocate(const kt_context *ctx, uint64_t bytes)
{
    const kt_context_options *o = &ctx->options;
    return o->alloc ? o->alloc(o->alloc_user, bytes, HEADER) : aligned_alloc(HEADER, bytes);
}

static void release(const kt_context *ctx, void *base, uint64_t bytes)
{
    const kt_context_options *o = &ctx->options;
    if (o->free)
        o->free(o->alloc_user, base, bytes);
    else
        free(base);
}

kt_status kt_buffer_alloc(kt_context *ctx, uint64_t count, size_t size, const char *what,
                          void **out)
{
    uint64_t bytes, total;
    *out = NULL;
    if (!kt_mul_u64(count, size, &bytes) || bytes > PTRDIFF_MAX - 2 * HEADER)
        return kt_fail(ctx, KT_ERROR_OUT_OF_MEMORY, "the size of %s overflows (%llu x %zu bytes)",
                       what, (unsigned long long)count, size);
    total = (bytes + HEADER + 63) & ~(uint64_t)63;
    uint64_t limit = ctx->options.memory_limit;
    if (limit && (total > limit || ctx->memory_used > limit - total))
        return over_limit(ctx, bytes, what);
    char *base = allocate(ctx, total);
    if (!base)
        return kt_fail_memory(ctx, bytes, what);
    if ((uintptr_t)base % HEADER) {
        release(ctx, base, total);
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_context_options.alloc gave memory that is not aligned to %d bytes",
                       HEADER);
    }
    *(uint64_t *)base = total;
    count_peak(ctx, atomic_fetch_add(&ctx->memory_used, total) + total);
    *out = base + HEADER;
    return KT_OK;
}

void kt_buffer_free(kt_context *ctx, void *buffer)
{
    if (!buffer)
        return;
    char *base = (char *)buffer - HEADER;
    uint64_t total = *(uint64_t *)base;
    atomic_fetch_sub(&ctx->memory_used, total);
    release(ctx, base, total);
}
