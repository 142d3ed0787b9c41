/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/expert_shares.h
 * Which experts of a call the host computes and which the device. */
#ifndef KT_EXECUTOR_EXPERT_SHARES_H
#define KT_EXECUTOR_EXPERT_SHARES_H

#include "executor/sharing.h"

/** The routing's rows, divided. */
struct kt_expert_shares {
    struct kt_routing host, device;
    bool has_host, has_device;
    uint8_t *chosen; /**< [num_experts] 1 = the device's */
    int32_t travels; /**< so many of those travel to the device */
    bool looks;      /**< whether the two are measured */
    double began;
    double host_told, device_told; /**< seconds, see kt_balance_measure */
};

/** The host's backend of the layer, or the CPU's where that one does not compute such calls. */
struct kt_experts *kt_experts_of_host(const struct kt_pass *pass,
                                      const struct kt_expert_work *work);

/** A function of counts, of what the device has, and of the balance. Takes memory of the host's
 * arena. */
struct kt_expert_shares kt_expert_shares_divide(struct kt_pass *pass,
                                                const struct kt_expert_work *work, bool backward);

/** The device's share is queued up to `done`, the host's is done and so is what sends it: notes
 * what both took. Errors: what the device remembers. */
kt_status kt_expert_shares_join(const struct kt_pass *pass, const struct kt_expert_shares *shares,
                                kt_mark done);

#endif
