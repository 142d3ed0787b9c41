/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/feed.h"

#include "executor/arena.h"

uint64_t kt_feed_place(const struct kt_feed_sizes *sizes, void *base, struct kt_feed *feed)
{
    struct kt_arena arena = kt_arena_over(base, UINT64_MAX / 4);
    *feed = (struct kt_feed){
        .cos = kt_arena_take(&arena, sizes->table_rows, sizes->table_cols, 4),
        .sin = kt_arena_take(&arena, sizes->table_rows, sizes->table_cols, 4),
        .rope_rows = kt_arena_take(&arena, sizes->tokens, 1, 4),
        .tokens = kt_arena_take(&arena, sizes->tokens, 1, 4),
        .queries = kt_arena_take(&arena, sizes->sequences + 1, 1, 4),
        .keys = kt_arena_take(&arena, sizes->sequences + 1, 1, 4),
        .padding = kt_arena_take(&arena, sizes->padding, 4, 4),
        .targets = kt_arena_take(&arena, sizes->targets, 1, 4),
        .dlogprobs = kt_arena_take(&arena, sizes->targets, 1, 4),
        .logprobs = kt_arena_take(&arena, sizes->targets, 1, 4),
    };
    return kt_arena_overflowed(&arena) ? UINT64_MAX : arena.used;
}
