/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/workspace.h"

#include "core/context.h"
#include "executor/executor.h"

void kt_workspace_init(struct kt_workspace *w, const char *what)
{
    *w = (struct kt_workspace){
        .crossing = {.kind = KT_MEMORY_PINNED, .what = "activations on their way to experts"},
        .host_feed = {.kind = KT_MEMORY_PINNED, .what = "the positions of a step"}};
    for (int i = 0; i < KT_MAX_DEVICES; i++) {
        w->activations[i] = (struct kt_block){.kind = KT_MEMORY_DEVICE, .what = what};
        w->feeds[i] =
            (struct kt_block){.kind = KT_MEMORY_DEVICE, .what = "the positions of a step"};
    }
}

/** The device whose pinned memory devices cross by: any without host memory, else the first. */
static struct kt_device *crossing_device(const struct kt_executor *ex)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        if (!kt_device_is_host(ex->sites[i].device))
            return ex->sites[i].device;
    return ex->host.device;
}

void kt_workspace_free(struct kt_workspace *w, const struct kt_executor *ex)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        kt_block_free(ex->sites[i].device, &w->activations[i]);
        kt_block_free(ex->sites[i].device, &w->feeds[i]);
    }
    kt_block_free(crossing_device(ex), &w->crossing);
    kt_block_free(crossing_device(ex), &w->host_feed);
}

kt_status kt_workspace_feed(struct kt_workspace *w, const struct kt_executor *ex,
                            const struct kt_feed_sizes *sizes)
{
    w->feed_sizes = *sizes;
    KT_TRY(
        kt_block_reserve(crossing_device(ex), &w->host_feed, kt_feed_place(sizes, NULL, &w->feed)));
    kt_feed_place(sizes, w->host_feed.memory, &w->feed);
    return KT_OK;
}

uint64_t kt_workspace_size(const struct kt_pass *measured)
{
    uint64_t size = measured->host.arena.peak;
    for (int32_t i = 0; i < measured->num_stages; i++)
        if (kt_arena_overflowed(&measured->stages[i].arena) ||
            __builtin_add_overflow(size, measured->stages[i].arena.peak, &size))
            return UINT64_MAX;
    return kt_arena_overflowed(&measured->host.arena) ? UINT64_MAX : size;
}

/** Memory for routed experts, before other weights take all. */
static kt_status reserve_experts(const struct kt_site *site)
{
    if (kt_device_is_host(site->device) || kt_expert_supply_taken(site->experts))
        return KT_OK;
    uint64_t others = site->device->allocated - kt_supply_taken(site->supply);
    return kt_expert_supply_reserve(site->experts, kt_room_experts(site, others));
}

kt_status kt_workspace_reserve_scratch(const struct kt_pass *measured)
{
    for (int32_t i = 0; i < measured->num_stages; i++)
        KT_TRY(kt_device_reserve_scratch(measured->stages[i].site->device,
                                         measured->stages[i].tally.scratch));
    KT_TRY(
        kt_device_reserve_scratch(measured->executor->host.device, measured->host.tally.scratch));
    for (int32_t i = 0; i < measured->num_stages; i++) {
        const struct kt_site *site = measured->stages[i].site;
        KT_TRY(reserve_experts(site));
        KT_TRY(kt_supply_settle(site->supply));
        KT_TRY(kt_expert_supply_settle(site->experts));
    }
    return KT_OK;
}

kt_status kt_workspace_reserve(struct kt_workspace *w, const struct kt_pass *measured)
{
    const struct kt_executor *ex = measured->executor;
    if (kt_workspace_size(measured) == UINT64_MAX)
        return kt_fail_memory(ex->ctx, UINT64_MAX, w->activations[0].what);
    for (int32_t i = 0; i < measured->num_stages; i++) {
        const struct kt_stage *stage = &measured->stages[i];
        struct kt_device *device = stage->site->device;
        KT_TRY(kt_block_reserve(device, &w->activations[i], stage->arena.peak));
        if (!kt_device_is_host(device))
            KT_TRY(kt_block_reserve(device, &w->feeds[i], w->host_feed.size));
    }
    KT_TRY(kt_block_reserve(crossing_device(ex), &w->crossing, measured->host.arena.peak));
    return kt_workspace_reserve_scratch(measured);
}

static void enter_stage(const struct kt_workspace *w, int32_t index, struct kt_stage *stage)
{
    uint64_t bytes = kt_feed_place(&w->feed_sizes, w->feeds[index].memory, &stage->feed);
    stage->arena = kt_arena_over(w->activations[index].memory, w->activations[index].size);
    if (kt_device_is_host(stage->site->device)) {
        stage->feed = w->feed;
        return;
    }
    kt_run_copy(&stage->run, KT_QUEUE_IN, w->feeds[index].memory, w->host_feed.memory, bytes);
    kt_run_order(&stage->run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
}

void kt_workspace_enter(struct kt_workspace *w, struct kt_executor *ex, struct kt_pass *pass,
                        enum kt_pass_kind kind, uint64_t adapter)
{
    pass->kind = kind;
    pass->stage = &pass->stages[ex->layout.device[0]];
    pass->host.run.tally = NULL;
    pass->host.arena = kt_arena_over(w->crossing.memory, w->crossing.size);
    for (int32_t i = 0; i < pass->num_stages; i++) {
        struct kt_stage *stage = &pass->stages[i];
        stage->run.tally = NULL;
        enter_stage(w, i, stage);
        if (pass->lora)
            kt_site_lora_in(&ex->sites[i], &stage->run, pass->lora, adapter);
    }
}
