/* SPDX-License-Identifier: Apache-2.0 */
/** \file keys.h
 * The table of every configuration key: those of LLaMA-Factory 0.9.4's supervised fine-tuning and
 * chat (with transformers 4.57.1's training arguments), those that later releases added for
 * KTransformers, and a few of our own. */
#ifndef KT_KEYS_H
#define KT_KEYS_H

#include "config.h"

typedef enum key_type {
    KEY_STRING,
    KEY_INT,
    KEY_FLOAT,
    KEY_BOOL,
    KEY_LIST, /**< a YAML list, or one string with commas */
    KEY_MAP,
    KEY_ANY
} key_type;

typedef enum key_use {
    KEY_SUPPORTED, /**< does what it does in LLaMA-Factory */
    KEY_NO_EFFECT, /**< cannot matter here, whatever its value; `note` says why */
    KEY_LIMITED    /**< only the values in `domain` are possible; `note` says what to use instead */
} key_use;

typedef struct key {
    const char *name;
    key_type type;
    key_use use;
    const char *fallback; /**< the default as text; NULL = null */
    const char *domain;   /**< numbers: an interval such as ">=1", ">0", "[0,1)"; else values
                               separated by '|'; NULL = anything */
    const char *note;
} key;

extern const key key_table[];
extern const size_t key_table_size;

/** NULL when the table has no such key. */
const key *key_find(const char *name);

/** Is the key known, has the value its type, is it possible? Returns an exit code. */
int key_check(const config *cfg, const entry *e);

/** Names, once, the given keys that have no effect, with the reason. */
void key_print_ignored(const config *cfg);

/** The table as text, for `kt help keys`. */
void key_print_table(void);

#endif
