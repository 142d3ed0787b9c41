/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/experts_group.h
 * What the phases of a group are made of. A phase runs on the pool's threads, one after the other;
 * threads make products between kt_amx_enter and kt_amx_leave. */
#ifndef KT_BACKENDS_AMX_EXPERTS_GROUP_H
#define KT_BACKENDS_AMX_EXPERTS_GROUP_H

#include "backends/amx/experts.h"
#include "core/memory.h"

enum { KT_AMX_TOKENS_A_TASK = 4 };

/** Features [from, from + features) of a block: rows or columns of a weight. */
struct kt_amx_task {
    const struct kt_amx_block *block;
    int64_t from, features;
};

static inline int64_t kt_amx_tile_bytes(int64_t steps)
{
    return steps * 1024;
}

/** The slot of a row of a block. */
static inline int32_t kt_amx_slot(const struct kt_amx_call *c, const struct kt_amx_block *block,
                                  int64_t row)
{
    return c->routing->slots[block->first + row];
}

/** Sets the width of the next phase's tasks, at most `most`, and its ld. */
void kt_amx_choose_width(struct kt_amx_call *c, int64_t features, int64_t most);

/** Runs fn over the indices of the tasks that cut `features` of every block. */
void kt_amx_run_tasks(struct kt_amx_call *c, int64_t features, kt_range_fn fn);
struct kt_amx_task kt_amx_task_at(const struct kt_amx_call *c, int64_t i, int64_t features);

/** The weight `which` (KT_EXPERT_GATE ..) of a task's expert. */
const struct kt_weight *kt_amx_task_weight(const struct kt_amx_call *c, int which,
                                           const struct kt_amx_task *t);

/** Adds rows [from, from + count) of a weight. */
void kt_amx_add_rows(struct kt_amx_blocks *b, const struct kt_weight *w, int64_t from,
                     int64_t count);

/** Rows of gate, then of up, of at most KT_AMX_FEATURES / 2 features. */
struct kt_amx_blocks kt_amx_gate_up_rows(const struct kt_amx_call *c, const struct kt_amx_task *t);

/** Before and after a thread's products. */
void kt_amx_enter(const struct kt_amx_call *c);
void kt_amx_leave(const struct kt_amx_call *c);

/** Into the thread's products, W times the block's columns; `next` (or NULL) is read after it. */
void kt_amx_multiply(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                     const struct kt_amx_block *block, const struct kt_amx_columns *columns,
                     const struct kt_amx_blocks *w, const struct kt_amx_blocks *next);

/** Phases (kt_range_fn with the call): over blocks, their tokens into tiles; over tokens, the sums
 * of their rows of `out`. */
void kt_amx_gather(void *call, int64_t begin, int64_t end, int32_t thread);
void kt_amx_scatter(void *call, int64_t begin, int64_t end, int32_t thread);

/** Where the caller keeps the gate or up products of a row of a task. */
float *kt_amx_kept_row(const struct kt_amx_call *c, const struct kt_amx_task *t, int64_t row,
                       int which);

#endif
