/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/added.h
 * Added tokens: strings that are found in the text before it is split into words. */
#ifndef KT_TEXT_ADDED_H
#define KT_TEXT_ADDED_H

#include "text/normalizer.h"
#include "text/vocab.h"

struct kt_added_token {
    char *content;
    size_t length;
    int32_t id;
    bool special;        /**< left out by decode with skip_special */
    bool single_word;    /**< matches only where no letter touches it */
    bool lstrip, rstrip; /**< takes the white space before / after it along */
    bool normalized;     /**< looked for in the normalized text, otherwise in the raw text */
};

struct kt_added {
    struct kt_added_token *tokens;
    size_t count, capacity;
    struct kt_vocab places; /**< of contents in `tokens` */
    int32_t next_id;        /**< the largest id and one */
    /** Indexes of tokens for [0] raw and [1] normalized text, sorted by pattern; see
     * kt_added_index. */
    struct kt_added_set {
        struct kt_added_pattern {
            const char *text;
            size_t length;
            int32_t token;
            bool special;
        } * patterns;
        size_t count;
        struct {
            int32_t begin, end;
        } first[256]; /**< patterns that begin with a byte */
    } sets[2];
    char **normalized; /**< [count] patterns that differ from the content, or NULL */
    int32_t *by_id;    /**< [count] places in `tokens`, sorted by id */
};

/** Adds a token, or gives one of the same content new flags. Its id is the one it has in `vocab`,
 * or else the next free one, as the tokenizers package numbers them. `token->content` is copied;
 * token->id is not read. False when memory ran out. */
bool kt_added_put(struct kt_added *added, const struct kt_vocab *vocab,
                  const struct kt_added_token *token);
/** A copy without an index. */
bool kt_added_copy(struct kt_added *to, const struct kt_added *from);
void kt_added_free(struct kt_added *added);

/** NULL when there is none; kt_added_by_id needs the index. */
struct kt_added_token *kt_added_find(const struct kt_added *added, const char *content,
                                     size_t length);
const struct kt_added_token *kt_added_by_id(const struct kt_added *added, int32_t id);

/** Prepares kt_added_split; call it after the last change. `normalizer` is what normalized text
 * went through, `path` the file that it is from. */
kt_status kt_added_index(kt_context *ctx, const char *path, struct kt_added *added,
                         const struct kt_normalizer *normalizer);

/** Part of a text: a token, or with id -1 the text between tokens. */
struct kt_added_span {
    size_t begin, end;
    int32_t id;
};

struct kt_added_spans {
    struct kt_added_span *data;
    size_t count, capacity;
};

/** Appends the parts of the text with the raw (0) or normalized (1) set: the leftmost, of several
 * the longest token. */
kt_status kt_added_split(struct kt_budget *budget, const struct kt_added *added, int set,
                         const char *text, size_t length, struct kt_added_spans *spans);

#endif
