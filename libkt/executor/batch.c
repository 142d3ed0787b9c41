/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/batch.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"

static void destroy(void *handle)
{
    kt_batch *batch = handle;
    free(batch->input_ids);
    free(batch->labels);
    free(batch->cu_seqlens);
    free(batch->padding_ids);
    free(batch->padding_sequences);
}

kt_status kt_batch_create(kt_context *ctx, kt_batch **out)
{
    kt_batch *batch;
    KT_ENTER_CONTEXT_OUT(ctx, out);
    KT_TRY(kt_handle_new(ctx, sizeof *batch, destroy, "a batch", (void **)&batch));
    if (!(batch->cu_seqlens = calloc(2, sizeof *batch->cu_seqlens))) {
        kt_batch_free(batch);
        return kt_fail_memory(ctx, sizeof *batch, "a batch");
    }
    batch->sequence_capacity = 1;
    *out = batch;
    return KT_OK;
}

void kt_batch_free(kt_batch *batch)
{
    kt_handle_free(batch);
}

kt_status kt_batch_clear(kt_batch *batch)
{
    KT_ENTER(batch, "batch");
    batch->num_tokens = batch->num_sequences = batch->num_targets = batch->num_padding = 0;
    batch->version++;
    return KT_OK;
}

static kt_status grow(kt_batch *batch, int32_t **array, size_t count)
{
    int32_t *bigger = realloc(*array, count * sizeof **array);
    if (!bigger)
        return kt_fail_memory(batch->ctx, count * sizeof **array, "the tokens of a batch");
    *array = bigger;
    return KT_OK;
}

static kt_status reserve(kt_batch *batch, size_t tokens)
{
    if (tokens > batch->token_capacity) {
        size_t capacity = tokens + tokens / 2;
        KT_TRY(grow(batch, &batch->input_ids, capacity));
        KT_TRY(grow(batch, &batch->labels, capacity));
        batch->token_capacity = capacity;
    }
    if (batch->num_sequences == batch->sequence_capacity) {
        size_t capacity = batch->sequence_capacity * 2;
        KT_TRY(grow(batch, &batch->cu_seqlens, capacity + 1));
        batch->sequence_capacity = capacity;
    }
    return KT_OK;
}

kt_status kt_batch_add(kt_batch *batch, const int32_t *input_ids, const int32_t *labels,
                       size_t length)
{
    KT_ENTER(batch, "batch");
    size_t begin = batch->num_tokens, targets = 0;
    KT_TRY(kt_check_given(batch->ctx, input_ids, "input_ids"));
    if (length == 0)
        return kt_fail(batch->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a sequence without tokens cannot be added to a batch");
    if (length > (size_t)INT32_MAX - begin)
        return kt_fail(batch->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a batch holds at most %d tokens; run fewer sequences in one step",
                       INT32_MAX);
    for (size_t i = 0; labels && i < length; i++) {
        if (labels[i] < 0 && labels[i] != KT_IGNORE_LABEL)
            return kt_fail(batch->ctx, KT_ERROR_INVALID_ARGUMENT,
                           "label %d of token %zu is neither a token id nor %d (ignore)", labels[i],
                           i, KT_IGNORE_LABEL);
        targets += labels[i] != KT_IGNORE_LABEL;
    }
    batch->version++;
    KT_TRY(reserve(batch, begin + length));
    memcpy(batch->input_ids + begin, input_ids, length * sizeof *input_ids);
    for (size_t i = 0; i < length; i++)
        batch->labels[begin + i] = labels ? labels[i] : KT_IGNORE_LABEL;
    batch->num_tokens += length;
    batch->num_targets += targets;
    batch->cu_seqlens[++batch->num_sequences] = (int32_t)batch->num_tokens;
    return KT_OK;
}

kt_status kt_batch_add_padding(kt_batch *batch, int32_t pad_id, size_t count)
{
    KT_ENTER(batch, "batch");
    size_t total = batch->num_padding + count;
    if (batch->num_sequences == 0)
        return kt_fail(batch->ctx, KT_ERROR_STATE, "padding belongs to a sequence; add one first");
    if (count > (size_t)INT32_MAX - batch->num_tokens - batch->num_padding)
        return kt_fail(batch->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a batch holds at most %d tokens, padding included", INT32_MAX);
    batch->version++;
    if (total > batch->padding_capacity) {
        KT_TRY(grow(batch, &batch->padding_ids, total + total / 2));
        KT_TRY(grow(batch, &batch->padding_sequences, total + total / 2));
        batch->padding_capacity = total + total / 2;
    }
    for (; batch->num_padding < total; batch->num_padding++) {
        batch->padding_ids[batch->num_padding] = pad_id;
        batch->padding_sequences[batch->num_padding] = (int32_t)batch->num_sequences - 1;
    }
    return KT_OK;
}

size_t kt_batch_num_sequences(const kt_batch *batch)
{
    return batch ? batch->num_sequences : 0;
}

size_t kt_batch_num_tokens(const kt_batch *batch)
{
    return batch ? batch->num_tokens : 0;
}

size_t kt_batch_num_targets(const kt_batch *batch)
{
    return batch ? batch->num_targets : 0;
}

const int32_t *kt_batch_input_ids(const kt_batch *batch)
{
    return batch ? batch->input_ids : NULL;
}

const int32_t *kt_batch_labels(const kt_batch *batch)
{
    return batch ? batch->labels : NULL;
}

const int32_t *kt_batch_cu_seqlens(const kt_batch *batch)
{
    return batch ? batch->cu_seqlens : NULL;
}
