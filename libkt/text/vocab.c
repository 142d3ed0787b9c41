/* SPDX-License-Identifier: Apache-2.0 */
#include "text/vocab.h"

static uint64_t hash(const char *text, size_t length)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ length;
    for (size_t i = 0; i < length; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

void kt_vocab_free(struct kt_vocab *vocab)
{
    free(vocab->pool.data);
    free(vocab->entries);
    free(vocab->slots);
}

/* The slot of the string, or the free one where it would go. */
static size_t find_slot(const struct kt_vocab *v, const char *text, size_t length)
{
    size_t at = (size_t)hash(text, length) & (v->num_slots - 1);
    while (v->slots[at] >= 0) {
        const struct kt_vocab_entry *e = &v->entries[v->slots[at]];
        if (e->length == length && memcmp(v->pool.data + e->offset, text, length) == 0)
            break;
        at = (at + 1) & (v->num_slots - 1);
    }
    return at;
}

static bool rehash(struct kt_vocab *v)
{
    size_t num = v->num_slots ? v->num_slots * 2 : 1024;
    int32_t *slots = malloc(num * sizeof *slots), *old = v->slots;
    size_t num_old = v->num_slots;
    if (!slots)
        return false;
    memset(slots, 0xff, num * sizeof *slots);
    v->slots = slots;
    v->num_slots = num;
    for (size_t i = 0; i < num_old; i++) {
        if (old[i] < 0)
            continue;
        const struct kt_vocab_entry *e = &v->entries[old[i]];
        slots[find_slot(v, v->pool.data + e->offset, e->length)] = old[i];
    }
    free(old);
    return true;
}

static bool reserve_id(struct kt_vocab *v, size_t id)
{
    if (!kt_grow((void **)&v->entries, &v->entries_capacity, id + 1, sizeof *v->entries))
        return false;
    for (; v->num_entries <= id; v->num_entries++)
        v->entries[v->num_entries] = (struct kt_vocab_entry){0};
    return true;
}

bool kt_vocab_add(struct kt_vocab *v, const char *text, size_t length, int32_t id)
{
    if (v->count * 2 >= v->num_slots && !rehash(v))
        return false;
    if (!reserve_id(v, (size_t)id))
        return false;
    size_t offset = v->pool.count;
    if (!kt_bytes_append(&v->pool, text, length))
        return false;
    size_t slot = find_slot(v, text, length);
    v->count += v->slots[slot] < 0;
    v->slots[slot] = id;
    v->entries[id] = (struct kt_vocab_entry){offset, (uint32_t)length, true};
    return true;
}

int32_t kt_vocab_find(const struct kt_vocab *v, const char *text, size_t length)
{
    return v->num_slots ? v->slots[find_slot(v, text, length)] : -1;
}

const char *kt_vocab_text(const struct kt_vocab *v, int32_t id, size_t *length)
{
    if (id < 0 || (size_t)id >= v->num_entries || !v->entries[id].used)
        return NULL;
    *length = v->entries[id].length;
    return v->pool.data + v->entries[id].offset;
}
