/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/expert_shares.h"

#include "core/clock.h"
#include "core/context.h"
#include "executor/executor.h"
#include "placement/share.h"

/** What a call costs on either side, as tables tell it. */
struct told {
    struct kt_share_cost *costs; /**< [num_experts] */
    double host, device;         /**< of all experts; host_fixed in it */
    double host_fixed;           /**< inputs brought to the host, and its sum back */
};

struct kt_experts *kt_experts_of_host(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    struct kt_experts *experts = pass->executor->experts[work->layer - pass->model->layers];
    bool does = experts->ops->supports(experts, &work->experts, pass->compute, work->routing.tokens,
                                       pass->training);
    return does ? experts : pass->executor->general;
}

static int32_t layer_of(const struct kt_pass *pass, const struct kt_expert_work *work)
{
    return (int32_t)(work->layer - pass->model->layers);
}

/** What an expert takes on the current device: to bring it there and to multiply, whichever is
 * longer. One that is on its way is behind others that are, so it counts. */
static double device_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                             struct kt_rates rates, int32_t expert, int64_t rows, bool backward)
{
    const struct kt_expert_layer *l = &work->experts;
    uint64_t distance =
        kt_expert_supply_distance(pass->stage->site->experts, layer_of(pass, work), expert);
    double products = backward ? 15 : 6;
    double flops = products * (double)rows * (double)l->hidden_size * (double)l->intermediate_size;
    double bring = (double)distance / rates.link, multiply = flops / rates.flops;
    return bring > multiply ? bring : multiply;
}

/** What an expert takes on the host. Backward recomputes two of forward's three products. */
static double host_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                           int64_t rows, bool backward)
{
    const struct kt_experts *e = kt_experts_of_host(pass, work);
    double seconds = e->ops->seconds(e, &work->experts, rows, backward);
    if (backward)
        seconds += e->ops->seconds(e, &work->experts, rows, false) * 2 / 3;
    return seconds;
}

/** Inputs are copied, and the sum is cleared and copied. */
static double host_fixed_seconds(const struct kt_pass *pass, const struct kt_expert_work *work,
                                 bool backward)
{
    const struct kt_device *host = pass->host.site->device;
    double copies = backward ? 6 : 4;
    double bytes = 4.0 * (double)work->routing.tokens * (double)work->experts.hidden_size;
    return copies * bytes / host->ops->rates(host, pass->compute).bytes;
}

static void tell(const struct kt_pass *pass, const struct kt_expert_work *work, bool backward,
                 struct told *told)
{
    const struct kt_routing *r = &work->routing;
    const struct kt_device *device = pass->stage->site->device;
    struct kt_rates rates = device->ops->rates(device, pass->compute);
    int32_t layer = layer_of(pass, work);
    told->host = told->host_fixed = host_fixed_seconds(pass, work, backward);
    for (int32_t i = 0; i < r->num_experts; i++) {
        int64_t rows = r->first[i + 1] - r->first[i];
        told->costs[i] = (struct kt_share_cost){0};
        if (!rows)
            continue;
        told->costs[i] = (struct kt_share_cost){
            .host = host_seconds(pass, work, rows, backward),
            .device = device_seconds(pass, work, rates, i, rows, backward),
            .coming = kt_expert_supply_coming(pass->stage->site->experts, layer, i)};
        told->host += told->costs[i].host;
        told->device += told->costs[i].device;
    }
}

static void choose(const struct kt_balance *balance, const struct told *told, int32_t num_experts,
                   struct kt_share_cost *scaled, int32_t *order, uint8_t *chosen)
{
    double scale = (double)balance->scale / 1000;
    for (int32_t e = 0; e < num_experts; e++) {
        scaled[e] = told->costs[e];
        scaled[e].host *= scale;
        if (balance->mode == KT_BALANCE_DEVICE)
            chosen[e] = scaled[e].host > 0;
        if (balance->mode == KT_BALANCE_HOST)
            chosen[e] = 0;
    }
    if (balance->mode == KT_BALANCE_BOTH)
        kt_share_choose(scaled, num_experts, scale * told->host_fixed, kt_balance_worth_it(balance),
                        order, chosen);
}

