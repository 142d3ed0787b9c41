/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/supply.h
 * Brings weights to where they are used, in the order of the step and ahead of it. A unit is a
 * layer, or the head behind the last. On a device with host memory weights are used where the
 * checkpoint is mapped, and the next unit's pages are read while one is computed (pages.h); before
 * a unit its files are looked at, so that one that was truncated is an error and no fault. On
 * another device units that there is room for stay once they were sent; for the others two buffers
 * take turns: while one unit is computed, the next one travels.
 *
 * Routed experts are computed on the host: their pages are asked for, and nothing is sent. */
#ifndef KT_EXECUTOR_SUPPLY_H
#define KT_EXECUTOR_SUPPLY_H

#include "backend/device.h"
#include "executor/pages.h"
#include "model/model.h"

struct kt_supply;

/** For the units u with units[u], of num_hidden_layers + 1. Errors: OUT_OF_MEMORY. */
kt_status kt_supply_create(const kt_model *model, struct kt_device *device, const uint8_t *units,
                           struct kt_supply **out);
/** Bytes of the weights of all its units. */
uint64_t kt_supply_weights(const struct kt_supply *supply);
/** What they would take on a device with so much room, see kt_residency_fit. */
uint64_t kt_supply_fit(const struct kt_supply *supply, uint64_t room, bool *resident);
/** What they take now, buffers and all. */
uint64_t kt_supply_taken(const struct kt_supply *supply);
/** Lets as many units stay as there is memory for, once a pass has all of its own. Nothing is
 * queued. What other memory then needs, they give up again. NULL is allowed. Errors: OUT_OF_MEMORY
 * (not even for what travels). */
kt_status kt_supply_settle(struct kt_supply *supply);
/** Gives up weights that stay, from the last unit on: so many bytes, and what then travels needs.
 * Nothing is queued that uses them. False where nothing was freed. */
bool kt_supply_reclaim(struct kt_supply *supply, uint64_t bytes);
/** NULL is allowed. */
void kt_supply_free(struct kt_supply *supply);

/** Makes a unit's weights usable by what is queued from here on, until the next call; `then` is the
 * unit that will be asked for next, or -1. Errors: IO (a file of the checkpoint has changed, or
 * cannot be read), CANCELLED. */
kt_status kt_supply_enter(struct kt_supply *supply, const struct kt_runner *run, int32_t unit,
                          int32_t then, struct kt_pages_walk walk);
/** Whether pages of the unit's weights are still to be read, in their turn. NULL is allowed. */
bool kt_supply_lacks(const struct kt_supply *supply, int32_t unit);
/** Reads the routed experts that have rows, of the layer that was entered, where few do. NULL
 * is allowed. Errors: IO, OUT_OF_MEMORY. */
kt_status kt_supply_experts(const struct kt_supply *supply, const struct kt_layer *layer,
                            const struct kt_routing *routing);
/** Reads rows of the embedding, where memory does not hold the checkpoint. Errors: IO,
 * OUT_OF_MEMORY. */
kt_status kt_supply_rows(const struct kt_supply *supply, const struct kt_weight *table,
                         const int32_t *ids, int64_t num);

/** A weight of the unit that was entered, with addresses of a device without host memory. */
struct kt_weight kt_supply_take(const struct kt_supply *supply, const struct kt_weight *weight);

#endif
