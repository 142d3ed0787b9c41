/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/json_read.h
 * JSON piece by piece, for json.c, which makes trees of it, and for headers that are read without
 * one. Every failure of memory is told; nothing is global, the host's locale included. */
#ifndef KT_FORMATS_JSON_READ_H
#define KT_FORMATS_JSON_READ_H

#include <kt/types.h>

struct kt_json_reader {
    const char *begin, *at, *end;
    bool lenient;  /**< strings may hold control characters as they are */
    char *scratch; /**< a string without its escapes, or a number with a zero behind it */
    size_t capacity;
    const char *problem; /**< what is wrong at `at`; NULL = memory ran out */
};

/** `text` is borrowed. kt_json_reader_free when done. */
void kt_json_reader_start(struct kt_json_reader *r, const char *text, size_t size, bool lenient);
void kt_json_reader_free(struct kt_json_reader *r);

/** All that follow pass over white space first and return false with `problem` set. */

/** The next character, 0 at the end; it is not taken. */
char kt_json_peek(struct kt_json_reader *r);
/** Takes the character that must come next. */
bool kt_json_take(struct kt_json_reader *r, char c, const char *problem);
/** After an item of a list or object: takes a comma (*more true) or `close`. */
bool kt_json_more(struct kt_json_reader *r, char close, bool *more);
/** Nothing but white space may follow. */
bool kt_json_end(struct kt_json_reader *r);

/** Valid UTF-8, maybe with NUL bytes, not zero-terminated; until the next call. */
bool kt_json_read_string(struct kt_json_reader *r, const char **text, size_t *length);

struct kt_json_number {
    bool is_integer; /**< written as one, and 64 bits hold it */
    int64_t integer;
    double real;
};
bool kt_json_read_number(struct kt_json_reader *r, struct kt_json_number *number);

/** true, false, null, and Python's NaN, Infinity and -Infinity; NULL when none of them comes. */
const char *kt_json_word(struct kt_json_reader *r);

/** Passes over a value of any kind. */
bool kt_json_skip(struct kt_json_reader *r);

/** Lists and objects may stand in each other so deep. */
#define KT_JSON_DEPTH 1000

#endif
