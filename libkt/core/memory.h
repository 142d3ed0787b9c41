/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/memory.h
 * Counted, 64-byte aligned host memory for tensors, and overflow-checked sizes. Small structures use
 * plain malloc / calloc. */
#ifndef KT_CORE_MEMORY_H
#define KT_CORE_MEMORY_H

#include <kt/types.h>

/** count x size bytes, aligned to 64, not zeroed (pages are untouched until written); counted against
 * the context's limit. `what` names it in the error. count or size 0 gives a valid pointer.
 * Errors: OUT_OF_MEMORY (also on overflow), recorded. */
kt_status kt_buffer_alloc(kt_context *ctx, uint64_t count, size_t size, const char *what,
                          void **out);
void kt_buffer_free(kt_context *ctx, void *buffer);

/** a x b into *out; false on overflow. */
static inline bool kt_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline int64_t kt_min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t kt_max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
