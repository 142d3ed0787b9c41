/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/decoder.h
 * The decoder of tokenizer.json: what the spelling of a token stands for. ByteLevel, or the steps
 * of SentencePiece's tokenizers: Replace, ByteFallback, Fuse and Strip in this order, each of which
 * may be missing, or Metaspace. */
#ifndef KT_TEXT_DECODER_H
#define KT_TEXT_DECODER_H

#include "text/normalizer.h"

struct kt_decoder {
    bool byte_level;    /**< a token whose letters are all of the byte-level alphabet is bytes */
    bool byte_fallback; /**< a token "<0x0A>" is a byte */
    struct kt_replacement *replacements;
    size_t num_replacements;
    bool drop_in_first; /**< the first token loses what the first replacement would replace */
    char strip[4];      /**< a character that the text loses at its beginning ... */
    uint8_t strip_length, strip_most; /**< ... up to strip_most times */
};

/** Errors: UNSUPPORTED, NOT_FOUND, FORMAT, OUT_OF_MEMORY; `path` is for them. */
kt_status kt_decoder_read(kt_context *ctx, const char *path, const json_t *json,
                          struct kt_decoder *out);
void kt_decoder_free(struct kt_decoder *decoder);

/** Puts what a token stands for in place of what `out` holds: text, or bytes that may be part of a
 * character; *bytes says which. `first` = no token was before it. */
kt_status kt_decoder_spell(struct kt_budget *budget, const struct kt_decoder *decoder,
                           const char *token, size_t length, bool first, struct kt_bytes *out,
                           bool *bytes);

#endif