/** Counts what was chosen, of experts that have rows. */
static void count(struct kt_pass *pass, const struct kt_expert_work *work, const struct told *told,
                  struct kt_expert_shares *s)
{
    int32_t layer = layer_of(pass, work);
    s->host_told = told->host;
    for (int32_t e = 0; e < work->routing.num_experts; e++) {
        if (!s->chosen[e])
            continue;
        s->device_told += told->costs[e].device;
        s->host_told -= told->costs[e].host;
        s->travels += kt_expert_supply_distance(pass->stage->site->experts, layer, e) > 0;
    }
}

static void invert(uint8_t *chosen, int32_t num_experts)
{
    for (int32_t e = 0; e < num_experts; e++)
        chosen[e] = !chosen[e];
}

static void cut(const struct kt_routing *r, struct kt_expert_shares *s, void *const memory[2])
{
    s->device = kt_routing_share(r, s->chosen, memory[0]);
    invert(s->chosen, r->num_experts);
    s->host = kt_routing_share(r, s->chosen, memory[1]);
    invert(s->chosen, r->num_experts);
    s->has_host = s->host.first[r->num_experts] > 0;
    s->has_device = s->device.first[r->num_experts] > 0;
}

struct kt_expert_shares kt_expert_shares_divide(struct kt_pass *pass,
                                                const struct kt_expert_work *work, bool backward)
{
    struct kt_arena *arena = kt_host_arena(pass);
    const struct kt_routing *r = &work->routing;
    int64_t bytes = (int64_t)kt_routing_bytes(r->tokens, r->topk, r->num_experts);
    struct kt_expert_shares s = {.host = *r,
                                 .device = *r,
                                 .has_host = work->where != KT_EXPERTS_DEVICE,
                                 .has_device = work->where != KT_EXPERTS_HOST,
                                 .travels = r->num_experts};
    if (!s.has_device)
        return s;
    s.chosen = kt_arena_take(arena, r->num_experts, 1, 1);
    void *memory[] = {kt_arena_take(arena, bytes, 1, 1), kt_arena_take(arena, bytes, 1, 1)};
    struct told told = {.costs =
                            kt_arena_take(arena, r->num_experts, sizeof(struct kt_share_cost), 1)};
    void *scaled = kt_arena_take(arena, r->num_experts, sizeof(struct kt_share_cost), 1);
    void *order = kt_arena_take(arena, r->num_experts, sizeof(int32_t), 1);
    if (kt_pass_measures(pass))
        return s;
    for (int32_t e = 0; e < r->num_experts; e++)
        s.chosen[e] = r->first[e + 1] > r->first[e];
    if (!s.has_host)
        return s;
    bool few = r->tokens * r->topk < r->num_experts;
    s.looks = !few && kt_sharing_looks(pass, backward);
    s.began = s.looks ? kt_clock() : 0;
    s.travels = 0;
    tell(pass, work, backward, &told);
    if (few) {
        kt_share_choose_few(told.costs, r->num_experts, s.chosen);
    } else {
        choose(kt_sharing_balance(pass, backward), &told, r->num_experts, scaled, order, s.chosen);
        kt_sharing_count(pass, told.host, told.device);
    }
    count(pass, work, &told, &s);
    cut(r, &s, memory);
    return s;
}

kt_status kt_expert_shares_join(const struct kt_pass *pass, const struct kt_expert_shares *s,
                                kt_mark done)
{
    if (!s->looks)
        return KT_OK;
    struct kt_balance_measure *m = kt_sharing_measure(pass);
    double now = kt_clock();
    if (s->has_host) {
        m->host += s->host_told;
        m->host_seconds += now - s->began;
    }
    if (!s->has_device)
        return KT_OK;
    KT_TRY(kt_run_sync(&pass->stage->run, done));
    double end = kt_clock();
    m->device += s->device_told;
    m->device_seconds += end - s->began;
    m->waited += end - now;
    return KT_OK;
}
