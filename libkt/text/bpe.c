/* SPDX-License-Identifier: Apache-2.0 */
#include "text/bpe.h"

#include "text/utf8.h"

#define FREE_SLOT UINT64_MAX

bool kt_bpe_init(struct kt_bpe *bpe, size_t expected)
{
    size_t num = 16;
    while (num < expected * 2)
        num *= 2;
    bpe->merges = malloc(num * sizeof *bpe->merges);
    if (!bpe->merges)
        return false;
    for (size_t i = 0; i < num; i++)
        bpe->merges[i].pair = FREE_SLOT;
    bpe->num_slots = num;
    return true;
}

void kt_bpe_free(struct kt_bpe *bpe)
{
    free(bpe->merges);
}

static struct kt_merge *find(const struct kt_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    size_t at = (size_t)(h >> 20) & (bpe->num_slots - 1);
    while (bpe->merges[at].pair != FREE_SLOT && bpe->merges[at].pair != pair)
        at = (at + 1) & (bpe->num_slots - 1);
    return &bpe->merges[at];
}

void kt_bpe_add_merge(struct kt_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    struct kt_merge *merge = find(bpe, left, right);
    bpe->count += merge->pair == FREE_SLOT;
    *merge = (struct kt_merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, id};
}

static bool before(const struct kt_bpe_candidate *a, const struct kt_bpe_candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->position < b->position);
}

static bool heap_push(struct kt_bpe_scratch *s, struct kt_bpe_candidate candidate)
{
    if (!kt_grow((void **)&s->heap, &s->heap_capacity, s->heap_count + 1, sizeof *s->heap))
        return false;
    size_t at = s->heap_count++;
    while (at > 0 && before(&candidate, &s->heap[(at - 1) / 2])) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = candidate;
    return true;
}

static struct kt_bpe_candidate heap_pop(struct kt_bpe_scratch *s)
{
    struct kt_bpe_candidate top = s->heap[0], last = s->heap[--s->heap_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < s->heap_count) {
        if (child + 1 < s->heap_count && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!before(&s->heap[child], &last))
            break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return top;
}

/* Queues the merge of the symbol at `position` with the one after it, if there is one. */
static bool consider(const struct kt_bpe *bpe, struct kt_bpe_scratch *s, int32_t position)
{
    int32_t next = position < 0 ? -1 : s->symbols[position].next;
    if (next < 0)
        return true;
    const struct kt_merge *merge = find(bpe, s->symbols[position].id, s->symbols[next].id);
    return merge->pair == FREE_SLOT ||
           heap_push(s, (struct kt_bpe_candidate){merge->rank, position, merge->id});
}

static void add_symbol(struct kt_bpe_scratch *s, int32_t id)
{
    s->symbols[s->count] = (struct kt_bpe_symbol){id, s->count - 1, s->count + 1};
    s->count++;
}

static void flush_unknown(const struct kt_bpe *bpe, struct kt_bpe_scratch *s)
{
    if (s->unknown)
        add_symbol(s, bpe->unknown);
    s->unknown = false;
}

static bool has_fallback(const struct kt_bpe *bpe, const char *text, size_t length)
{
    bool all = bpe->byte_fallback;
    for (size_t i = 0; i < length; i++)
        all = all && bpe->fallback_ids[(unsigned char)text[i]] >= 0;
    return all;
}

/* An unknown symbol is written when the next known or unknown one comes, and so after bytes that
 * come between: as the tokenizers package does. */
static void add_unknown(const struct kt_bpe *bpe, struct kt_bpe_scratch *s, const char *text,
                        size_t length)
{
    if (has_fallback(bpe, text, length)) {
        for (size_t i = 0; i < length; i++)
            add_symbol(s, bpe->fallback_ids[(unsigned char)text[i]]);
        return;
    }
    if (!bpe->fuse_unknown)
        flush_unknown(bpe, s);
    s->unknown = bpe->unknown >= 0;
}

static void add_known(const struct kt_bpe *bpe, struct kt_bpe_scratch *s, int32_t id)
{
    flush_unknown(bpe, s);
    add_symbol(s, id);
}

static void to_symbols(const struct kt_bpe *bpe, const struct kt_vocab *vocab,
                       struct kt_bpe_scratch *s, const char *word, size_t length)
{
    s->count = 0;
    s->unknown = false;
    for (size_t i = 0, n; i < length; i += n) {
        char letter[4];
        const char *text = word + i;
        size_t size = n = bpe->byte_level ? 1 : kt_utf8_next(text, length - i).length;
        int32_t id =
            bpe->byte_level ? bpe->byte_ids[(unsigned char)*text] : kt_vocab_find(vocab, text, n);
        if (id >= 0) {
            add_known(bpe, s, id);
            continue;
        }
        if (bpe->byte_level) {
            size = kt_utf8_put(kt_alphabet_from_byte((unsigned char)*text), letter);
            text = letter;
        }
        add_unknown(bpe, s, text, size);
    }
    flush_unknown(bpe, s);
    if (s->count)
        s->symbols[s->count - 1].next = -1;
}

static bool merge_all(const struct kt_bpe *bpe, struct kt_bpe_scratch *s)
{
    while (s->heap_count) {
        struct kt_bpe_candidate top = heap_pop(s);
        struct kt_bpe_symbol *left = &s->symbols[top.position];
        if (left->id < 0 || left->next < 0)
            continue;
        struct kt_bpe_symbol *right = &s->symbols[left->next];
        const struct kt_merge *now = find(bpe, left->id, right->id);
        if (now->pair == FREE_SLOT || now->id != top.id)
            continue;
        left->id = top.id;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0)
            s->symbols[left->next].previous = top.position;
        if (!consider(bpe, s, left->previous) || !consider(bpe, s, top.position))
            return false;
    }
    return true;
}

/* The token that spells the whole word, -1 when there is none; -2 when memory ran out. */
static int32_t whole_word(const struct kt_bpe *bpe, const struct kt_vocab *vocab,
                          struct kt_bpe_scratch *s, const char *word, size_t length)
{
    if (!bpe->byte_level)
        return kt_vocab_find(vocab, word, length);
    s->spelled.count = 0;
    for (size_t i = 0; i < length; i++) {
        char utf8[4];
        size_t n = kt_utf8_put(kt_alphabet_from_byte((unsigned char)word[i]), utf8);
        if (!kt_bytes_append(&s->spelled, utf8, n))
            return -2;
    }
    return kt_vocab_find(vocab, s->spelled.data, s->spelled.count);
}

bool kt_bpe_encode(const struct kt_bpe *bpe, const struct kt_vocab *vocab, struct kt_bpe_scratch *s,
                   const char *word, size_t length, struct kt_ids *ids)
{
    if (bpe->ignore_merges) {
        int32_t id = whole_word(bpe, vocab, s, word, length);
        if (id != -1)
            return id >= 0 && kt_ids_push(ids, id);
    }
    size_t most = 2 * length; /* a letter of the byte-level alphabet can fall back to two bytes */
    if (!kt_grow((void **)&s->symbols, &s->symbols_capacity, most, sizeof *s->symbols))
        return false;
    to_symbols(bpe, vocab, s, word, length);
    s->heap_count = 0;
    for (int32_t i = 0; i + 1 < s->count; i++)
        if (!consider(bpe, s, i))
            return false;
    if (!merge_all(bpe, s))
        return false;
    for (int32_t i = s->count ? 0 : -1; i >= 0; i = s->symbols[i].next)
        if (!kt_ids_push(ids, s->symbols[i].id))
            return false;
    return true;
}

void kt_bpe_scratch_free(struct kt_bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    free(s->spelled.data);
}
