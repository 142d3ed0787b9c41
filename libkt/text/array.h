/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/array.h
 * Growing arrays for text work. Functions return false when memory ran out; the array stays valid.
 */
#ifndef KT_TEXT_ARRAY_H
#define KT_TEXT_ARRAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/** Makes room for `need` items in all; *capacity counts items. */
static inline bool kt_grow(void **data, size_t *capacity, size_t need, size_t item)
{
    if (need <= *capacity)
        return true;
    size_t to = *capacity < 16 ? 16 : *capacity;
    while (to < need)
        if (__builtin_mul_overflow(to, (size_t)2, &to))
            return false;
    size_t bytes;
    if (__builtin_mul_overflow(to, item, &bytes))
        return false;
    void *grown = realloc(*data, bytes);
    if (!grown)
        return false;
    *data = grown;
    *capacity = to;
    return true;
}

struct kt_ids {
    int32_t *data;
    size_t count, capacity;
};

static inline bool kt_ids_reserve(struct kt_ids *ids, size_t more)
{
    return kt_grow((void **)&ids->data, &ids->capacity, ids->count + more, sizeof *ids->data);
}

static inline bool kt_ids_push(struct kt_ids *ids, int32_t id)
{
    if (!kt_ids_reserve(ids, 1))
        return false;
    ids->data[ids->count++] = id;
    return true;
}

static inline bool kt_ids_append(struct kt_ids *ids, const int32_t *more, size_t count)
{
    if (!kt_ids_reserve(ids, count))
        return false;
    if (count)
        memcpy(ids->data + ids->count, more, count * sizeof *more);
    ids->count += count;
    return true;
}

struct kt_bytes {
    char *data;
    size_t count, capacity;
};

static inline bool kt_bytes_append(struct kt_bytes *bytes, const char *more, size_t count)
{
    if (!kt_grow((void **)&bytes->data, &bytes->capacity, bytes->count + count, 1))
        return false;
    if (count)
        memcpy(bytes->data + bytes->count, more, count);
    bytes->count += count;
    return true;
}

#endif
