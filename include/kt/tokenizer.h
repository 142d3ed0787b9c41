/* SPDX-License-Identifier: Apache-2.0 */
/** \file tokenizer.h
 * A BPE tokenizer read from tokenizer.json (Hugging Face tokenizers), byte-level or
 * SentencePiece's, with the same ids, and chat templates that turn messages into ids as
 * LLaMA-Factory 0.9.4 does.
 *
 * Text is UTF-8 with explicit lengths; malformed bytes are treated as U+FFFD as Python's
 * `errors="replace"` does. Immutable after loading. See kt.h for NULL, threads and lifetimes. */
#ifndef KT_TOKENIZER_H
#define KT_TOKENIZER_H

#include <kt/types.h>

KT_BEGIN_DECLS

/** `path` is a model folder, a tokenizer.json or a GGUF file. tokenizer_config.json beside
 * tokenizer.json gives bos, eos, pad and add_bos_token. Where there is no tokenizer.json beside a
 * GGUF file, the tokenizer is made from its metadata (byte-level BPE of DeepSeek and Qwen2).
 * Errors: NOT_FOUND, IO, FORMAT, UNSUPPORTED (a tokenizer kind or regex we lack). */
KT_API kt_status kt_tokenizer_load(kt_context *ctx, const char *path, kt_tokenizer **out);
/** Frees a tokenizer; datasets made with it do not need it. */
KT_API void kt_tokenizer_free(kt_tokenizer *tokenizer);

KT_API int32_t kt_tokenizer_vocab_size(const kt_tokenizer *tokenizer); /**< largest id + 1 */
KT_API int32_t kt_tokenizer_bos_id(const kt_tokenizer *tokenizer);     /**< -1 = none */
KT_API int32_t kt_tokenizer_eos_id(const kt_tokenizer *tokenizer);     /**< -1 = none */
KT_API int32_t kt_tokenizer_pad_id(const kt_tokenizer *tokenizer);     /**< -1 = none */
/** -1 when the token does not exist. `token` is spelled as in the vocabulary. */
KT_API int32_t kt_tokenizer_token_id(const kt_tokenizer *tokenizer, const char *token);

/** Ids of `text`. add_special = 1 runs the post-processor (a bos token, for DeepSeek). The array is
 * the caller's: free with kt_free. An empty text gives 0 ids and *ids NULL or an empty array;
 * `text` may be NULL then. Errors: INVALID_ARGUMENT (a text too long for one piece), OUT_OF_MEMORY.
 */
KT_API kt_status kt_tokenizer_encode(const kt_tokenizer *tokenizer, const char *text, size_t length,
                                     int32_t add_special, int32_t **ids, size_t *num_ids);

/** Text of ids, zero-terminated beyond *length; free with kt_free. skip_special = 1 leaves special
 * tokens out. Bytes that make no character are U+FFFD, as the tokenizers package has it: one for
 * each malformed part with ByteLevel; with ByteFallback one for each byte of the whole run of byte
 * tokens. Unknown ids give nothing. `ids` may be NULL for none. Errors: OUT_OF_MEMORY. */
KT_API kt_status kt_tokenizer_decode(const kt_tokenizer *tokenizer, const int32_t *ids,
                                     size_t num_ids, int32_t skip_special, char **text,
                                     size_t *length);

/** What kt_tokenizer_decode_next keeps between calls: begin with
 * `kt_decode_state state = {.size = sizeof state}`. */
typedef struct kt_decode_state {
    size_t size;              /**< sizeof(kt_decode_state), set by the caller */
    unsigned char pending[4]; /**< bytes of a character; the last one says how far the text is */
    int32_t num_pending;
    uint64_t reserved[2];
} kt_decode_state;

/** Streaming: bytes of one more token that are safe to print, that is without a UTF-8 sequence cut
 * in two; the rest stays in `state` for the next call. id -1 ends the text: it gives the rest as
 * U+FFFD and makes the state new. The parts make up what kt_tokenizer_decode gives
 * with skip_special, but characters of a run of ByteFallback that a later malformed byte would
 * spoil have been given by then. `out` holds `capacity` bytes; *length gets those written, at most
 * 3 x (the token's bytes + 3) unless the decoder's Replace makes tokens longer. Special tokens and
 * unknown ids give 0 bytes. `out` may be NULL with a capacity of 0. Errors: INVALID_ARGUMENT when
 * they do not fit (nothing is taken, call again with more room), or when the state was not made
 * new. */
KT_API kt_status kt_tokenizer_decode_next(const kt_tokenizer *tokenizer, kt_decode_state *state,
                                          int32_t id, char *out, size_t capacity, size_t *length);

/** One message of a conversation. `role`: "system" (first only), "user", "assistant"; also the
 * sharegpt pair "observation" / "function" where the template has them. All messages of an array
 * have the same size. */
typedef struct kt_message {
    size_t size;      /**< sizeof(kt_message), set by the caller */
    const char *role; /**< neither of them NULL */
    const char *content;
    uint64_t reserved[4];
} kt_message;

/** Names of the known templates, separated by ", ". A constant; thread-safe. */
KT_API const char *kt_template_names(void);

/** LLaMA-Factory's enable_thinking, for templates of models that write a thought between <think>
 * and </think> before a reply (qwen3); other templates do not look at it. In a conversation,
 * thoughts of earlier replies are left out, and the prompt ends with an empty thought unless it is
 * ON. In a dataset, a reply without a thought gets an empty one: learned when it is ON, else as
 * part of the prompt. */
typedef enum kt_thinking {
    KT_THINKING_ON = 0,    /**< true, the default */
    KT_THINKING_OFF = 1,   /**< false: thoughts in a dataset are left out, too */
    KT_THINKING_EITHER = 2 /**< null: data with thoughts and without */
} kt_thinking;

/** Ids of the conversation with the template, ending where the assistant is to speak (the last
 * message is the user's), with KT_THINKING_ON. Free with kt_free. Errors: NOT_FOUND (no such
 * template; the sentence lists them), INVALID_ARGUMENT (roles that do not take turns, the last not
 * the user's, a message without role or content), UNSUPPORTED ("function"), OUT_OF_MEMORY. */
KT_API kt_status kt_tokenizer_apply_template(const kt_tokenizer *tokenizer,
                                             const char *template_name, const kt_message *messages,
                                             size_t num_messages, int32_t **ids, size_t *num_ids);
/** The same with a choice of `thinking`, a kt_thinking. */
KT_API kt_status kt_tokenizer_apply_template_thinking(const kt_tokenizer *tokenizer,
                                                      const char *template_name, int32_t thinking,
                                                      const kt_message *messages,
                                                      size_t num_messages, int32_t **ids,
                                                      size_t *num_ids);
/** Ids that end the assistant's turn with this template (eos and stop words), *num <= capacity.
 * Errors: NOT_FOUND (no such template), INVALID_ARGUMENT (more ids than there is room for). */
KT_API kt_status kt_tokenizer_stop_ids(const kt_tokenizer *tokenizer, const char *template_name,
                                       int32_t *ids, size_t capacity, size_t *num);

KT_END_DECLS
#endif
