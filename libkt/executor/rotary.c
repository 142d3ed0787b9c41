/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary tables. Frequencies that do not depend on the length of a sequence have a row for each
 * position, kept over all steps. With dynamic scaling each token of a pass has a row of its own. */
#include "core/context.h"
#include "core/memory.h"
#include "executor/batch.h"
#include "executor/executor.h"

int kt_executor_rope_by_length(const struct kt_executor *ex)
{
    return ex->model->config.rope.kind == KT_ROPE_DYNAMIC;
}

static kt_status reserve_rows(struct kt_executor *ex, int64_t rows)
{
    const struct kt_device_ops *ops = ex->device->ops;
    uint64_t bytes = (uint64_t)rows * (uint64_t)(ex->model->config.rope.dim / 2) * sizeof(float);
    ops->free(ex->device, ex->cos);
    ops->free(ex->device, ex->sin);
    ex->cos = ex->sin = NULL;
    ex->rope_capacity = 0;
    KT_TRY(ops->alloc(ex->device, bytes, "rotary tables", (void **)&ex->cos));
    KT_TRY(ops->alloc(ex->device, bytes, "rotary tables", (void **)&ex->sin));
    ex->rope_capacity = rows;
    return KT_OK;
}

/** Rows [row, row + count) are for the positions from `first` on in a sequence of `length`. */
static void fill_rows(struct kt_executor *ex, int64_t row, int64_t length, int64_t first,
                      int64_t count)
{
    const struct kt_rope_config *rope = &ex->model->config.rope;
    int64_t at = row * (rope->dim / 2);
    kt_rope_tables(rope, length, (int32_t)first, (int32_t)count, ex->cos + at, ex->sin + at);
}

kt_status kt_executor_reserve_rope(struct kt_executor *ex, int64_t positions)
{
    if (positions <= ex->rope_capacity)
        return KT_OK;
    KT_TRY(reserve_rows(ex, positions + positions / 2));
    if (!kt_executor_rope_by_length(ex))
        fill_rows(ex, 0, 0, 0, kt_min_i64(ex->rope_capacity, INT32_MAX));
    return KT_OK;
}

kt_status kt_executor_rope_of_tokens(struct kt_executor *ex, int64_t length, int64_t first,
                                     int64_t count)
{
    KT_TRY(kt_executor_reserve_rope(ex, count));
    fill_rows(ex, 0, length, first, count);
    return KT_OK;
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

kt_status kt_executor_rope_of_batch(struct kt_executor *ex, const kt_batch *batch, int64_t padding)
{
    size_t walked = 0;
    KT_TRY(kt_executor_reserve_rope(ex, (int64_t)batch->num_tokens + padding));
    for (size_t s = 0; s < batch->num_sequences; s++) {
        int64_t begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1];
        int64_t first = (int64_t)walked, length = padded_length(batch, s, &walked);
        fill_rows(ex, begin, length, 0, end - begin);
        if (padding)
            fill_rows(ex, (int64_t)batch->num_tokens + first, length, end - begin,
                      length - (end - begin));
    }
    return KT_OK;
}
