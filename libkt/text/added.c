/* SPDX-License-Identifier: Apache-2.0 */
#include "text/added.h"

#include "text/normalize.h"
#include "text/utf8.h"

static void free_index(struct kt_added *added)
{
    for (size_t i = 0; added->normalized && i < added->count; i++)
        free(added->normalized[i]);
    free(added->normalized);
    added->normalized = NULL;
    for (int s = 0; s < 2; s++) {
        free(added->sets[s].patterns);
        added->sets[s] = (struct kt_added_set){0};
    }
}

void kt_added_free(struct kt_added *added)
{
    free_index(added);
    for (size_t i = 0; i < added->count; i++)
        free(added->tokens[i].content);
    free(added->tokens);
    *added = (struct kt_added){0};
}

struct kt_added_token *kt_added_find(const struct kt_added *added, const char *content,
                                     size_t length)
{
    for (size_t i = 0; i < added->count; i++)
        if (added->tokens[i].length == length &&
            memcmp(added->tokens[i].content, content, length) == 0)
            return &added->tokens[i];
    return NULL;
}

const struct kt_added_token *kt_added_by_id(const struct kt_added *added, int32_t id)
{
    for (size_t i = 0; i < added->count; i++)
        if (added->tokens[i].id == id)
            return &added->tokens[i];
    return NULL;
}

static int32_t next_id(const struct kt_added *added, const struct kt_vocab *vocab)
{
    int32_t largest = -1, size = (int32_t)vocab->count;
    for (size_t i = 0; i < added->count; i++)
        if (added->tokens[i].id > largest)
            largest = added->tokens[i].id;
    return largest >= size ? largest + 1 : size;
}

bool kt_added_put(struct kt_added *added, const struct kt_vocab *vocab,
                  const struct kt_added_token *token)
{
    struct kt_added_token copy = *token, *old = kt_added_find(added, token->content, token->length);
    free_index(added);
    if (old) {
        copy.content = old->content;
        copy.id = old->id;
        *old = copy;
        return true;
    }
    if (!kt_grow((void **)&added->tokens, &added->capacity, added->count + 1, sizeof copy))
        return false;
    copy.content = malloc(token->length + 1);
    if (!copy.content)
        return false;
    memcpy(copy.content, token->content, token->length);
    copy.content[token->length] = 0;
    copy.id = kt_vocab_find(vocab, copy.content, copy.length);
    if (copy.id < 0)
        copy.id = next_id(added, vocab);
    added->tokens[added->count++] = copy;
    return true;
}

bool kt_added_copy(struct kt_added *to, const struct kt_added *from)
{
    *to = (struct kt_added){0};
    if (!kt_grow((void **)&to->tokens, &to->capacity, from->count, sizeof *to->tokens))
        return false;
    for (; to->count < from->count; to->count++) {
        struct kt_added_token copy = from->tokens[to->count];
        copy.content = malloc(copy.length + 1);
        if (!copy.content) {
            kt_added_free(to);
            return false;
        }
        memcpy(copy.content, from->tokens[to->count].content, copy.length + 1);
        to->tokens[to->count] = copy;
    }
    return true;
}

/* Of tokens that are alike in normalized text, special ones come first. */
static int compare_patterns(const void *a, const void *b)
{
    const struct kt_added_pattern *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    if (order == 0)
        order = (x->length > y->length) - (x->length < y->length);
    if (order == 0)
        order = y->special - x->special;
    return order ? order : (x->token > y->token) - (x->token < y->token);
}

static void index_first_bytes(struct kt_added_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        unsigned char byte = (unsigned char)set->patterns[i].text[0];
        if (set->first[byte].end == 0)
            set->first[byte].begin = (int32_t)i;
        set->first[byte].end = (int32_t)i + 1;
    }
}

/* Puts the pattern of a token into its set; false when memory ran out. */
static bool add_pattern(struct kt_added *added, size_t i, const struct kt_normalizer *normalizer)
{
    const struct kt_added_token *token = &added->tokens[i];
    struct kt_added_set *set = &added->sets[token->normalized];
    struct kt_added_pattern pattern = {token->content, token->length, (int32_t)i, token->special};
    if (token->normalized && normalizer->count) {
        struct kt_bytes text = {0};
        bool ok = kt_normalizer_apply(normalizer, token->content, token->length, &text);
        added->normalized[i] = text.data;
        if (!ok)
            return false;
        pattern.text = text.data;
        pattern.length = text.count;
    }
    if (pattern.length)
        set->patterns[set->count++] = pattern;
    return true;
}

