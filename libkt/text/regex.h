/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/regex.h
 * The regular expressions of tokenizer.json, which the tokenizers package runs with Oniguruma's
 * Ruby syntax, run here with PCRE2. The syntax that both read alike passes; what they read
 * differently
 * (\s, \v, $) is rewritten; the rest is refused. Characters that Unicode assigned after version 14
 * belong to their categories even if the PCRE2 at hand is older than they are. */
#ifndef KT_TEXT_REGEX_H
#define KT_TEXT_REGEX_H

#include "core/budget.h"

struct kt_regex;

/** `where` names file and key for errors: UNSUPPORTED (a construct that is refused), FORMAT (not a
 * regular expression), OUT_OF_MEMORY. */
kt_status kt_regex_compile(kt_context *ctx, const char *where, const char *pattern,
                           struct kt_regex **out);
void kt_regex_free(struct kt_regex *regex);

/** The first match at or after byte `from` of valid UTF-8; *found false when there is none. Errors:
 * UNSUPPORTED when the budget of the text ends, OUT_OF_MEMORY. */
kt_status kt_regex_find(struct kt_budget *budget, const struct kt_regex *regex, const char *text,
                        size_t size, size_t from, bool *found, size_t *begin, size_t *end);

#endif
