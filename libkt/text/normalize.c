/* SPDX-License-Identifier: Apache-2.0 */
#include "text/normalize.h"

#include <utf8proc.h>

#include "text/utf8.h"

static const struct {
    uint32_t first, last;
} word_ranges[] = {
#include "text/unicode_word.inc"
};

enum { MOST_PARTS = 4 }; /* of a character: U+1F82 has as many */

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

static int combining_class(utf8proc_int32_t code)
{
    return utf8proc_get_property(code)->combining_class;
}

/* Characters of a text, decomposed. */
struct run {
    utf8proc_int32_t *data;
    size_t count, capacity;
};

static bool decompose(const char *text, size_t length, struct run *run)
{
    int boundary = 0;
    for (size_t i = 0; i < length;) {
        struct kt_utf8 c = kt_utf8_next(text + i, length - i);
        if (!kt_grow((void **)&run->data, &run->capacity, run->count + MOST_PARTS,
                     sizeof *run->data))
            return false;
        run->count += (size_t)utf8proc_decompose_char(
            (utf8proc_int32_t)c.code, run->data + run->count, MOST_PARTS,
            UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        i += c.length;
    }
    return true;
}

static bool is_ordered(const utf8proc_int32_t *marks, size_t count)
{
    for (size_t i = 1; i < count; i++)
        if (combining_class(marks[i - 1]) > combining_class(marks[i]))
            return false;
    return true;
}

/* Sorts by class, by counting, and leaves marks of a class in their order. */
static bool order_marks(utf8proc_int32_t *marks, size_t count)
{
    size_t at[257] = {0};
    if (is_ordered(marks, count))
        return true;
    utf8proc_int32_t *before = malloc(count * sizeof *before);
    if (!before)
        return false;
    memcpy(before, marks, count * sizeof *before);
    for (size_t i = 0; i < count; i++)
        at[combining_class(before[i]) + 1]++;
    for (int c = 1; c < 257; c++)
        at[c] += at[c - 1];
    for (size_t i = 0; i < count; i++)
        marks[at[combining_class(before[i])]++] = before[i];
    free(before);
    return true;
}

/* utf8proc_decompose orders marks, too, but in time that is quadratic in how many there are. */
static bool order(struct run *run)
{
    for (size_t i = 0, end; i < run->count; i = end + 1) {
        for (end = i; end < run->count && combining_class(run->data[end]); end++) {
        }
        if (end > i + 1 && !order_marks(run->data + i, end - i))
            return false;
    }
    return true;
}

/* utf8proc 2.8 takes U+11A7 for an empty final consonant and drops it; it composes with nothing,
 * so a piece may end in front of it. */
static bool compose(const struct run *run, struct kt_bytes *out)
{
    for (size_t begin = 0, end; begin < run->count; begin = end) {
        for (end = begin + 1; end < run->count && run->data[end] != 0x11a7; end++) {
        }
        utf8proc_ssize_t count = utf8proc_normalize_utf32(
            run->data + begin, (utf8proc_ssize_t)(end - begin), UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        for (utf8proc_ssize_t i = 0; i < count; i++) {
            char utf8[4];
            size_t n = kt_utf8_put((uint32_t)run->data[begin + (size_t)i], utf8);
            if (!kt_bytes_append(out, utf8, n))
                return false;
        }
    }
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
    bool ok = decompose(text, length, &run) && order(&run) && compose(&run, out);
    free(run.data);
    return ok;
}
