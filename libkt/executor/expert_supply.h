/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/expert_supply.h
 * Brings routed experts to a device, in the order in which a layer computes them and ahead of it.
 * Memory is cut into places of one expert. The first experts of every layer, as many as fit, have
 * places of their own and travel once; the others take turns in a ring, which while a layer is at
 * something else fills with the experts that come next. On a device with host memory experts are
 * used where the checkpoint is mapped, and all of this does nothing. */
#ifndef KT_EXECUTOR_EXPERT_SUPPLY_H
#define KT_EXECUTOR_EXPERT_SUPPLY_H

#include "backend/experts.h"
#include "model/model.h"

struct kt_expert_supply;

/** For the layers l with layers[l]; without memory yet. Errors: OUT_OF_MEMORY. */
kt_status kt_expert_supply_create(const kt_model *model, struct kt_device *device,
                                  const uint8_t *layers, struct kt_expert_supply **out);
/** NULL is allowed. Nothing that is queued may still use it. */
void kt_expert_supply_free(struct kt_expert_supply *supply);

/** Bytes of whole places that it takes of `bytes`: at least those with which it can do its work, at
 * most those beyond which more are of no use; 0 where it needs none. */
uint64_t kt_expert_supply_bytes(const struct kt_expert_supply *supply, uint64_t bytes);
/** Gives it those; where they are others than it has, what was there is gone. Waits for what is
 * queued if it has to. Errors: OUT_OF_MEMORY. */
kt_status kt_expert_supply_reserve(struct kt_expert_supply *supply, uint64_t bytes);

/** Bytes that it has. */
uint64_t kt_expert_supply_taken(const struct kt_expert_supply *supply);
/** Gives it what the device's limit leaves, where there is one. Errors: OUT_OF_MEMORY. */
kt_status kt_expert_supply_settle(struct kt_expert_supply *supply);
/** Frees all that it has, until it is reserved again; false where that is nothing. NULL is allowed,
 * here and above. */
bool kt_expert_supply_give_up(struct kt_expert_supply *supply);

/** Bytes that an expert of a layer travels: 0 where it has a place of its own. */
uint64_t kt_expert_supply_distance(const struct kt_expert_supply *supply, int32_t layer,
                                   int32_t expert);
/** Whether it has a place of its own, or is in the ring or queued to be. */
bool kt_expert_supply_coming(const struct kt_expert_supply *supply, int32_t layer, int32_t expert);

/** The experts of a layer are taken next, those with chosen[e] in ascending order; then, of the
 * layer `then` (-1 = unknown), probably the first ones, `most` at most. */
void kt_expert_supply_enter(struct kt_expert_supply *supply, const struct kt_runner *run,
                            int32_t layer, const uint8_t *chosen, int32_t then, int32_t most);
/** How many may be taken at one time, and how many of them that do not stay on the device. */
enum { KT_EXPERTS_TOGETHER = 8 };
int32_t kt_expert_supply_moving(const struct kt_expert_supply *supply);
bool kt_expert_supply_stays(const struct kt_expert_supply *supply, int32_t expert);
/** The next of them, beside those that are taken already. */
void kt_expert_supply_take(struct kt_expert_supply *supply, const struct kt_runner *run,
                           int32_t expert);
/** What uses those that are taken is queued. */
void kt_expert_supply_give_back(struct kt_expert_supply *supply, const struct kt_runner *run);

/** Where a weight of an expert that is taken is on the device; false for any other weight. */
bool kt_expert_supply_find(const struct kt_expert_supply *supply, const struct kt_weight *weight,
                           struct kt_weight *out);

#endif
