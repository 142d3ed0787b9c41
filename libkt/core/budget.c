/* SPDX-License-Identifier: Apache-2.0 */
#include "core/budget.h"

#include "core/context.h"

void kt_budget_start(struct kt_budget *b, kt_context *ctx, const char *name, uint64_t size)
{
    uint64_t limit = ctx->options.memory_limit, used = ctx->memory_used;
    if (size > UINT64_MAX / 1024)
        size = UINT64_MAX / 1024;
    *b = (struct kt_budget){.ctx = ctx,
                            .name = name,
                            .size = size,
                            .bytes = KT_BUDGET_BYTES(size),
                            .steps = KT_BUDGET_STEPS(size)};
    uint64_t left = used < limit ? limit - used : 0;
    if (limit && left < b->bytes) {
        b->bytes = left;
        b->limited = true;
    }
}

kt_status kt_budget_bytes(struct kt_budget *b, uint64_t bytes, const char *what)
{
    char size[KT_SIZE_TEXT], most[KT_SIZE_TEXT];
    if (bytes <= b->bytes) {
        b->bytes -= bytes;
        return KT_OK;
    }
    if (b->limited)
        return kt_fail(b->ctx, KT_ERROR_OUT_OF_MEMORY,
                       "%s: %s would take more than the limit of %s leaves; raise the limit",
                       b->name, what, kt_size_text(b->ctx->options.memory_limit, most));
    return kt_fail(b->ctx, KT_ERROR_FORMAT,
                   "%s: %s would take more than %s, out of all proportion to an input of %s",
                   b->name, what, kt_size_text(KT_BUDGET_BYTES(b->size), most),
                   kt_size_text(b->size, size));
}

kt_status kt_budget_steps(struct kt_budget *b, uint64_t steps, const char *what)
{
    char size[KT_SIZE_TEXT];
    if (steps <= b->steps) {
        b->steps -= steps;
        return KT_OK;
    }
    return kt_fail(b->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: %s needs too much work, out of all proportion to an input of %s", b->name,
                   what, kt_size_text(b->size, size));
}
