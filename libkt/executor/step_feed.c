/* SPDX-License-Identifier: Apache-2.0 */
/* What a step over a batch reads beside weights and activations. */
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "executor/batch.h"
#include "executor/executor.h"

/** Positions of a sequence go on counting through its padding. */
static int32_t place_padding(struct kt_executor *ex, const kt_batch *batch, int64_t i)
{
    int32_t sequence = batch->padding_sequences[i],
            *position = &ex->positions[batch->num_tokens + (size_t)i];
    *position = i && batch->padding_sequences[i - 1] == sequence
                    ? position[-1] + 1
                    : batch->cu_seqlens[sequence + 1] - batch->cu_seqlens[sequence];
    return *position;
}

/** Fills ex->positions; the number of different ones. */
static int64_t place_tokens(struct kt_executor *ex, const kt_batch *batch, int64_t padding)
{
    int64_t longest = 0;
    for (size_t s = 0; s < batch->num_sequences; s++) {
        int32_t begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1];
        for (int32_t t = begin; t < end; t++)
            ex->positions[t] = t - begin;
        longest = kt_max_i64(longest, end - begin);
    }
    for (int64_t i = 0; i < padding; i++)
        longest = kt_max_i64(longest, place_padding(ex, batch, i) + 1);
    return longest;
}

/** Tokens of a sequence with its padding. `padding` walks through the batch's. */
static int64_t padded_length(const kt_batch *batch, size_t sequence, size_t *padding)
{
    int64_t length = batch->cu_seqlens[sequence + 1] - batch->cu_seqlens[sequence];
    for (; *padding < batch->num_padding && batch->padding_sequences[*padding] == (int32_t)sequence;
         ++*padding)
        length++;
    return length;
}

static kt_status rows_of(struct kt_executor *ex, const struct kt_feed *feed, int64_t row,
                         int64_t length, int64_t first, int64_t count)
{
    int64_t at = row * (ex->model->config.rope.dim / 2);
    return kt_rotary_rows(&ex->rotary, ex->model, length, first, count, feed->cos + at,
                          feed->sin + at);
}

/** A row of the rotary tables for each token, by the length of its sequence; the padding of a
 * sequence counts for its length in any case. */
static kt_status rows_by_length(struct kt_executor *ex, const struct kt_feed *feed,
                                const kt_batch *batch, int64_t padding)
{
    size_t walked = 0;
    for (size_t s = 0; s < batch->num_sequences; s++) {
        int64_t begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1];
        int64_t first = (int64_t)walked, length = padded_length(batch, s, &walked);
        KT_TRY(rows_of(ex, feed, begin, length, 0, end - begin));
        if (padding)
            KT_TRY(rows_of(ex, feed, (int64_t)batch->num_tokens + first, length, end - begin,
                           length - (end - begin)));
    }
    for (int64_t t = 0; t < (int64_t)batch->num_tokens + padding; t++)
        feed->rope_rows[t] = (int32_t)t;
    return KT_OK;
}

static void fill(const struct kt_executor *ex, const struct kt_step *step,
                 const struct kt_feed *feed, const kt_batch *batch, int64_t padding)
{
    size_t tokens = batch->num_tokens + (size_t)padding, sequences = batch->num_sequences + 1;
    memcpy(feed->rope_rows, ex->positions, tokens * sizeof *feed->rope_rows);
    for (size_t t = 0; t < tokens; t++)
        feed->tokens[t] = (int32_t)t;
    memcpy(feed->queries, batch->cu_seqlens, sequences * sizeof *feed->queries);
    memcpy(feed->keys, batch->cu_seqlens, sequences * sizeof *feed->keys);
    for (int64_t i = 0; i < padding; i++) {
        int32_t s = batch->padding_sequences[i];
        int32_t offsets[4] = {0, 1, 0, batch->cu_seqlens[s + 1] - batch->cu_seqlens[s]};
        memcpy(feed->padding + 4 * i, offsets, sizeof offsets);
    }
    if (step->targets.num_rows)
        memcpy(feed->targets, step->targets.ids,
               (size_t)step->targets.num_rows * sizeof *feed->targets);
    for (int64_t i = 0; i < step->targets.num_rows; i++)
        feed->dlogprobs[i] = step->num_targets ? -1.0f / (float)step->num_targets : 0;
}

struct kt_feed_sizes kt_step_feed_sizes(const struct kt_executor *ex, int64_t tokens,
                                        int64_t longest, int64_t sequences, int64_t targets,
                                        int64_t padding)
{
    return (struct kt_feed_sizes){.tokens = tokens,
                                  .sequences = sequences,
                                  .table_rows = kt_rotary_by_length(ex->model) ? tokens : longest,
                                  .table_cols = ex->model->config.rope.dim / 2,
                                  .targets = targets,
                                  .padding = padding};
}

kt_status kt_step_feed(struct kt_executor *ex, struct kt_step *step, const kt_batch *batch,
                       int64_t padding)
{
    struct kt_pass *pass = &step->pass;
    int64_t longest = place_tokens(ex, batch, padding);
    struct kt_feed_sizes sizes =
        kt_step_feed_sizes(ex, (int64_t)batch->num_tokens + padding, longest,
                           (int64_t)batch->num_sequences, step->targets.num_rows, padding);
    KT_TRY(kt_workspace_feed(&ex->workspace, ex, &sizes));
    step->feed_bytes = ex->workspace.host_feed.size;
    const struct kt_feed *feed = &ex->workspace.feed;
    fill(ex, step, feed, batch, padding);
    pass->num_sequences = (int32_t)batch->num_sequences;
    pass->cu_seqlens = feed->queries;
    pass->cu_keys = feed->keys;
    pass->padding_offsets = feed->padding;
    pass->padding_sequences = batch->padding_sequences;
    pass->positions = ex->positions;
    return kt_rotary_by_length(ex->model) ? rows_by_length(ex, feed, batch, padding)
                                          : rows_of(ex, feed, 0, 0, 0, longest);
}
