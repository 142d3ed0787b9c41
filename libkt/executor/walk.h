/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/walk.h
 * The order in which units (layers, and the head) are used, and what follows from it for a window
 * of them in memory: what to read next, and what to give up for it. */
#ifndef KT_EXECUTOR_WALK_H
#define KT_EXECUTOR_WALK_H

#include <kt/types.h>

/** What a walk is and what is expected to follow. */
enum kt_walk {
    KT_WALK_UP_UP,   /**< upwards, then from the first unit again: generation, evaluation */
    KT_WALK_UP_DOWN, /**< forward of a step that backward follows */
    KT_WALK_DOWN_UP  /**< backward, which the next step's forward follows */
};

/** Where a walk is, and what of its units is in memory. */
struct kt_walk_state {
    enum kt_walk walk;
    int32_t at; /**< the unit in use */
    int32_t num;
    const uint64_t *bytes; /**< [num]; units without any are passed over */
    const bool *held;      /**< [num] in memory */
    uint64_t budget;       /**< bytes that may be held */
};

struct kt_walk_move {
    enum { KT_WALK_WAIT, KT_WALK_READ, KT_WALK_DROP } what;
    int32_t unit;
};

/** Units that are used before `unit` is, counted from the one in use, which has 0. */
int32_t kt_walk_distance(const struct kt_walk_state *state, int32_t unit);
/** What to do next: to read the missing unit that is used first, or to drop for it the one that is
 * used last, if that is after it. The unit in use is never dropped, and is read however large it
 * is. In UP_UP nothing is dropped for more than the unit behind the one in use: in a circle what is
 * read early costs what could have stayed. */
struct kt_walk_move kt_walk_next(const struct kt_walk_state *state);

#endif
