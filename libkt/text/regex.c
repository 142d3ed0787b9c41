/* SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>
#include <stdio.h>

#include "core/context.h"
#include "text/array.h"
#include "text/utf8.h"

struct kt_regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack;
    char *where;
};

#define SPACES                                                                                     \
    "\\t-\\r\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"   \
    "3000}"
#define NOT_SPACES                                                                                 \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"       \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"                 \
    "\\x{3001}-\\x{10ffff}"

static const struct new_range {
    uint32_t first, last;
    char category[3];
} new_ranges[] = {
#include "text/unicode_new.inc"
};

struct translation {
    kt_context *ctx;
    const char *where, *at;
    struct kt_bytes out;
    bool in_class, memory;
};

static void put(struct translation *t, const char *text)
{
    t->memory = t->memory && kt_bytes_append(&t->out, text, strlen(text));
}

static kt_status refuse(const struct translation *t, const char *what)
{
    return kt_fail(
        t->ctx, KT_ERROR_UNSUPPORTED,
        "%s: the regular expression uses %s, which libkt does not support (at \"%.20s\")", t->where,
        what, t->at);
}

static bool is_category(const char *name, size_t length)
{
    static const char known[] =
        "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc "
        "Sk So Z Zs Zl Zp ";
    char padded[4] = {0};
    if (length < 1 || length > 2)
        return false;
    memcpy(padded, name, length);
    padded[length] = ' ';
    for (const char *p = known; (p = strstr(p, padded)) != NULL; p++)
        if (p == known || p[-1] == ' ')
            return true;
    return false;
}

/* Members of a category, to stand in a class. */
static void put_category(struct translation *t, const char *name, size_t length)
{
    char item[48];
    snprintf(item, sizeof item, "\\p{%.*s}", (int)length, name);
    put(t, item);
    for (size_t i = 0; i < sizeof new_ranges / sizeof *new_ranges; i++) {
        if (strncmp(new_ranges[i].category, name, length) != 0)
            continue;
        snprintf(item, sizeof item, "\\x{%x}-\\x{%x}", new_ranges[i].first, new_ranges[i].last);
        put(t, item);
    }
}

static kt_status category(struct translation *t, const char *name, size_t length, bool negated)
{
    if (!is_category(name, length))
        return refuse(t, "a property other than a general category");
    if (t->in_class && negated)
        return refuse(t, "a negated category within brackets");
    if (!t->in_class)
        put(t, negated ? "[^" : "[");
    put_category(t, name, length);
    if (!t->in_class)
        put(t, "]");
    return KT_OK;
}

static kt_status property(struct translation *t)
{
    bool negated = t->at[1] == 'P';
    const char *name = t->at + 3, *close = t->at[2] == '{' ? strchr(name, '}') : NULL;
    if (!close)
        return refuse(t, "\\p without braces");
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    KT_TRY(category(t, name, (size_t)(close - name), negated));
    t->at = close + 1;
    return KT_OK;
}

static size_t hex_digits(const char *s, size_t most)
{
    size_t n = strspn(s, "0123456789abcdefABCDEF");
    return n < most ? n : most;
}

/* \xHH, \x{H...}, \uHHHH */
static kt_status code_point(struct translation *t)
{
    bool braces = t->at[1] == 'x' && t->at[2] == '{';
    const char *digits = t->at + 2 + braces;
    size_t n = hex_digits(digits, braces ? 6 : t->at[1] == 'u' ? 4 : 2);
    if (n == 0 || (t->at[1] == 'u' && n != 4) || (braces && digits[n] != '}'))
        return refuse(t, "an unusual numeric escape");
    char item[16];
    snprintf(item, sizeof item, "\\x{%.*s}", (int)n, digits);
    put(t, item);
    t->at = digits + n + braces;
    return KT_OK;
}

static kt_status escape(struct translation *t)
{
    char c = t->at[1], same[3] = {'\\', c, 0};
    switch (c) {
    case 'p':
    case 'P':
        return property(t);
    case 'x':
    case 'u':
        return code_point(t);
    case 'd':
    case 'D':
        KT_TRY(category(t, "Nd", 2, c == 'D'));
        break;
    case 's':
        put(t, t->in_class ? SPACES : "[" SPACES "]");
        break;
    case 'S':
        put(t, t->in_class ? NOT_SPACES : "[" NOT_SPACES "]");
        break;
    case 'v':
        put(t, "\\x0b");
        break;
    case 'A':
    case 'z':
        if (t->in_class)
            return refuse(t, "this escape within brackets");
        put(t, same);
        break;
    default:
        if (!c || (!strchr("nrtfae", c) && ((c >= '0' && c <= '9') || (c | 32) >= 'a') &&
                   (c | 32) <= 'z'))
            return refuse(t, "this escape");
        put(t, same);
    }
    t->at += 2;
    return KT_OK;
}

