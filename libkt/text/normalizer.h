/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/normalizer.h
 * The normalizer of tokenizer.json: NFC, Prepend and Replace, alone or in a Sequence. */
#ifndef KT_TEXT_NORMALIZER_H
#define KT_TEXT_NORMALIZER_H

#include "core/budget.h"
#include "formats/json.h"
#include "text/array.h"

/** Every `from` in a text becomes `to`. */
struct kt_replacement {
    char *from, *to;
    size_t from_length, to_length;
};

/** Reads "pattern" (a plain String) and "content". Errors: UNSUPPORTED (a Regex), NOT_FOUND,
 * FORMAT, OUT_OF_MEMORY. */
kt_status kt_replacement_read(const struct kt_json *json, struct kt_replacement *out);
void kt_replacement_free(struct kt_replacement *replacement);

/** Appends the text with every match replaced; `what` is for the error when the budget ends. */
kt_status kt_replace(struct kt_budget *budget, const char *what,
                     const struct kt_replacement *replacement, const char *text, size_t length,
                     struct kt_bytes *out);

struct kt_normalizer {
    struct kt_normalizer_step {
        enum { KT_NORMALIZE_NFC, KT_NORMALIZE_PREPEND, KT_NORMALIZE_REPLACE } kind;
        struct kt_replacement replacement; /**< of PREPEND `to` alone */
    } * steps;
    size_t count;
};

/** `json` is the normalizer's object, or NULL or null for none. Errors: UNSUPPORTED, NOT_FOUND,
 * FORMAT, OUT_OF_MEMORY; `path` is for them. */
kt_status kt_normalizer_read(kt_context *ctx, const char *path, const json_t *json,
                             struct kt_normalizer *out);
void kt_normalizer_free(struct kt_normalizer *normalizer);

/** Puts valid UTF-8, normalized, in place of what `out` holds. */
kt_status kt_normalizer_apply(struct kt_budget *budget, const struct kt_normalizer *normalizer,
                              const char *text, size_t length, struct kt_bytes *out);

#endif
