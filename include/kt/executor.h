/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor.h
 * Runs a model, with an adapter or without, over packed batches, layer by layer: all sequences of a
 * step pass a layer before any passes the next, so that a weight is read once forward and once
 * backward. Forward keeps each layer's input; backward recomputes the layer from it.
 *
 * Gradients are exact: those of Hugging Face autograd to rounding, through the router weights too.
 * They are the same bits for any number of repetitions with the same number of threads.
 *
 * Several executors may share a model and an adapter. Freeing them in any order is fine: an
 * executor keeps its model, its adapter and the batch of its latest forward. See kt.h for NULL and
 * threads. */
#ifndef KT_EXECUTOR_H
#define KT_EXECUTOR_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_executor_options {
    size_t size;                 /**< sizeof(kt_executor_options), set by the init function */
    int32_t compute;             /**< a kt_compute: KT_COMPUTE_BF16 */
    const kt_rule *rule;         /**< NULL = everything on the CPU; borrowed during create only */
    const char *experts_backend; /**< overrides the rule: "amx", "cpu" ...: the host; "device":
                                      the device of the layer; "auto": the host's fastest, beside
                                      the device where that has memory of its own; NULL = the
                                      rule */
    int32_t logits_chunk;        /**< tokens whose logits exist at one time; 0 = chosen by size */
#ifdef KT_EXPERIMENTAL
    uint64_t device_memory; /**< bytes that each device with memory of its own may take; 0 = nine
                                 tenths of what is free. Weights that a step leaves room for stay
                                 there from one to the next, the others travel again. A step that
                                 does not fit at once is done in pieces, whose sums are in another
                                 order; one that fits in none is OUT_OF_MEMORY, with the smallest
                                 limit that would do */
    uint64_t reserved[7];
#else
    uint64_t reserved[8];
#endif
} kt_executor_options;

/** Fills `options` with the defaults above. */
KT_API void kt_executor_options_init(kt_executor_options *options, size_t size);

/** An executor of a model with an adapter; `lora` NULL = without one, and without backward.
 * Errors: MISMATCH (the adapter belongs to another model), INVALID_ARGUMENT (options), NOT_FOUND
 * (no experts backend of the name that the options give), OUT_OF_MEMORY. */
KT_API kt_status kt_executor_create(kt_model *model, kt_lora *lora,
                                    const kt_executor_options *options, kt_executor **out);
/** Lets go of an executor; its generators keep it. */
KT_API void kt_executor_free(kt_executor *executor);

/** What computes the routed experts of a layer: the backend of the host ("amx", "cpu" ...), with
 * "auto" replaced by what it chose; "device"; or "auto" where host and device share them. A
 * constant; NULL where the layer has no routed experts. */
KT_API const char *kt_executor_experts_backend(const kt_executor *executor, int32_t layer);

/** Bits from KT_FORWARD_FLAGS up are flags for what may come, beside one of these. There is none
 * yet, and one that the library does not know is INVALID_ARGUMENT. */
typedef enum kt_forward_mode {
    KT_FORWARD_EVAL = 0,   /**< loss and log-probabilities only; dropout off. Without dropout they
                                are the bits of the other modes, so that a loss that compares two
                                passes (DPO) begins where it should */
    KT_FORWARD_TRAIN = 1,  /**< keeps what backward needs; the loss is the token mean */
    KT_FORWARD_CUSTOM = 2, /**< keeps what backward needs for a loss of the host's own */
    KT_FORWARD_FLAGS = 1 << 8
} kt_forward_mode;

typedef struct kt_loss {
    size_t size;     /**< sizeof(kt_loss), set by the caller */
    double loss;     /**< sum of -log p(target) / kt_batch_num_targets: token mean of the batch */
    double loss_sum; /**< the sum itself */
    uint64_t num_targets; /**< kt_batch_num_targets */
    uint64_t reserved[4];
} kt_loss;

/** Forward over the whole batch; `mode` is a kt_forward_mode. `loss` may be NULL. The batch must
 * stay unchanged until kt_executor_backward returns; it may be freed. After a failure there is
 * nothing to go backward through. Errors: INVALID_ARGUMENT (an id outside the vocabulary, no token,
 * no target in TRAIN, a mode), MISMATCH (a batch of another context), OUT_OF_MEMORY (the sentence
 * has the bytes needed), NUMERIC (the loss is not finite), CANCELLED. */
KT_API kt_status kt_executor_forward(kt_executor *executor, const kt_batch *batch, int32_t mode,
                                     kt_loss *loss);

/** log p of each token's label under the model, [num_tokens] float32, in batch order: entry i is
 * for labels[i] predicted from the tokens before it; 0 where labels[i] is ignored or starts a
 * sequence. Valid after a forward, until the next call on the executor; NULL before. */
KT_API const float *kt_executor_logprobs(const kt_executor *executor);

/** Backward of the latest forward; adds to the adapter's gradients. `dlogprobs` NULL after
 * KT_FORWARD_TRAIN: the token mean. After KT_FORWARD_CUSTOM: d(loss)/d(logprobs[i]), [num_tokens].
 * Errors: STATE without a matching forward, after a change of the batch or without an adapter,
 * INVALID_ARGUMENT (no dlogprobs after CUSTOM), CANCELLED, OUT_OF_MEMORY. A backward that fails
 * after it has begun clears all gradients of the adapter, those of earlier calls too, so that none
 * is ever half added. */
KT_API kt_status kt_executor_backward(kt_executor *executor, const float *dlogprobs);

/** Logits of every token of the batch, [num_tokens, vocab_size] float32, into the caller's memory.
 * For tests and small batches: training never materialises them. A forward before it has no
 * backward any more. Errors: as kt_executor_forward in mode EVAL. */
KT_API kt_status kt_executor_logits(kt_executor *executor, const kt_batch *batch, float *logits);

/** Allocates what steps over up to `num_tokens` tokens (and padding that their batches name) keep
 * between them, so that no later step of that size or a smaller one allocates any of it or finds
 * too little memory. Pages that no step touches take no memory. Optional: a step allocates what it
 * lacks. A forward before it has no backward any more. Errors: INVALID_ARGUMENT (0 tokens or more
 * than INT32_MAX), OUT_OF_MEMORY. */
KT_API kt_status kt_executor_reserve(kt_executor *executor, size_t num_tokens);

/** Sets the number that keys dropout, so that a resumed run draws the same masks. */
KT_API kt_status kt_executor_set_step(kt_executor *executor, uint64_t step);

#ifdef KT_EXPERIMENTAL
/** Where device and host share a layer's experts ("auto"), the first backwards find out by trying
 * how fast both are beside each other, and whether sharing is faster than either alone; which of
 * the two computes an expert decides how sums round. A record of what is known, one line of text,
 * valid until the next call on the executor. The first that knows of something ends the search:
 * from there on the executor goes by it, so that a run that sets a record goes on with the bits of
 * the one that took it. Take it where the run can be gone on from, and not before some steps are
 * done. */
KT_API kt_status kt_executor_get_sharing(kt_executor *executor, const char **record);
/** What kt_executor_get_sharing gave, of an executor of the same model and with as much memory of
 * the device. Errors: INVALID_ARGUMENT (something else; nothing has changed). */
KT_API kt_status kt_executor_set_sharing(kt_executor *executor, const char *record);
#endif

KT_END_DECLS
#endif
