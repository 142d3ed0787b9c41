/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/batch.h
 * A packed batch from inside. */
#ifndef KT_EXECUTOR_BATCH_H
#define KT_EXECUTOR_BATCH_H

#include <kt/batch.h>

#include "core/handle.h"

struct kt_batch {
    KT_HANDLE;
    int32_t *input_ids, *labels;              /**< [num_tokens] */
    int32_t *cu_seqlens;                      /**< [num_sequences + 1] */
    int32_t *padding_ids, *padding_sequences; /**< [num_padding] */
    size_t num_tokens, num_sequences, num_targets, num_padding;
    size_t token_capacity, sequence_capacity, padding_capacity;
    uint64_t version; /**< of the content and of where it lies */
};

#endif
