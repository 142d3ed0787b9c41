/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/arena.h"

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

void *kt_arena_take(struct kt_arena *arena, int64_t rows, int64_t cols, int64_t element)
{
    uint64_t bytes, end, begin = arena->used;
    if (!kt_mul_u64((uint64_t)rows, (uint64_t)cols, &bytes) ||
        !kt_mul_u64(bytes, (uint64_t)element, &bytes) ||
        __builtin_add_overflow(bytes, begin + ALIGNMENT - 1, &end) || end > arena->size + ALIGNMENT)
        end = UINT64_MAX;
    arena->used = end / ALIGNMENT * ALIGNMENT;
    if (arena->used > arena->peak)
        arena->peak = arena->used;
    return (void *)(arena->base + begin);
}

bool kt_arena_overflowed(const struct kt_arena *arena)
{
    return arena->peak > arena->size;
}
