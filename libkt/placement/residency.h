/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/residency.h
 * What stays on a device without host memory: units' weights (layers' and the head's), where others
 * travel to it each time, through two buffers that take turns; and layers' kept inputs, where
 * others wait for backward on the host. Inputs go first: a step has to have room for them
 * somewhere. */
#ifndef KT_PLACEMENT_RESIDENCY_H
#define KT_PLACEMENT_RESIDENCY_H

#include <kt/types.h>

enum { KT_SUPPLY_BUFFERS = 2 };

/** For units of so many bytes (0 = not the device's) and `room` bytes for all of them: resident[u]
 * (NULL = not asked) of all units, if they fit; else of the first ones that fit beside the buffers.
 * Returns the bytes that residents and buffers take: more than `room` where not even the buffers
 * fit. */
uint64_t kt_residency_fit(const uint64_t *bytes, int32_t num, uint64_t room, bool *resident);

/** How many of `num` layers' inputs, of so many bytes each, stay on a device that has `room` for
 * them; the others are kept in pinned memory of the host. */
int64_t kt_residency_inputs(int64_t num, uint64_t bytes, uint64_t room);

/** Bytes of a buffer: of the largest unit. */
uint64_t kt_residency_buffer(const uint64_t *bytes, int32_t num);

#endif
