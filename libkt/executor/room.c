/* SPDX-License-Identifier: Apache-2.0 */
/* Whether devices have room for a step. */
#include "core/context.h"
#include "executor/executor.h"

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint64_t kt_room_weights(const struct kt_site *site)
{
    uint64_t travel = kt_supply_fit(site->supply, 0, NULL);
    uint64_t stay = kt_supply_fit(site->supply, UINT64_MAX, NULL);
    return travel < stay ? travel : stay;
}

/** Of routed experts and other weights. */
static uint64_t least_of(const struct kt_site *site)
{
    return kt_expert_supply_bytes(site->experts, 0) + kt_room_weights(site);
}

/** Memory of a device that is neither inputs' nor weights'. */
struct others {
    uint64_t needed; /**< what the step cannot do without */
    uint64_t held;   /**< with what larger steps have left */
    bool crowded;    /**< there is no room for that */
};

static struct others others_of(const struct kt_executor *ex, const struct kt_step *step,
                               int32_t device)
{
    const struct kt_device *dev = ex->sites[device].device;
    const struct kt_workspace *w = &ex->workspace;
    const struct kt_stage *stage = &step->pass.stages[device];
    const struct kt_site *site = &ex->sites[device];
    uint64_t activations = w->activations[device].size, feeds = w->feeds[device].size;
    uint64_t feed = kt_device_is_host(dev) ? 0 : larger(step->feed_bytes, w->host_feed.size);
    uint64_t fixed = dev->allocated - kt_supply_taken(site->supply) -
                     kt_expert_supply_taken(site->experts) - ex->inputs[device].size - activations -
                     dev->scratch_bytes - feeds + larger(feed, feeds);
    struct others others = {
        .needed = fixed + stage->arena.peak + stage->tally.scratch,
        .held = fixed + larger(activations, stage->arena.peak) +
                larger(dev->scratch_bytes, stage->tally.scratch),
    };
    others.crowded = dev->limit && others.held + least_of(site) > dev->limit;
    return others;
}

uint64_t kt_room_others(const struct kt_executor *ex, const struct kt_step *step, int32_t device)
{
    struct others others = others_of(ex, step, device);
    return others.crowded ? others.needed : others.held;
}

void kt_room_make(struct kt_executor *ex, const struct kt_step *step)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        const struct kt_stage *stage = &step->pass.stages[i];
        struct kt_block *block = &ex->workspace.activations[i];
        if (!others_of(ex, step, i).crowded)
            continue;
        if (block->size > stage->arena.peak)
            kt_block_free(ex->sites[i].device, block);
        if (ex->sites[i].device->scratch_bytes > stage->tally.scratch)
            kt_device_free_scratch(ex->sites[i].device);
    }
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
        const struct kt_device *device = ex->sites[i].device;
        uint64_t needs = others_of(ex, step, i).needed + least_of(&ex->sites[i]);
        if (device->limit && needs > device->limit)
            return kt_fail(ex->ctx, KT_ERROR_OUT_OF_MEMORY,
                           "device \"%s\": a step of %lld tokens needs %llu bytes, and %llu are "
                           "all that it may take; raise the limit, or run fewer tokens in one step",
                           device->ops->name, (long long)step->pass.tokens,
                           (unsigned long long)needs, (unsigned long long)device->limit);
    }
    return KT_OK;
}
