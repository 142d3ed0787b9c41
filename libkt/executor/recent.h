/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/recent.h
 * Which of many things are in memory, where those that were used last stay. */
#ifndef KT_EXECUTOR_RECENT_H
#define KT_EXECUTOR_RECENT_H

#include <kt/types.h>

struct kt_recent {
    uint64_t *used; /**< [num] the round in which it was used last; 0 = it is not in memory */
    uint64_t *bytes;
    int32_t num;
    uint64_t round, held; /**< held: bytes in memory */
};

/** Of `num` things, none in memory. Errors: OUT_OF_MEMORY. */
kt_status kt_recent_create(kt_context *ctx, int32_t num, struct kt_recent *recent);
void kt_recent_free(struct kt_recent *recent);

/** Begins a round: what is used in it stays until the next. */
void kt_recent_begin(struct kt_recent *recent);
/** Uses a thing of so many bytes, which is in memory then; whether it was before. */
bool kt_recent_use(struct kt_recent *recent, int32_t thing, uint64_t bytes);
/** Forgets what was used longest ago if more than `budget` bytes are in memory, to be dropped; -1 =
 * nothing is to be. */
int32_t kt_recent_drop(struct kt_recent *recent, uint64_t budget);

#endif