static kt_status in_class(struct translation *t)
{
    char same[2] = {*t->at, 0};
    if (*t->at == '[')
        return refuse(t, "a bracket within brackets");
    if (t->at[0] == '&' && t->at[1] == '&')
        return refuse(t, "an intersection within brackets");
    t->in_class = *t->at != ']';
    put(t, same);
    t->at++;
    return KT_OK;
}

static kt_status open_class(struct translation *t)
{
    size_t length = t->at[1] == '^' ? 2 : 1;
    if (t->at[length] == ']')
        return refuse(t, "a closing bracket right after the opening one");
    put(t, length == 2 ? "[^" : "[");
    t->in_class = true;
    t->at += length;
    return KT_OK;
}

static kt_status group(struct translation *t)
{
    static const char *const known[] = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    if (t->at[1] != '?' && t->at[1] != '*') {
        put(t, "(?:");
        t->at++;
        return KT_OK;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t length = strlen(known[i]);
        if (strncmp(t->at, known[i], length) == 0) {
            put(t, known[i]);
            t->at += length;
            return KT_OK;
        }
    }
    return refuse(t, "this kind of group");
}

static kt_status literal(struct translation *t)
{
    char same[2] = {*t->at, 0};
    if (*t->at == '^')
        return refuse(t, "^");
    if (t->at[0] == '{' && t->at[1] == ',')
        return refuse(t, "a repetition without a lower bound");
    if (t->at[0] == '}' && t->at[1] && strchr("+?*{", t->at[1]))
        return refuse(t, "a repetition of a repetition");
    put(t, *t->at == '$' ? "(?=\\n|\\z)" : same);
    t->at++;
    return KT_OK;
}

static kt_status translate(struct translation *t)
{
    while (*t->at) {
        kt_status status = *t->at == '\\'  ? escape(t)
                           : t->in_class   ? in_class(t)
                           : *t->at == '[' ? open_class(t)
                           : *t->at == '(' ? group(t)
                                           : literal(t);
        KT_TRY(status);
    }
    return t->memory ? KT_OK : kt_fail_memory(t->ctx, t->out.count, "a regular expression");
}

enum { HEAP_KIB = 64 << 10 }; /* without the compiler */

static kt_status compile(kt_context *ctx, struct kt_regex *regex, const struct kt_bytes *pattern)
{
    int error;
    PCRE2_SIZE offset;
    pcre2_compile_context *options = pcre2_compile_context_create(NULL);
    if (options)
        pcre2_set_newline(options, PCRE2_NEWLINE_LF);
    regex->code =
        pcre2_compile((PCRE2_SPTR)pattern->data, pattern->count,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
                      &error, &offset, options);
    pcre2_compile_context_free(options);
    if (!regex->code && error == PCRE2_ERROR_HEAP_FAILED)
        return kt_fail_memory(ctx, pattern->count, "a regular expression");
    if (!regex->code) {
        char reason[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: not a valid regular expression: %s", regex->where,
                       reason);
    }
    /* Without it matching is only slower. */
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    regex->match = pcre2_match_data_create_from_pattern(regex->code, NULL);
    regex->limits = pcre2_match_context_create(NULL);
    if (!regex->match || !regex->limits)
        return kt_fail_memory(ctx, 4096, "a regular expression");
    pcre2_set_heap_limit(regex->limits, HEAP_KIB);
    regex->stack = pcre2_jit_stack_create(32 << 10, HEAP_KIB << 10, NULL);
    if (regex->stack)
        pcre2_jit_stack_assign(regex->limits, NULL, regex->stack);
    return KT_OK;
}

