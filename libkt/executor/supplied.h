/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/supplied.h
 * A weight and the place of its copy in a block of a device's memory. */
#ifndef KT_EXECUTOR_SUPPLIED_H
#define KT_EXECUTOR_SUPPLIED_H

#include "backend/device.h"

struct kt_supplied {
    const struct kt_weight *weight;
    uint64_t data, data_bytes, scale, scale_bytes; /**< in the block */
};

/** A place behind the `*bytes` bytes of others, which it adds to. */
struct kt_supplied kt_supplied_place(const struct kt_weight *weight, uint64_t *bytes);
/** Queues its copy into the block. */
void kt_supplied_send(const struct kt_supplied *supplied, const struct kt_runner *run, char *block);
/** The copy as a weight. */
struct kt_weight kt_supplied_weight(const struct kt_supplied *supplied, char *block);

#endif
