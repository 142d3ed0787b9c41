/* SPDX-License-Identifier: Apache-2.0 */
/** \file generator.h
 * Generation token by token with a KV cache. For multi-head latent attention the cache holds the
 * compressed latent and the shared rotary key (arXiv 2405.04434, section 2.1).
 *
 * A generator keeps its executor, and with it model and adapter: they may be freed in any order. An
 * executor may have several, and may train between their calls. See kt.h for NULL and threads. */
#ifndef KT_GENERATOR_H
#define KT_GENERATOR_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_generator_options {
    size_t size;              /**< sizeof(kt_generator_options), set by the init function */
    float temperature;        /**< 0.95; 0 = greedy */
    float top_p;              /**< 0.7; 1 = off */
    int32_t top_k;            /**< 50; 0 = off */
    float repetition_penalty; /**< 1 = off */
    uint64_t seed;            /**< 42 */
    int32_t max_length; /**< tokens the cache may hold; 0 = kt_model_info.max_position_embeddings.
                           The cache grows as needed */
    int32_t prefill_chunk; /**< most prompt tokens in one pass; 0 = 2048 */
    uint64_t reserved[8];
} kt_generator_options;

/** Fills `options` with the defaults above. */
KT_API void kt_generator_options_init(kt_generator_options *options, size_t size);

/** A generator with an empty context. Errors: INVALID_ARGUMENT (an option out of range),
 * OUT_OF_MEMORY. */
KT_API kt_status kt_generator_create(kt_executor *executor, const kt_generator_options *options,
                                     kt_generator **out);
/** Frees a generator and its cache. */
KT_API void kt_generator_free(kt_generator *generator);

/** Forgets the context and what the cache holds; memory is kept. Random numbers go on.
 * Errors: INVALID_ARGUMENT (NULL), STATE. */
KT_API kt_status kt_generator_reset(kt_generator *generator);

/** Makes the context exactly `input_ids[0..length)`: what the cache already holds of that prefix is
 * kept, the rest is recomputed. So a chat passes its whole history each turn. Nothing is kept of a
 * prefix that other values of the adapter made, whoever changed them.
 * Errors: INVALID_ARGUMENT (no token, more than max_length, an id outside the vocabulary),
 * OUT_OF_MEMORY, CANCELLED. After the last two, ask again: what was computed is kept. */
KT_API kt_status kt_generator_prompt(kt_generator *generator, const int32_t *input_ids,
                                     size_t length);

/** Samples the next token and appends it to the context (it is run through the model by the next
 * call). Errors: STATE before a prompt and after a change of the adapter (kt_optimizer_step,
 * kt_lora_touch), INVALID_ARGUMENT when max_length is reached, NUMERIC
 * (logits that are not finite), OUT_OF_MEMORY, CANCELLED; no token is appended then. */
KT_API kt_status kt_generator_next(kt_generator *generator, int32_t *token);

/** Logits of the latest position, [vocab_size], before sampling filters; valid until the next call
 * on the generator, NULL before a prompt. */
KT_API const float *kt_generator_logits(const kt_generator *generator);

/** Tokens in the context. */
KT_API size_t kt_generator_length(const kt_generator *generator);

KT_END_DECLS
#endif
