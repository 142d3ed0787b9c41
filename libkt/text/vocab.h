/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/vocab.h
 * A two-way map between byte strings and ids. Ids may have gaps. */
#ifndef KT_TEXT_VOCAB_H
#define KT_TEXT_VOCAB_H

#include "text/array.h"

/** Ids of a vocabulary are below this. */
#define KT_VOCAB_LIMIT (1 << 24)

struct kt_vocab {
    struct kt_bytes pool;
    struct kt_vocab_entry {
        size_t offset;
        uint32_t length;
        bool used;
    } * entries;                          /**< by id */
    size_t num_entries, entries_capacity; /**< num_entries = largest id + 1 */
    int32_t *slots;                       /**< open addressing; -1 = free */
    size_t num_slots, count;
};

void kt_vocab_free(struct kt_vocab *vocab);
/** Adds a string (at most 2^31 bytes) with an id in [0, KT_VOCAB_LIMIT). An id or string that is
 * there already is given to the newcomer. False when memory ran out. */
bool kt_vocab_add(struct kt_vocab *vocab, const char *text, size_t length, int32_t id);
/** -1 when absent. */
int32_t kt_vocab_find(const struct kt_vocab *vocab, const char *text, size_t length);
/** NULL when no string has the id. Not zero-terminated; valid until the next addition. */
const char *kt_vocab_text(const struct kt_vocab *vocab, int32_t id, size_t *length);

#endif
