/* SPDX-License-Identifier: Apache-2.0 */
/** \file batch.h
 * The sequences of one optimizer step (batch size x gradient accumulation), packed without padding:
 * token ids one after another, and cu_seqlens with num_sequences + 1 offsets into them. A token
 * attends to its own sequence only; positions start at 0 in each.
 *
 * A batch belongs to a context, and serves any executor of it. See kt.h for NULL, threads and
 * lifetimes. */
#ifndef KT_BATCH_H
#define KT_BATCH_H

#include <kt/types.h>

KT_BEGIN_DECLS

/** An empty batch. Errors: OUT_OF_MEMORY. */
KT_API kt_status kt_batch_create(kt_context *ctx, kt_batch **out);
/** Lets go of a batch; an executor that is between forward and backward keeps what it needs. */
KT_API void kt_batch_free(kt_batch *batch);
/** Removes all sequences; memory is kept for reuse. */
KT_API kt_status kt_batch_clear(kt_batch *batch);
/** Appends a sequence of `length` >= 1 tokens. labels[i] is the token that position i should have
 * been, input_ids[i] as a rule, or KT_IGNORE_LABEL; not shifted, as in Hugging Face datasets; NULL
 * = every token is ignored. Both arrays are copied. Errors: INVALID_ARGUMENT (no token, another
 * negative label, more than INT32_MAX tokens in all), OUT_OF_MEMORY; the batch is unchanged then.
 */
KT_API kt_status kt_batch_add(kt_batch *batch, const int32_t *input_ids, const int32_t *labels,
                              size_t length);
/** Names `count` padding tokens `pad_id` that a padded batch would hold after the latest sequence.
 * They change no loss and no gradient's value. But a framework that pads runs them through the
 * routers, so that a routed expert which padding alone chose has a gradient of zeros instead of
 * none, and AdamW steps its LoRA matrices. With padding named, training does exactly that. It costs
 * their forward pass, and is ignored unless routed experts have LoRA. With dynamic rope_scaling it
 * also counts in the length of its sequence, as it does in a padded batch.
 * Errors: STATE without a sequence, INVALID_ARGUMENT (more than INT32_MAX tokens in all),
 * OUT_OF_MEMORY. */
KT_API kt_status kt_batch_add_padding(kt_batch *batch, int32_t pad_id, size_t count);
/** Sequences added since the latest kt_batch_clear. */
KT_API size_t kt_batch_num_sequences(const kt_batch *batch);
/** Their tokens, padding not among them. */
KT_API size_t kt_batch_num_tokens(const kt_batch *batch);
/** Labels that are not ignored, counted before the shift: the divisor of the loss, as
 * `num_items_in_batch` of transformers 4.57. */
KT_API size_t kt_batch_num_targets(const kt_batch *batch);
/** [num_tokens] ids, of all sequences one after another. Valid until the batch changes. */
KT_API const int32_t *kt_batch_input_ids(const kt_batch *batch);
/** [num_tokens] labels, as ids. */
KT_API const int32_t *kt_batch_labels(const kt_batch *batch);
/** [num_sequences + 1] where each sequence begins, and the number of tokens. As ids. */
KT_API const int32_t *kt_batch_cu_seqlens(const kt_batch *batch);

KT_END_DECLS
#endif
