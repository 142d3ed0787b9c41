/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/json_read.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void kt_json_reader_start(struct kt_json_reader *r, const char *text, size_t size, bool lenient)
{
    *r = (struct kt_json_reader){.begin = text, .at = text, .end = text + size, .lenient = lenient};
}

void kt_json_reader_free(struct kt_json_reader *r)
{
    free(r->scratch);
    r->scratch = NULL;
}

static bool fail(struct kt_json_reader *r, const char *problem)
{
    r->problem = problem;
    return false;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

char kt_json_peek(struct kt_json_reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r'))
        r->at++;
    return r->at < r->end ? *r->at : 0;
}

bool kt_json_take(struct kt_json_reader *r, char c, const char *problem)
{
    if (kt_json_peek(r) != c || r->at == r->end)
        return fail(r, problem);
    r->at++;
    return true;
}

bool kt_json_more(struct kt_json_reader *r, char close, bool *more)
{
    char c = kt_json_peek(r);
    if (c != ',' && c != close)
        return fail(r, close == ']' ? "expected a comma or ]" : "expected a comma or }");
    *more = c == ',';
    r->at++;
    return true;
}

bool kt_json_end(struct kt_json_reader *r)
{
    kt_json_peek(r);
    return r->at == r->end || fail(r, "something follows the value");
}

static bool reserve(struct kt_json_reader *r, size_t size)
{
    if (size <= r->capacity)
        return true;
    char *grown = realloc(r->scratch, size + size / 2);
    if (!grown)
        return fail(r, NULL);
    r->scratch = grown;
    r->capacity = size + size / 2;
    return true;
}

/* -- strings ----------------------------------------------------------------------------------- */

/* Bytes of the character at `s`, 0 when it is not UTF-8. */
static size_t utf8_length(const char *s, const char *end)
{
    unsigned char c = (unsigned char)s[0];
    size_t n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (n > (size_t)(end - s))
        return 0;
    for (size_t i = 1; i < n; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80)
            return 0;
    unsigned char next = n > 2 ? (unsigned char)s[1] : 0;
    if ((c == 0xe0 && next < 0xa0) || (c == 0xed && next > 0x9f) || (c == 0xf0 && next < 0x90) ||
        (c == 0xf4 && next > 0x8f))
        return 0;
    return n;
}

static bool fail_at(struct kt_json_reader *r, const char *at, const char *problem)
{
    r->at = at;
    return fail(r, problem);
}

/* The string's end, its quotation mark, and whether there are escapes before it. */
static bool find_end(struct kt_json_reader *r, const char **close, bool *escapes)
{
    const char *s = r->at;
    *escapes = false;
    for (size_t n; s < r->end && *s != '"'; s += n) {
        n = utf8_length(s, r->end);
        if (n == 0)
            return fail_at(r, s, "a string is not UTF-8");
        if ((unsigned char)*s < 0x20 && !r->lenient)
            return fail_at(r, s, "a string holds a control character; write \\n, \\t or \\u0000");
        if (*s != '\\')
            continue;
        *escapes = true;
        n = 2;
        if (r->end - s < 2)
            return fail_at(r, s, "a string has no end");
    }
    *close = s;
    return s < r->end || fail(r, "a string has no end");
}

static int hex_digit(char c)
{
    return is_digit(c)            ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits after \u; -1 when they are not there. */
static int32_t read_hex(const char *s, const char *end)
{
    int32_t code = 0;
    if (end - s < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(s[i]);
        if (digit < 0)
            return -1;
        code = code << 4 | digit;
    }
    return code;
}

static size_t put_utf8(int32_t code, char *to)
{
    if (code < 0x80) {
        to[0] = (char)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6)
        to[i] = (char)(0x80 | (code & 0x3f));
    to[0] = (char)(0xf00 >> n | code); /* as many ones as bytes */
    return n;
}

/* *s stands behind "\u". A pair of surrogates is one character. */
static bool unicode_escape(struct kt_json_reader *r, const char **s, const char *end, char **to)
{
    int32_t code = read_hex(*s, end);
    if (code < 0)
        return fail_at(r, *s - 2, "\\u needs four hexadecimal digits");
    *s += 4;
    if (code >= 0xd800 && code < 0xe000) {
        int32_t low = code < 0xdc00 && end - *s >= 6 && (*s)[0] == '\\' && (*s)[1] == 'u'
                          ? read_hex(*s + 2, end)
                          : -1;
        if (low < 0xdc00 || low > 0xdfff)
            return fail_at(r, *s - 6, "half of a surrogate pair is no character");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        *s += 6;
    }
    *to += put_utf8(code, *to);
    return true;
}

/* Moves *to behind what it writes, which is not longer than what it reads. */
static bool unescape(struct kt_json_reader *r, const char *s, const char *end, char **to)
{
    static const char from[] = "\"\\/bfnrt", stands_for[] = "\"\\/\b\f\n\r\t";
    while (s < end) {
        if (*s != '\\') {
            *(*to)++ = *s++;
            continue;
        }
        s += 2;
        if (s[-1] == 'u') {
            if (!unicode_escape(r, &s, end, to))
                return false;
            continue;
        }
        const char *known = s[-1] ? strchr(from, s[-1]) : NULL;
        if (!known)
            return fail_at(r, s - 2, "JSON does not have this escape");
        *(*to)++ = stands_for[known - from];
    }
    return true;
}

bool kt_json_read_string(struct kt_json_reader *r, const char **text, size_t *length)
{
    const char *close;
    bool escapes;
    if (!kt_json_take(r, '"', "expected a string") || !find_end(r, &close, &escapes))
        return false;
    const char *begin = r->at;
    *text = begin;
    *length = (size_t)(close - begin);
    if (escapes) {
        if (!reserve(r, *length))
            return false;
        char *to = r->scratch;
        if (!unescape(r, begin, close, &to))
            return false;
        *text = r->scratch;
        *length = (size_t)(to - r->scratch);
    }
    r->at = close + 1;
    return true;
}

/* -- numbers and words ------------------------------------------------------------------------- */

static const char *digits(const char *s, const char *end)
{
    while (s < end && is_digit(*s))
        s++;
    return s;
}

/* The end of a number that begins at `s`; `s` when none does. */
static const char *number_end(const char *s, const char *end, bool *is_integer)
{
    const char *first = s + (s < end && *s == '-'), *at = digits(first, end);
    *is_integer = true;
    if (at == first || (*first == '0' && at - first > 1))
        return s;
    const char *fraction = at < end && *at == '.' ? digits(at + 1, end) : at;
    if (fraction > at + 1) {
        at = fraction;
        *is_integer = false;
    }
    if (at < end && (*at | 32) == 'e') {
        const char *sign = at + 1 + (end - at > 1 && (at[1] == '+' || at[1] == '-'));
        const char *exponent = digits(sign, end);
        if (exponent > sign) {
            at = exponent;
            *is_integer = false;
        }
    }
    return at;
}

bool kt_json_read_number(struct kt_json_reader *r, struct kt_json_number *number)
{
    bool is_integer;
    kt_json_peek(r);
    const char *end = number_end(r->at, r->end, &is_integer);
    size_t length = (size_t)(end - r->at);
    if (!length)
        return fail(r, "expected a value");
    if (!reserve(r, length + 1))
        return false;
    memcpy(r->scratch, r->at, length);
    r->scratch[length] = 0;
    int saved = errno;
    errno = 0;
    *number = (struct kt_json_number){.integer = strtoll(r->scratch, NULL, 10)};
    number->is_integer = is_integer && errno == 0;
    errno = saved;
    /* glibc has the locale "C" without allocating anything. */
    number->real = strtod_l(r->scratch, NULL, newlocale(LC_ALL_MASK, "C", (locale_t)0));
    if (!isfinite(number->real))
        return fail(r, "a number is too large");
    r->at = end;
    return true;
}

const char *kt_json_word(struct kt_json_reader *r)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    kt_json_peek(r);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i]);
        if ((size_t)(r->end - r->at) >= length && memcmp(r->at, words[i], length) == 0) {
            r->at += length;
            return words[i];
        }
    }
    return NULL;
}

/* -- whole values ------------------------------------------------------------------------------ */

static bool skip(struct kt_json_reader *r, int depth);

static bool skip_items(struct kt_json_reader *r, int depth, char close)
{
    const char *text;
    size_t length;
    r->at++;
    if (depth >= KT_JSON_DEPTH)
        return fail(r, "lists and objects are nested too deeply");
    bool more = kt_json_peek(r) != close;
    if (!more)
        return kt_json_take(r, close, "");
    while (more) {
        if (close == '}' &&
            (!kt_json_read_string(r, &text, &length) || !kt_json_take(r, ':', "expected a colon")))
            return false;
        if (!skip(r, depth + 1) || !kt_json_more(r, close, &more))
            return false;
    }
    return true;
}

static bool skip(struct kt_json_reader *r, int depth)
{
    struct kt_json_number number;
    const char *text;
    size_t length;
    switch (kt_json_peek(r)) {
    case '[':
        return skip_items(r, depth, ']');
    case '{':
        return skip_items(r, depth, '}');
    case '"':
        return kt_json_read_string(r, &text, &length);
    default:
        return kt_json_word(r) || kt_json_read_number(r, &number);
    }
}

bool kt_json_skip(struct kt_json_reader *r)
{
    return skip(r, 0);
}
