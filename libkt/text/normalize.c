/* SPDX-License-Identifier: Apache-2.0 */
#include "text/normalize.h"

#include "text/utf8.h"

static const struct {
    uint32_t first, last;
} word_ranges[] = {
#include "text/unicode_word.inc"
};

static const struct decomposition {
    uint32_t code, first, second;
} decompositions[] = {
#include "text/unicode_decomp.inc"
};

static const struct composition {
    uint32_t first, second, code;
} compositions[] = {
#include "text/unicode_comp.inc"
};

static const struct {
    uint32_t first, last;
    uint32_t class;
} classes[] = {
#include "text/unicode_ccc.inc"
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

bool kt_unicode_is_word(uint32_t code)
{
    size_t low = 0, high = COUNT(word_ranges);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > word_ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < COUNT(word_ranges) && code >= word_ranges[low].first;
}

static uint32_t combining_class(uint32_t code)
{
    size_t low = 0, high = COUNT(classes);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > classes[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < COUNT(classes) && code >= classes[low].first ? classes[low].class : 0;
}

static const struct decomposition *find_decomposition(uint32_t code)
{
    size_t low = 0, high = COUNT(decompositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > decompositions[middle].code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < COUNT(decompositions) && decompositions[low].code == code ? &decompositions[low]
                                                                           : NULL;
}

/* Hangul syllables compose by arithmetic (The Unicode Standard, section 3.12). */
enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7, S_BASE = 0xac00 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

/* The primary composite of a pair; 0 when there is none. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - L_BASE < L_COUNT && b - V_BASE < V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a - S_BASE < S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE && b < T_BASE + T_COUNT)
        return a + (b - T_BASE);
    size_t low = 0, high = COUNT(compositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct composition *c = &compositions[middle];
        if (a > c->first || (a == c->first && b > c->second))
            low = middle + 1;
        else
            high = middle;
    }
    const struct composition *c = &compositions[low];
    return low < COUNT(compositions) && c->first == a && c->second == b ? c->code : 0;
}

/* Decomposed text in canonical order. */
struct run {
    struct mark {
        uint32_t code, class;
    } * data;
    size_t count, capacity;
};

static bool push(struct run *run, uint32_t code)
{
    if (!kt_grow((void **)&run->data, &run->capacity, run->count + 1, sizeof *run->data))
        return false;
    struct mark mark = {code, combining_class(code)};
    size_t at = run->count++;
    for (; mark.class && at > 0 && run->data[at - 1].class > mark.class; at--)
        run->data[at] = run->data[at - 1];
    run->data[at] = mark;
    return true;
}

static bool push_decomposed(struct run *run, uint32_t code)
{
    if (code - S_BASE < S_COUNT) {
        uint32_t s = code - S_BASE, t = s % T_COUNT;
        return push(run, L_BASE + s / (V_COUNT * T_COUNT)) &&
               push(run, V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT) &&
               (t == 0 || push(run, T_BASE + t));
    }
    const struct decomposition *d = find_decomposition(code);
    if (!d)
        return push(run, code);
    return push_decomposed(run, d->first) && (d->second == 0 || push(run, d->second));
}

static void compose_run(struct run *run)
{
    size_t n = 0, starter = SIZE_MAX;
    uint32_t last_class = 0;
    for (size_t i = 0; i < run->count; i++) {
        struct mark mark = run->data[i];
        bool adjacent = n > 0 && starter == n - 1;
        bool blocked = starter == SIZE_MAX || (!adjacent && last_class >= mark.class);
        uint32_t composite = blocked ? 0 : compose(run->data[starter].code, mark.code);
        if (composite) {
            run->data[starter].code = composite;
            continue;
        }
        if (mark.class == 0)
            starter = n;
        last_class = mark.class;
        run->data[n++] = mark;
    }
    run->count = n;
}

static bool flush(struct run *run, struct kt_bytes *out)
{
    compose_run(run);
    for (size_t i = 0; i < run->count; i++) {
        char utf8[4];
        if (!kt_bytes_append(out, utf8, kt_utf8_put(run->data[i].code, utf8)))
            return false;
    }
    run->count = 0;
    return true;
}

/* Text below U+0300 is in NFC as it stands. */
static size_t plain_prefix(const char *text, size_t length)
{
    size_t i = 0;
    while (i < length && (unsigned char)text[i] < 0xcc)
        i++;
    return i;
}

bool kt_normalize_nfc(const char *text, size_t length, struct kt_bytes *out)
{
    if (plain_prefix(text, length) == length)
        return kt_bytes_append(out, text, length);
    struct run run = {0};
    bool ok = true;
    for (size_t i = 0; i < length && ok;) {
        struct kt_utf8 c = kt_utf8_next(text + i, length - i);
        ok = push_decomposed(&run, c.code);
        i += c.length;
    }
    ok = ok && flush(&run, out);
    free(run.data);
    return ok;
}
