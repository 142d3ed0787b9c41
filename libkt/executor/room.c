/* SPDX-License-Identifier: Apache-2.0 */
/* Whether devices have room for a step. */
#include "core/context.h"
#include "core/memory.h"
#include "executor/executor.h"

static uint64_t growth(uint64_t has, uint64_t needs)
{
    return needs > has ? needs - has : 0;
}

uint64_t kt_room_others(const struct kt_executor *ex, const struct kt_step *step, int32_t device)
{
    const struct kt_device *dev = ex->sites[device].device;
    const struct kt_workspace *w = &ex->workspace;
    const struct kt_stage *stage = &step->pass.stages[device];
    const struct kt_site *site = &ex->sites[device];
    uint64_t weights = kt_supply_taken(site->supply) + kt_expert_supply_taken(site->experts);
    uint64_t feed = step->feed_bytes > w->host_feed.size ? step->feed_bytes : w->host_feed.size;
    return dev->allocated - weights - ex->inputs[device].size +
           growth(w->activations[device].size, stage->arena.peak) +
           growth(w->feeds[device].size, feed) + growth(dev->scratch_bytes, stage->tally.scratch);
}

uint64_t kt_room_weights(const struct kt_site *site)
{
    uint64_t travel = kt_supply_fit(site->supply, 0, NULL);
    uint64_t stay = kt_supply_fit(site->supply, UINT64_MAX, NULL);
    return travel < stay ? travel : stay;
}

uint64_t kt_room_experts(const struct kt_site *site, uint64_t others)
{
    uint64_t limit = site->device->limit, share = kt_site_expert_least(site);
    if (!limit || others + share + kt_room_weights(site) <= limit)
        return share;
    return kt_expert_supply_bytes(site->experts, 0);
}

/** A step within what was reserved stays there: what else has grown meanwhile is no matter. */
static bool stays(const struct kt_executor *ex, const struct kt_step *step, int32_t device)
{
    const struct kt_stage *stage = &step->pass.stages[device];
    return stage->arena.peak <= ex->reserved_activations[device] &&
           stage->tally.scratch <= ex->reserved_scratch[device];
}

bool kt_room_suffices(const struct kt_executor *ex, const struct kt_step *step, bool for_experts)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        const struct kt_site *site = &ex->sites[i];
        uint64_t limit = site->device->limit, others = kt_room_others(ex, step, i);
        others += for_experts ? kt_site_expert_least(site) : kt_room_experts(site, others);
        if (!limit)
            continue;
        if (step->pass.tokens <= ex->reserved_tokens ? !stays(ex, step, i)
                                                     : others + kt_room_weights(site) > limit)
            return false;
    }
    return true;
}

kt_status kt_room_check(const struct kt_executor *ex, const struct kt_step *step)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        const struct kt_site *site = &ex->sites[i];
        uint64_t limit = site->device->limit, needs = kt_room_others(ex, step, i);
        needs += kt_expert_supply_bytes(site->experts, 0) + kt_room_weights(site);
        if (limit && needs > limit)
            return kt_fail(ex->ctx, KT_ERROR_OUT_OF_MEMORY,
                           "device \"%s\": a step of %lld tokens needs %llu bytes, and %llu are "
                           "all that it may take; raise the limit, or run fewer tokens in one step",
                           site->device->ops->name, (long long)step->pass.tokens,
                           (unsigned long long)needs, (unsigned long long)limit);
    }
    return KT_OK;
}
