/* SPDX-License-Identifier: Apache-2.0 */
#include "text/pretokenize.h"

#include "core/context.h"
#include "text/utf8.h"

static kt_status memory(const struct kt_budget *budget)
{
    return kt_fail_memory(budget->ctx, 0, "splitting a text into words");
}

static bool push_span(struct kt_pretokenize_scratch *s, size_t begin, size_t end, bool match)
{
    if (!kt_grow((void **)&s->spans, &s->spans_capacity, s->num_spans + 1, sizeof *s->spans))
        return false;
    s->spans[s->num_spans++] = (struct kt_split_span){begin, end, match};
    return true;
}

/* Matches and what lies between them. An empty match right after a match is passed over. */
static kt_status find_spans(struct kt_budget *budget, const struct kt_split_step *step,
                            struct kt_pretokenize_scratch *s, const struct kt_piece *piece)
{
    size_t from = 0, previous = 0, begin, end;
    bool found, any = false;
    s->num_spans = 0;
    while (from <= piece->length) {
        KT_TRY(kt_regex_find(budget, step->regex, piece->data, piece->length, from, &found, &begin,
                             &end));
        if (!found)
            break;
        if (begin == end && any && end == previous) {
            from = end < piece->length
                       ? end + kt_utf8_next(piece->data + end, piece->length - end).length
                       : end + 1;
            continue;
        }
        if (previous != begin && !push_span(s, previous, begin, step->invert))
            return memory(budget);
        if (!push_span(s, begin, end, !step->invert))
            return memory(budget);
        any = true;
        from = previous = end;
    }
    if (previous != piece->length && !push_span(s, previous, piece->length, step->invert))
        return memory(budget);
    return KT_OK;
}

/* Joins spans in place as the behaviour says. */
static void join_spans(struct kt_pretokenize_scratch *s, enum kt_split_behavior behavior)
{
    size_t n = 0;
    for (size_t i = 0; i < s->num_spans; i++) {
        struct kt_split_span span = s->spans[i];
        const struct kt_split_span *last = n ? &s->spans[n - 1] : NULL;
        bool join =
            last && ((behavior == KT_SPLIT_CONTIGUOUS && last->match == span.match) ||
                     (behavior == KT_SPLIT_MERGED_WITH_PREVIOUS && span.match && !last->match) ||
                     (behavior == KT_SPLIT_MERGED_WITH_NEXT && !span.match && last->match));
        if (behavior == KT_SPLIT_REMOVED && span.match)
            continue;
        if (join) {
            s->spans[n - 1].end = span.end;
            s->spans[n - 1].match = behavior == KT_SPLIT_CONTIGUOUS
                                        ? span.match
                                        : behavior == KT_SPLIT_MERGED_WITH_PREVIOUS;
        } else {
            s->spans[n++] = span;
        }
    }
    s->num_spans = n;
}

static bool push_piece(struct kt_pieces *pieces, const char *data, size_t length)
{
    if (!kt_grow((void **)&pieces->data, &pieces->capacity, pieces->count + 1,
                 sizeof *pieces->data))
        return false;
    pieces->data[pieces->count++] = (struct kt_piece){data, length};
    return true;
}

static kt_status run_step(struct kt_budget *budget, const struct kt_split_step *step,
                          struct kt_pretokenize_scratch *s)
{
    struct kt_pieces from = s->words;
    s->words = s->other;
    s->other = from;
    s->words.count = 0;
    for (size_t i = 0; i < from.count; i++) {
        KT_TRY(find_spans(budget, step, s, &from.data[i]));
        join_spans(s, step->behavior);
        for (size_t j = 0; j < s->num_spans; j++) {
            const struct kt_split_span *span = &s->spans[j];
            if (span->end > span->begin &&
                !push_piece(&s->words, from.data[i].data + span->begin, span->end - span->begin))
                return memory(budget);
        }
    }
    return KT_OK;
}

static kt_status add_spaces(struct kt_budget *budget, struct kt_pretokenize_scratch *s)
{
    size_t total = s->words.count;
    for (size_t i = 0; i < s->words.count; i++)
        total += s->words.data[i].length;
    s->spaced.count = 0;
    if (!kt_grow((void **)&s->spaced.data, &s->spaced.capacity, total, 1))
        return memory(budget);
    for (size_t i = 0; i < s->words.count; i++) {
        struct kt_piece *piece = &s->words.data[i];
        if (piece->data[0] == ' ')
            continue;
        char *to = s->spaced.data + s->spaced.count;
        to[0] = ' ';
        memcpy(to + 1, piece->data, piece->length);
        s->spaced.count += piece->length + 1;
        *piece = (struct kt_piece){to, piece->length + 1};
    }
    return KT_OK;
}

static bool begins_with(const struct kt_piece *piece, const char *text, size_t length)
{
    return piece->length >= length && memcmp(piece->data, text, length) == 0;
}

/* `begin` is where the first piece lies if nothing comes before it, otherwise NULL. */
static kt_status run_metaspace(struct kt_budget *budget, const struct kt_metaspace *m,
                               struct kt_pretokenize_scratch *s, const char *begin)
{
    const struct kt_replacement *space = &m->space;
    struct kt_bytes *out = &s->replaced;
    size_t at = 0;
    out->count = 0;
    for (size_t i = 0; i < s->words.count; i++) {
        struct kt_piece *piece = &s->words.data[i];
        size_t before = out->count;
        bool prepend = (m->prepend == KT_PREPEND_ALWAYS ||
                        (m->prepend == KT_PREPEND_FIRST && piece->data == begin)) &&
                       !begins_with(piece, " ", 1) &&
                       !begins_with(piece, space->to, space->to_length);
        if (prepend && !kt_bytes_append(out, space->to, space->to_length))
            return memory(budget);
        KT_TRY(kt_replace(budget, "the pre-tokenizer", space, piece->data, piece->length, out));
        piece->length = out->count - before;
    }
    for (size_t i = 0; i < s->words.count; i++) {
        s->words.data[i].data = out->data + at;
        at += s->words.data[i].length;
    }
    return KT_OK;
}

kt_status kt_pretokenize(struct kt_budget *budget, const struct kt_pretokenizer *pretokenizer,
                         struct kt_pretokenize_scratch *s, const char *text, size_t length,
                         bool begins)
{
    s->words.count = 0;
    if (length && !push_piece(&s->words, text, length))
        return memory(budget);
    for (size_t i = 0; i < pretokenizer->num_steps; i++) {
        const struct kt_split_step *step = &pretokenizer->steps[i];
        KT_TRY(step->regex
                   ? run_step(budget, step, s)
                   : run_metaspace(budget, &pretokenizer->metaspace, s, begins ? text : NULL));
    }
    if (pretokenizer->add_space)
        KT_TRY(add_spaces(budget, s));
    struct kt_split_step last = {pretokenizer->byte_level, KT_SPLIT_ISOLATED, false};
    return last.regex ? run_step(budget, &last, s) : KT_OK;
}

void kt_pretokenize_scratch_free(struct kt_pretokenize_scratch *s)
{
    free(s->words.data);
    free(s->other.data);
    free(s->spaced.data);
    free(s->replaced.data);
    free(s->spans);
}
