/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/read_ahead.h
 * A thread that asks the system for mapped pages before they are used, so that the disk and the
 * processor work at the same time. What is in memory already costs it a look at every fourth
 * megabyte. */
#ifndef KT_EXECUTOR_READ_AHEAD_H
#define KT_EXECUTOR_READ_AHEAD_H

#include "formats/mapped_file.h"

struct kt_read_ahead;

/** Without a thread, which begins with the first wish. Errors: OUT_OF_MEMORY. */
kt_status kt_read_ahead_create(kt_context *ctx, struct kt_read_ahead **out);
/** Ends the thread. NULL is allowed. */
void kt_read_ahead_free(struct kt_read_ahead *reader);

/** Wishes for ranges: with `look` for what is not in memory, else for all. They stay where they are
 * until the reader is freed, in place of what it was asked for before. When all of them were in
 * memory, or without `look` were asked for, `*resident` becomes true, at any later time. A thread
 * that cannot be started reads nothing ahead. */
void kt_read_ahead_want(struct kt_read_ahead *reader, const struct kt_range *ranges, int32_t num,
                        bool look, _Atomic bool *resident);

#endif
