/* SPDX-License-Identifier: Apache-2.0 */
#include "core/handle.h"

#include <stdlib.h>

#include "core/context.h"

/* Its address tells threads apart. */
static _Thread_local char this_thread;

static bool is_inside(const kt_context *ctx)
{
    return atomic_load(&ctx->owner) == &this_thread && !ctx->in_callback;
}

bool kt_context_is_elsewhere(const kt_context *ctx)
{
    const void *owner = atomic_load(&ctx->owner);
    return owner && owner != &this_thread;
}

kt_status kt_enter(kt_context *ctx, const char *function, kt_context **entered)
{
    const void *nobody = NULL;
    KT_TRY(kt_check_handle(ctx, function, "ctx"));
    if (is_inside(ctx))
        ctx->depth++;
    else if (atomic_compare_exchange_strong(&ctx->owner, &nobody, &this_thread)) {
        kt_context_hold(ctx);
        kt_error_forget(ctx);
        ctx->depth = 1;
    } else
        return kt_refuse(ctx, KT_ERROR_STATE,
                         "%s: %s; a context runs one call at a time: call after that one has "
                         "returned, or use a context for each thread",
                         function,
                         kt_context_is_elsewhere(ctx)
                             ? "another thread is in a call of this context"
                             : "called from a callback of this context");
    *entered = ctx;
    return KT_OK;
}

/* The caller is inside, and the handles' contexts stay alive. */
static void destroy_waiting(kt_context *ctx)
{
    struct kt_handle *h = atomic_exchange(&ctx->waiting, NULL), *next;
    for (; h; h = next) {
        next = h->next;
        kt_handle_drop(h);
    }
}

/* What is freed by another thread after the last look is destroyed in another round. */
static void leave(kt_context *ctx)
{
    ctx->depth = 1;
    destroy_waiting(ctx);
    atomic_store(&ctx->owner, NULL);
}

static void collect(kt_context *ctx)
{
    const void *nobody = NULL;
    while (atomic_load(&ctx->waiting) &&
           atomic_compare_exchange_strong(&ctx->owner, &nobody, &this_thread))
        leave(ctx);
}

void kt_leave(kt_context **entered)
{
    kt_context *ctx = *entered;
    if (!ctx || --ctx->depth)
        return;
    leave(ctx);
    collect(ctx);
    kt_context_drop(ctx);
}

bool kt_callback_begin(kt_context *ctx)
{
    bool before = ctx->in_callback;
    ctx->in_callback = true;
    return before;
}

void kt_callback_end(kt_context *ctx, bool before)
{
    ctx->in_callback = before;
}

kt_status kt_handle_new(kt_context *ctx, size_t size, void (*destroy)(void *handle),
                        const char *what, void **out)
{
    struct kt_handle *h = calloc(1, size);
    *out = NULL;
    if (!h)
        return kt_fail_memory(ctx, size, what);
    h->ctx = ctx;
    h->destroy = destroy;
    kt_context_hold(ctx);
    *out = h;
    return KT_OK;
}

void kt_handle_hold(const void *handle)
{
    if (handle)
        ((struct kt_handle *)handle)->others++;
}

void kt_handle_drop(void *handle)
{
    struct kt_handle *h = handle;
    if (!h || h->others-- > 0)
        return;
    kt_context *ctx = h->ctx;
    h->destroy(h);
    free(h);
    kt_context_drop(ctx);
}

void kt_handle_free(void *handle)
{
    struct kt_handle *h = handle;
    if (!h)
        return;
    kt_context *ctx = h->ctx;
    if (is_inside(ctx)) {
        kt_handle_drop(h);
        return;
    }
    kt_context_hold(ctx);
    h->next = atomic_load(&ctx->waiting);
    while (!atomic_compare_exchange_weak(&ctx->waiting, &h->next, h))
        ;
    collect(ctx);
    kt_context_drop(ctx);
}
