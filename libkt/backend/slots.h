/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/slots.h
 * The slots (token, j) of a batch by expert. */
#ifndef KT_BACKEND_SLOTS_H
#define KT_BACKEND_SLOTS_H

#include "backend/experts.h"

/** The slots of expert e, in ascending order, are order[first[e]] .. order[first[e + 1] - 1].
 * first: [num_experts + 1]; order: [tokens * topk]. */
void kt_slots_sort(const struct kt_expert_batch *batch, int32_t num_experts, int64_t *first,
                   int32_t *order);

#endif