kt_status kt_regex_compile(kt_context *ctx, const char *where, const char *pattern,
                           struct kt_regex **out)
{
    struct translation t = {.ctx = ctx, .where = where, .at = pattern, .memory = true};
    *out = NULL;
    kt_status status = translate(&t);
    struct kt_regex *regex = status == KT_OK ? calloc(1, sizeof *regex) : NULL;
    if (regex && (regex->where = strdup(where)) != NULL)
        status = compile(ctx, regex, &t.out);
    else if (status == KT_OK)
        status = kt_fail_memory(ctx, sizeof *regex, "a regular expression");
    free(t.out.data);
    if (status != KT_OK)
        kt_regex_free(regex);
    else
        *out = regex;
    return status;
}

void kt_regex_free(struct kt_regex *regex)
{
    if (!regex)
        return;
    pcre2_jit_stack_free(regex->stack);
    pcre2_match_context_free(regex->limits);
    pcre2_match_data_free(regex->match);
    pcre2_code_free(regex->code);
    free(regex->where);
    free(regex);
}

/* PCRE2 does not tell how much a match cost. So an expression sees a short window of the text and
 * may backtrack a little; one that asks for more gets it in steps, for one position at a time, and
 * each step is charged. What is not charged is linear in the text. */
enum { WINDOW = 256, BACKTRACKS = 256, GROWTH = 4, CALL = 4 };

struct search {
    const struct kt_regex *regex;
    const char *text;
    size_t size, start, window;
    uint32_t backtracks;
    bool pinned; /* a match may begin at `start` alone */
};

static void release(struct search *s, size_t start)
{
    s->start = start;
    s->window = WINDOW;
    s->backtracks = BACKTRACKS;
    s->pinned = false;
}

static size_t window_end(const struct search *s)
{
    if (s->size - s->start <= s->window)
        return s->size;
    size_t end = s->start + s->window;
    while (((unsigned char)s->text[end] & 0xc0) == 0x80)
        end--;
    return end;
}

static kt_status match(struct kt_budget *budget, const struct search *s, size_t end, int *count)
{
    uint64_t cost = s->pinned ? s->window + s->backtracks : CALL;
    KT_TRY(kt_budget_steps(budget, cost, "a regular expression of the pre-tokenizer"));
    pcre2_set_match_limit(s->regex->limits, s->backtracks);
    pcre2_set_offset_limit(s->regex->limits, s->pinned ? s->start : PCRE2_UNSET);
    *count = pcre2_match(s->regex->code, (PCRE2_SPTR)s->text, end, s->start,
                         PCRE2_NO_UTF_CHECK | (end < s->size ? PCRE2_PARTIAL_HARD : 0),
                         s->regex->match, s->regex->limits);
    return KT_OK;
}

static kt_status fail(struct kt_budget *budget, const struct search *s, int count)
{
    char reason[128] = "";
    if (count == PCRE2_ERROR_NOMEMORY)
        return kt_fail_memory(budget->ctx, s->size, "matching a regular expression");
    pcre2_get_error_message(count, (PCRE2_UCHAR *)reason, sizeof reason);
    return kt_fail(budget->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: the regular expression cannot be matched on a text of %zu bytes: %s",
                   s->regex->where, s->size, reason);
}

/* Where to go on after the positions up to `end`, or the pinned one, did not match; false at the
 * end of the text. */
static bool advance(struct search *s, size_t end)
{
    if (s->start >= s->size || (!s->pinned && end == s->size))
        return false;
    release(s, s->pinned ? s->start + kt_utf8_next(s->text + s->start, s->size - s->start).length
                         : end);
    return true;
}

kt_status kt_regex_find(struct kt_budget *budget, const struct kt_regex *regex, const char *text,
                        size_t size, size_t from, bool *found, size_t *begin, size_t *end)
{
    struct search s = {.regex = regex, .text = text, .size = size};
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(regex->match);
    int count;
    *found = false;
    for (release(&s, from);;) {
        size_t stop = window_end(&s);
        KT_TRY(match(budget, &s, stop, &count));
        if (count > 0)
            break;
        if (count == PCRE2_ERROR_NOMATCH) {
            if (!advance(&s, stop))
                return KT_OK;
        } else if (count == PCRE2_ERROR_PARTIAL) {
            s.start = span[0];
            s.pinned = true;
            s.window *= GROWTH;
        } else if (count == PCRE2_ERROR_MATCHLIMIT) {
            s.backtracks *= s.pinned ? GROWTH : 1;
            s.pinned = true;
        } else {
            return fail(budget, &s, count);
        }
    }
    *found = true;
    *begin = span[0];
    *end = span[1];
    return KT_OK;
}
