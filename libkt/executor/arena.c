/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/arena.h"

#include "core/context.h"
#include "core/memory.h"

enum { ALIGNMENT = 64 };

struct kt_arena kt_arena_measuring(void)
{
    return (struct kt_arena){.base = ALIGNMENT, .size = UINT64_MAX / 4};
}

struct kt_arena kt_arena_over(void *block, uint64_t size)
{
    return (struct kt_arena){.base = (uintptr_t)block, .size = size};
}

static void *take(struct kt_arena *arena, int64_t rows, int64_t cols)
{
    uint64_t bytes, end, begin = arena->used;
    if (!kt_mul_u64((uint64_t)rows, (uint64_t)cols, &bytes) || !kt_mul_u64(bytes, 4, &bytes) ||
        __builtin_add_overflow(bytes, begin + ALIGNMENT - 1, &end) || end > arena->size + ALIGNMENT)
        end = UINT64_MAX;
    arena->used = end / ALIGNMENT * ALIGNMENT;
    if (arena->used > arena->peak)
        arena->peak = arena->used;
    return (void *)(arena->base + begin);
}

float *kt_arena_floats(struct kt_arena *arena, int64_t rows, int64_t cols)
{
    return take(arena, rows, cols);
}

int32_t *kt_arena_ints(struct kt_arena *arena, int64_t rows, int64_t cols)
{
    return take(arena, rows, cols);
}

kt_status kt_arena_check(kt_context *ctx, const struct kt_arena *arena)
{
    if (arena->peak <= arena->size)
        return KT_OK;
    if (arena->base == ALIGNMENT)
        return kt_fail_memory(ctx, arena->peak, "the activations of a step");
    return kt_fail(ctx, KT_ERROR_INTERNAL,
                   "a step needs more memory than was measured for it; please report this");
}
