/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/arena.h
 * A stack of activations inside one block. The same code runs twice: first over a measuring arena
 * (no memory behind it) to learn the peak, then over a block of at least that size, so that a plan
 * cannot differ from what a step takes. Release by setting `used` back to an earlier value. */
#ifndef KT_EXECUTOR_ARENA_H
#define KT_EXECUTOR_ARENA_H

#include <kt/types.h>

struct kt_arena {
    uintptr_t base;
    uint64_t size, used, peak; /**< a request beyond the block saturates used and peak */
};

/** An arena without memory: pointers from it are distinct and must not be dereferenced. */
struct kt_arena kt_arena_measuring(void);
struct kt_arena kt_arena_over(void *block, uint64_t size);

/** rows x cols elements of `element` bytes, aligned to 64. */
void *kt_arena_take(struct kt_arena *arena, int64_t rows, int64_t cols, int64_t element);

/** Whether a request went beyond the block: what was taken since must not be used. */
bool kt_arena_overflowed(const struct kt_arena *arena);

#endif
