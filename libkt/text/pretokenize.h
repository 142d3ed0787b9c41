/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/pretokenize.h
 * The pre_tokenizer of tokenizer.json: splits text into the words that BPE works within. Split,
 * Digits, Metaspace and ByteLevel, alone or in a Sequence; ByteLevel comes last. */
#ifndef KT_TEXT_PRETOKENIZE_H
#define KT_TEXT_PRETOKENIZE_H

#include <jansson.h>
#include <kt/types.h>

#include "text/array.h"
#include "text/normalizer.h"
#include "text/regex.h"

/** What becomes of a match of the regular expression. */
enum kt_split_behavior {
    KT_SPLIT_REMOVED,
    KT_SPLIT_ISOLATED,
    KT_SPLIT_MERGED_WITH_PREVIOUS,
    KT_SPLIT_MERGED_WITH_NEXT,
    KT_SPLIT_CONTIGUOUS
};

struct kt_split_step {
    struct kt_regex *regex; /**< NULL = Metaspace rewrites the pieces here */
    enum kt_split_behavior behavior;
    bool invert; /**< what lies between the matches is the match */
};

/** Metaspace: spaces become a character, which is put before pieces that do not begin with it. */
struct kt_metaspace {
    struct kt_replacement space; /**< `from` NULL = not used */
    enum { KT_PREPEND_FIRST, KT_PREPEND_NEVER, KT_PREPEND_ALWAYS } prepend;
};

struct kt_pretokenizer {
    struct kt_split_step *steps;
    size_t num_steps;
    struct kt_metaspace metaspace;
    bool bytes; /**< ByteLevel comes last: words are bytes, not characters */
    /** A space before every piece that does not begin with one, then GPT-2's regular expression,
     * isolated. */
    bool add_space;
    struct kt_regex *byte_level; /**< NULL = not used */
    bool lone_byte_level;        /**< tokenizer.json has ByteLevel alone, not in a Sequence */
};

/** A word: bytes in the text given to kt_pretokenize, or in one of its rewritten copies. */
struct kt_piece {
    const char *data;
    size_t length;
};

struct kt_pieces {
    struct kt_piece *data;
    size_t count, capacity;
};

/** Memory that calls share; zero it first. `words` is the result. */
struct kt_pretokenize_scratch {
    struct kt_pieces words, other;
    struct kt_bytes spaced, replaced;
    struct kt_split_span {
        size_t begin, end;
        bool match;
    } * spans;
    size_t num_spans, spans_capacity;
};

/** `json` is the pre_tokenizer's object, or NULL or null for none: then a text is one word. Errors:
 * UNSUPPORTED, NOT_FOUND, FORMAT, OUT_OF_MEMORY; `path` is for them. */
kt_status kt_pretokenizer_read(kt_context *ctx, const char *path, const json_t *json,
                               struct kt_pretokenizer *out);
void kt_pretokenizer_free(struct kt_pretokenizer *pretokenizer);

/** Splits valid UTF-8 into scratch->words, none of them empty. `begins` = nothing comes before the
 * text. */
kt_status kt_pretokenize(struct kt_budget *budget, const struct kt_pretokenizer *pretokenizer,
                         struct kt_pretokenize_scratch *scratch, const char *text, size_t length,
                         bool begins);
void kt_pretokenize_scratch_free(struct kt_pretokenize_scratch *scratch);

#endif
