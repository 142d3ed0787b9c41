/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/share.h
 * Divides the experts of a layer between the host and a device, so that both end at about the same
 * time. A function of its arguments alone: a run that is resumed with the same rates divides alike.
 */
#ifndef KT_PLACEMENT_SHARE_H
#define KT_PLACEMENT_SHARE_H

#include <kt/types.h>

/** Seconds that an expert would take on either side. */
struct kt_share_cost {
    double host, device;
    bool coming; /**< it is on the device, or on its way there whether it is used or not */
};

/** on_device[e] = 1 for the experts that the device computes: those that are coming first, then
 * those that gain most by it. Experts without any cost stay on the host. A host that computes at
 * all spends `host_fixed` seconds beside its experts. All go to the device where it would not end
 * `worth_it` times later alone. `order` is memory for [num_experts]. */
void kt_share_choose(const struct kt_share_cost *costs, int32_t num_experts, double host_fixed,
                     double worth_it, int32_t *order, uint8_t *on_device);

/** The same where few experts are used, as in decoding: one that is on the device is computed
 * there, and others where they are, unless the host is much slower than the link. Nothing is
 * measured for it: no clock could tell more than it would cost. */
void kt_share_choose_few(const struct kt_share_cost *costs, int32_t num_experts,
                         uint8_t *on_device);

#endif
