/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/tokenizer.h
 * The tokenizer from inside. */
#ifndef KT_TEXT_TOKENIZER_H
#define KT_TEXT_TOKENIZER_H

#include <kt/tokenizer.h>

#include "core/handle.h"
#include "formats/json.h"
#include "text/added.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pretokenize.h"
#include "text/vocab.h"

struct kt_tokenizer {
    KT_HANDLE;
    char *path; /**< of tokenizer.json, or of a GGUF file */
    struct kt_vocab vocab;
    struct kt_bpe bpe;
    struct kt_added added;
    struct kt_normalizer normalizer;
    struct kt_pretokenizer pretokenizer;
    struct kt_decoder decoder;
    struct kt_ids prefix, suffix; /**< what the post-processor puts around a text */
    int32_t bos, eos, pad;
};

/** kt_tokenizer_encode without the post-processor, with another set of added tokens (the
 * tokenizer's, or a template's that extends it). Appends. */
kt_status kt_tokenizer_encode_with(const kt_tokenizer *tokenizer, const struct kt_added *added,
                                   const char *text, size_t length, struct kt_ids *ids);

/** Id of a token, an added one first; -1 when absent. */
int32_t kt_tokenizer_find(const kt_tokenizer *tokenizer, const struct kt_added *added,
                          const char *token, size_t length);

/** Fills a zeroed tokenizer that has ctx and path from tokenizer.json. */
kt_status kt_tokenizer_read(kt_tokenizer *tokenizer, const json_t *root);

/** The same from the metadata of the GGUF file that path names, and bos, eos and pad with it.
 * Errors: those of kt_gguf_open; UNSUPPORTED for kinds of tokenizers that only tokenizer.json
 * describes. */
kt_status kt_tokenizer_read_gguf(kt_tokenizer *tokenizer);

/** Adds a token described as in tokenizer.json's added_tokens; `special` where it does not say. */
kt_status kt_added_read(const struct kt_json *json, bool special, const struct kt_vocab *vocab,
                        struct kt_added *added);

/** Then reads tokenizer_config.json and special_tokens_map.json in `folder`, where they exist, as
 * transformers' AutoTokenizer does. */
kt_status kt_tokenizer_read_config(kt_tokenizer *tokenizer, const char *folder);

#endif
