/* SPDX-License-Identifier: Apache-2.0 */
/* Activations that cross to the host's experts and back. A device with host memory shares them. */
#include "core/context.h"
#include "executor/pass.h"

static bool shares_memory(const struct kt_pass *pass)
{
    return kt_device_is_host(pass->stage->site->device);
}

struct kt_arena *kt_host_arena(struct kt_pass *pass)
{
    return shares_memory(pass) ? &pass->stage->arena : &pass->host.arena;
}

struct kt_view kt_host_take(struct kt_pass *pass, int64_t rows, int64_t cols)
{
    return (struct kt_view){kt_arena_take(kt_host_arena(pass), rows, cols, 4), cols, KT_DTYPE_F32};
}

void kt_words_to_host(struct kt_pass *pass, void *to, const void *from, int64_t words)
{
    const struct kt_runner *run = &pass->stage->run;
    if (to == from)
        return;
    kt_run_order(run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    kt_run_copy(run, KT_QUEUE_OUT, to, from, (uint64_t)words * 4);
}

struct kt_view kt_to_host(struct kt_pass *pass, struct kt_view x, int64_t tokens, int64_t dim)
{
    if (shares_memory(pass))
        return x;
    struct kt_view copy = kt_host_take(pass, tokens, dim);
    kt_words_to_host(pass, copy.data, x.data, tokens * dim);
    return copy;
}

kt_status kt_host_wait(struct kt_pass *pass)
{
    const struct kt_runner *run = &pass->stage->run;
    KT_TRY(kt_run_sync(run, pass->stage->sent));
    return kt_run_sync(run, kt_run_mark(run, KT_QUEUE_OUT));
}

void kt_host_send(struct kt_pass *pass, void *to, const void *from, int64_t words)
{
    const struct kt_runner *run = &pass->stage->run;
    kt_run_order(run, KT_QUEUE_IN, KT_QUEUE_COMPUTE);
    kt_run_copy(run, KT_QUEUE_IN, to, from, (uint64_t)words * 4);
    pass->stage->sent = kt_run_mark(run, KT_QUEUE_IN);
    kt_run_wait(run, KT_QUEUE_COMPUTE, pass->stage->sent);
}

const void *kt_words_to_device(struct kt_pass *pass, const void *from, int64_t words)
{
    if (shares_memory(pass))
        return from;
    void *to = kt_arena_take(&pass->stage->arena, words, 1, 4);
    kt_host_send(pass, to, from, words);
    return to;
}

struct kt_view kt_to_device(struct kt_pass *pass, struct kt_view x, int64_t tokens, int64_t dim)
{
    x.data = (void *)(uintptr_t)kt_words_to_device(pass, x.data, tokens * dim);
    return x;
}
