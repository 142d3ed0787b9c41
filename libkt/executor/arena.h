/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/arena.h
 * A stack of activations inside one block. The same code runs twice: first over a measuring arena
 * (no memory behind it) to learn the peak, then over a block of exactly that size, so that a plan
 * cannot differ from what a step takes. Release by setting `used` back to an earlier value. */
#ifndef KT_EXECUTOR_ARENA_H
#define KT_EXECUTOR_ARENA_H

#include <kt/types.h>

struct kt_arena {
    uintptr_t base;
    uint64_t size, used, peak;
};

/** An arena without memory: pointers from it are distinct and must not be dereferenced. */
struct kt_arena kt_arena_measuring(void);
struct kt_arena kt_arena_over(void *block, uint64_t size);

/** rows x cols elements of 4 bytes, aligned to 64. A request beyond the block saturates `used` and
 * is reported by kt_arena_check, which a function calls once after its requests. */
float *kt_arena_floats(struct kt_arena *arena, int64_t rows, int64_t cols);
int32_t *kt_arena_ints(struct kt_arena *arena, int64_t rows, int64_t cols);

/** Errors: INTERNAL when a request went beyond the block, OUT_OF_MEMORY when sizes overflow. */
kt_status kt_arena_check(kt_context *ctx, const struct kt_arena *arena);

#endif