bool kt_added_index(struct kt_added *added, const struct kt_normalizer *normalizer)
{
    free_index(added);
    added->normalized = calloc(added->count + 1, sizeof *added->normalized);
    bool ok = added->normalized != NULL;
    for (int s = 0; s < 2 && ok; s++) {
        added->sets[s].patterns = calloc(added->count + 1, sizeof *added->sets[s].patterns);
        ok = added->sets[s].patterns != NULL;
    }
    for (size_t i = 0; i < added->count && ok; i++)
        ok = add_pattern(added, i, normalizer);
    if (!ok) {
        free_index(added);
        return false;
    }
    for (int s = 0; s < 2; s++) {
        struct kt_added_set *set = &added->sets[s];
        if (set->count)
            qsort(set->patterns, set->count, sizeof *set->patterns, compare_patterns);
        index_first_bytes(set);
    }
    return true;
}

/* The longest pattern that text begins with; NULL when there is none. The candidates, sorted,
 * narrow to those that share one more byte with the text at each round. */
static const struct kt_added_pattern *longest(const struct kt_added_set *set, const char *text,
                                              size_t length)
{
    const struct kt_added_pattern *best = NULL, *p = set->patterns;
    int32_t begin = set->first[(unsigned char)text[0]].begin;
    int32_t end = set->first[(unsigned char)text[0]].end;
    for (size_t n = 1; begin < end; n++) {
        if (p[begin].length == n) {
            best = &p[begin];
            while (begin < end && p[begin].length == n)
                begin++;
        }
        if (n == length)
            break;
        unsigned char byte = (unsigned char)text[n];
        while (begin < end && (unsigned char)p[begin].text[n] < byte)
            begin++;
        while (begin < end && (unsigned char)p[end - 1].text[n] > byte)
            end--;
    }
    return best;
}

static bool word_before(const char *text, size_t at)
{
    size_t i = at;
    while (i > 0 && ((unsigned char)text[--i] & 0xc0) == 0x80) {
    }
    return at > 0 && kt_unicode_is_word(kt_utf8_next(text + i, at - i).code);
}

static bool word_after(const char *text, size_t at, size_t length)
{
    return at < length && kt_unicode_is_word(kt_utf8_next(text + at, length - at).code);
}

static size_t spaces_before(const char *text, size_t at, size_t least)
{
    while (at > least) {
        size_t i = at - 1;
        while (i > least && ((unsigned char)text[i] & 0xc0) == 0x80)
            i--;
        if (!kt_is_space(kt_utf8_next(text + i, at - i).code))
            break;
        at = i;
    }
    return at;
}

static size_t spaces_after(const char *text, size_t at, size_t length)
{
    while (at < length) {
        struct kt_utf8 c = kt_utf8_next(text + at, length - at);
        if (!kt_is_space(c.code))
            break;
        at += c.length;
    }
    return at;
}

static bool push(struct kt_added_spans *spans, size_t begin, size_t end, int32_t id)
{
    if (!kt_grow((void **)&spans->data, &spans->capacity, spans->count + 1, sizeof *spans->data))
        return false;
    spans->data[spans->count++] = (struct kt_added_span){begin, end, id};
    return true;
}

bool kt_added_split(const struct kt_added *added, int which, const char *text, size_t length,
                    struct kt_added_spans *spans)
{
    const struct kt_added_set *set = &added->sets[which];
    size_t done = 0;
    for (size_t at = 0; at < length;) {
        const struct kt_added_pattern *pattern = longest(set, text + at, length - at);
        if (!pattern) {
            at++;
            continue;
        }
        const struct kt_added_token *token = &added->tokens[pattern->token];
        size_t begin = at, end = at + pattern->length;
        at = end;
        if (token->single_word && (word_before(text, begin) || word_after(text, end, length)))
            continue;
        if (token->lstrip && begin > done)
            begin = spaces_before(text, begin, done);
        if (token->rstrip)
            end = spaces_after(text, end, length);
        if (done < begin && !push(spans, done, begin, -1))
            return false;
        if (!push(spans, begin, end, token->id))
            return false;
        done = end;
    }
    return done >= length || push(spans, done, length, -1);
}
