/* SPDX-License-Identifier: Apache-2.0 */
#include "text/added.h"

#include "core/context.h"
#include "text/normalize.h"
#include "text/utf8.h"

static void free_index(struct kt_added *added)
{
    for (size_t i = 0; added->normalized && i < added->count; i++)
        free(added->normalized[i]);
    free(added->normalized);
    added->normalized = NULL;
    free(added->by_id);
    added->by_id = NULL;
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
    kt_vocab_free(&added->places);
    *added = (struct kt_added){0};
}

struct kt_added_token *kt_added_find(const struct kt_added *added, const char *content,
                                     size_t length)
{
    int32_t place = kt_vocab_find(&added->places, content, length);
    return place < 0 ? NULL : &added->tokens[place];
}

const struct kt_added_token *kt_added_by_id(const struct kt_added *added, int32_t id)
{
    size_t low = 0, high = added->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (added->tokens[added->by_id[middle]].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    const struct kt_added_token *found =
        low < added->count ? &added->tokens[added->by_id[low]] : NULL;
    return found && found->id == id ? found : NULL;
}

/* Takes copy->content. */
static bool append(struct kt_added *added, const struct kt_added_token *copy)
{
    if (!copy->content)
        return false;
    if (added->count >= KT_VOCAB_LIMIT ||
        !kt_grow((void **)&added->tokens, &added->capacity, added->count + 1, sizeof *copy) ||
        !kt_vocab_add(&added->places, copy->content, copy->length, (int32_t)added->count)) {
        free(copy->content);
        return false;
    }
    added->tokens[added->count++] = *copy;
    if (copy->id >= added->next_id)
        added->next_id = copy->id + 1;
    return true;
}

static char *copy_content(const struct kt_added_token *token)
{
    char *content = malloc(token->length + 1);
    if (content) {
        memcpy(content, token->content, token->length);
        content[token->length] = 0;
    }
    return content;
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
    copy.content = copy_content(token);
    copy.id = kt_vocab_find(vocab, token->content, token->length);
    if (copy.id < 0)
        copy.id = added->next_id > (int32_t)vocab->count ? added->next_id : (int32_t)vocab->count;
    return append(added, &copy);
}

bool kt_added_copy(struct kt_added *to, const struct kt_added *from)
{
    *to = (struct kt_added){0};
    for (size_t i = 0; i < from->count; i++) {
        struct kt_added_token copy = from->tokens[i];
        copy.content = copy_content(&copy);
        if (!append(to, &copy)) {
            kt_added_free(to);
            return false;
        }
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

/* Puts the pattern of a token into its set. */
static kt_status add_pattern(struct kt_budget *budget, struct kt_added *added, size_t i,
                             const struct kt_normalizer *normalizer)
{
    const struct kt_added_token *token = &added->tokens[i];
    struct kt_added_set *set = &added->sets[token->normalized];
    struct kt_added_pattern pattern = {token->content, token->length, (int32_t)i, token->special};
    if (token->normalized && normalizer->count) {
        struct kt_bytes text = {0};
        kt_status status =
            kt_normalizer_apply(budget, normalizer, token->content, token->length, &text);
        added->normalized[i] = text.data;
        KT_TRY(status);
        pattern.text = text.data;
        pattern.length = text.count;
    }
    if (pattern.length)
        set->patterns[set->count++] = pattern;
    return KT_OK;
}

/* The first of several tokens that have an id stays first. */
static int compare_ids(const void *a, const void *b, void *tokens)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    int32_t x_id = ((const struct kt_added_token *)tokens)[x].id;
    int32_t y_id = ((const struct kt_added_token *)tokens)[y].id;
    return x_id != y_id ? (x_id > y_id) - (x_id < y_id) : (x > y) - (x < y);
}

static bool allocate_index(struct kt_added *added)
{
    added->normalized = calloc(added->count + 1, sizeof *added->normalized);
    added->by_id = calloc(added->count + 1, sizeof *added->by_id);
    for (int s = 0; s < 2; s++) {
        added->sets[s].patterns = calloc(added->count + 1, sizeof *added->sets[s].patterns);
        if (!added->sets[s].patterns)
            return false;
    }
    return added->normalized && added->by_id;
}

static kt_status fill_index(struct kt_budget *budget, struct kt_added *added,
                            const struct kt_normalizer *normalizer)
{
    if (!allocate_index(added))
        return kt_fail_memory(budget->ctx, 0, "the added tokens");
    for (size_t i = 0; i < added->count; i++) {
        added->by_id[i] = (int32_t)i;
        KT_TRY(add_pattern(budget, added, i, normalizer));
    }
    qsort_r(added->by_id, added->count, sizeof *added->by_id, compare_ids, added->tokens);
    for (int s = 0; s < 2; s++) {
        struct kt_added_set *set = &added->sets[s];
        qsort(set->patterns, set->count, sizeof *set->patterns, compare_patterns);
        index_first_bytes(set);
    }
    return KT_OK;
}

kt_status kt_added_index(kt_context *ctx, const char *path, struct kt_added *added,
                         const struct kt_normalizer *normalizer)
{
    struct kt_budget budget;
    uint64_t size = 0;
    free_index(added);
    for (size_t i = 0; i < added->count; i++)
        size += added->tokens[i].length;
    kt_budget_start(&budget, ctx, path, size);
    kt_status status = fill_index(&budget, added, normalizer);
    if (status != KT_OK)
        free_index(added);
    return status;
}

/* The first of the patterns from `begin` to `end`, which are alike in `n` bytes and longer, whose
 * next byte is `byte` or more. */
static int32_t lower_bound(const struct kt_added_pattern *p, int32_t begin, int32_t end, size_t n,
                           int byte)
{
    while (begin < end) {
        int32_t middle = begin + (end - begin) / 2;
        if ((unsigned char)p[middle].text[n] < byte)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/* Behind those that are `n` bytes long, which stand first. */
static int32_t past_length(const struct kt_added_pattern *p, int32_t begin, int32_t end, size_t n)
{
    while (begin < end) {
        int32_t middle = begin + (end - begin) / 2;
        if (p[middle].length == n)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/* The longest pattern that text begins with; NULL when there is none. The candidates, sorted,
 * narrow to those that share one more byte with the text at each round; *rounds counts them. */
static const struct kt_added_pattern *longest(const struct kt_added_set *set, const char *text,
                                              size_t length, size_t *rounds)
{
    const struct kt_added_pattern *best = NULL, *p = set->patterns;
    int32_t begin = set->first[(unsigned char)text[0]].begin;
    int32_t end = set->first[(unsigned char)text[0]].end;
    size_t n = 1;
    for (; begin < end; n++) {
        if (p[begin].length == n) {
            best = &p[begin];
            begin = past_length(p, begin, end, n);
        }
        if (n == length)
            break;
        int byte = (unsigned char)text[n];
        begin = lower_bound(p, begin, end, n, byte);
        end = lower_bound(p, begin, end, n, byte + 1);
    }
    *rounds = n;
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

enum { ROUND = 16 }; /* steps of a round of `longest` */

kt_status kt_added_split(struct kt_budget *budget, const struct kt_added *added, int which,
                         const char *text, size_t length, struct kt_added_spans *spans)
{
    static const char what[] = "looking for added tokens";
    const struct kt_added_set *set = &added->sets[which];
    size_t done = 0;
    for (size_t at = 0; at < length;) {
        size_t rounds;
        const struct kt_added_pattern *pattern = longest(set, text + at, length - at, &rounds);
        KT_TRY(kt_budget_steps(budget, ROUND * rounds, what));
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
        KT_TRY(kt_budget_steps(budget, end - at, what));
        if ((done < begin && !push(spans, done, begin, -1)) || !push(spans, begin, end, token->id))
            return kt_fail_memory(budget->ctx, length, what);
        done = end;
    }
    if (done < length && !push(spans, done, length, -1))
        return kt_fail_memory(budget->ctx, length, what);
    return KT_OK;
}
