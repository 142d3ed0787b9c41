/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/window.h
 * Units of a checkpoint that is larger than memory: a thread reads those that are used next and
 * gives up those that are used last, so that memory holds no more of them than it should, and the
 * system need not guess. A unit is waited for before it is used: what cannot be read is an error
 * and no fault. */
#ifndef KT_EXECUTOR_WINDOW_H
#define KT_EXECUTOR_WINDOW_H

#include "executor/sources.h"
#include "executor/walk.h"

struct kt_window;

/** For `num` units. A thread begins with the first that is entered. Errors: OUT_OF_MEMORY. */
kt_status kt_window_create(const struct kt_checkpoint *checkpoint, int32_t num,
                           struct kt_window **out);
/** Ends the thread. NULL is allowed. */
void kt_window_free(struct kt_window *window);

/** Waits until a unit of `units` is in memory, and has those read that a walk over them uses next,
 * as far as they fit in `budget` bytes with it. Of one that is larger only so many bytes are read.
 * `units` stay where they are until the window is freed; when they are others than before, all of
 * those are given up. Errors: IO (the file and the tensor), CANCELLED. */
kt_status kt_window_enter(struct kt_window *window, const struct kt_ranges *units,
                          enum kt_walk walk, int32_t unit, uint64_t budget);
/** Forgets what is in memory, and leaves it to the system until a unit is entered again. */
void kt_window_forget(struct kt_window *window);
/** Whether a unit is in memory. */
bool kt_window_holds(struct kt_window *window, int32_t unit);

/** Gives up ranges. */
void kt_window_drop(const struct kt_checkpoint *checkpoint, const struct kt_ranges *ranges);
/** Reads ranges with all threads of the context, at once. Errors: IO, OUT_OF_MEMORY. */
kt_status kt_window_read(const struct kt_checkpoint *checkpoint, const struct kt_ranges *ranges);

#endif
