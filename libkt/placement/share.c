/* SPDX-License-Identifier: Apache-2.0 */
#include "placement/share.h"

/** Whether x goes to the device before y: it is on its way there, or gains more by it, in host
 * seconds for each of the device's. */
static bool goes_first(const struct kt_share_cost *x, const struct kt_share_cost *y)
{
    if (x->coming != y->coming)
        return x->coming;
    return x->host * y->device > y->host * x->device;
}

/** Insertion keeps experts that gain alike in ascending order. */
static int32_t sort(const struct kt_share_cost *costs, int32_t num_experts, int32_t *order)
{
    int32_t num = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        int32_t at = num;
        if (costs[e].host <= 0)
            continue;
        for (; at > 0 && goes_first(&costs[e], &costs[order[at - 1]]); at--)
            order[at] = order[at - 1];
        order[at] = e;
        num++;
    }
    return num;
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

void kt_share_choose(const struct kt_share_cost *costs, int32_t num_experts, double host_fixed,
                     double worth_it, int32_t *order, uint8_t *on_device)
{
    int32_t num = sort(costs, num_experts, order);
    double host = host_fixed, device = 0, alone = 0;
    for (int32_t i = 0; i < num; i++) {
        host += costs[order[i]].host;
        alone += costs[order[i]].device;
    }
    for (int32_t e = 0; e < num_experts; e++)
        on_device[e] = 0;
    for (int32_t i = 0; i < num; i++) {
        const struct kt_share_cost *cost = &costs[order[i]];
        double with = device + cost->device, without = host - cost->host;
        if (later(with, without) >= later(device, host))
            continue;
        on_device[order[i]] = 1;
        device = with;
        host = without;
    }
    for (int32_t i = 0; i < num && alone <= worth_it * later(device, host); i++)
        on_device[order[i]] = 1;
}

void kt_share_choose_few(const struct kt_share_cost *costs, int32_t num_experts, uint8_t *on_device)
{
    static const double much_slower = 3;
    for (int32_t e = 0; e < num_experts; e++)
        on_device[e] =
            costs[e].host > 0 && (costs[e].coming || costs[e].host > much_slower * costs[e].device);
}
