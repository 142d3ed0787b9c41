/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/template.h
 * Chat templates: how the messages of a conversation become ids. They give the ids that
 * LLaMA-Factory 0.9.4 gives under the same name.
 *
 * A message's format is a list of slots. Every text slot is tokenized by itself, so that no token
 * reaches across the border of two slots; this and the places of bos and eos make up the ids. */
#ifndef KT_TEXT_TEMPLATE_H
#define KT_TEXT_TEMPLATE_H

#include "text/tokenizer.h"

enum kt_role { KT_ROLE_USER, KT_ROLE_ASSISTANT, KT_ROLE_OBSERVATION, KT_ROLE_FUNCTION };

struct kt_slot {
    enum {
        KT_SLOT_END,
        KT_SLOT_TEXT, /**< text; the first {{content}} in it stands for the message */
        KT_SLOT_BOS,
        KT_SLOT_EOS
    } kind;
    const char *text;
};

#define KT_TEMPLATE_SLOTS 4
#define KT_TEMPLATE_STOP_WORDS 3

/** A row of the table. Formats end with KT_SLOT_END. */
struct kt_template {
    const char *name;
    struct kt_slot prefix[KT_TEMPLATE_SLOTS]; /**< before everything else */
    struct kt_slot system[KT_TEMPLATE_SLOTS]; /**< for a system text that is not empty */
    struct kt_slot user[KT_TEMPLATE_SLOTS];   /**< ends where the assistant begins */
    struct kt_slot assistant[KT_TEMPLATE_SLOTS];
    struct kt_slot observation[KT_TEMPLATE_SLOTS];  /**< empty = as user */
    const char *default_system;                     /**< "" = none */
    const char *stop_words[KT_TEMPLATE_STOP_WORDS]; /**< end a reply beside eos; up to a NULL */
    const char *thought_begin, *thought_end; /**< around a reply's thought; NULL = it has none */
    bool replace_eos;    /**< the first stop word takes the place of the tokenizer's eos */
    bool system_in_user; /**< the system text is the beginning of the first user message */
    bool efficient_eos;  /**< eos only once, at the end of the conversation */
};

/** NULL when no template has the name. */
const struct kt_template *kt_template_find(const char *name);

/** A template made ready for a tokenizer: stop words, and an eos where the tokenizer has none, are
 * special tokens of the vocabulary from then on; those it lacks get the next free ids. */
struct kt_chat {
    const kt_tokenizer *tokenizer;
    const struct kt_template *template;
    struct kt_added added;
    int32_t eos;
    int32_t thinking; /**< a kt_thinking */
};

/** Errors: NOT_FOUND (unknown name; the sentence lists the known ones), OUT_OF_MEMORY. Warns when
 * tokens get new ids. */
kt_status kt_chat_open(const kt_tokenizer *tokenizer, const char *template_name, int32_t thinking,
                       struct kt_chat *chat);
void kt_chat_close(struct kt_chat *chat);

struct kt_turn {
    enum kt_role role;
    const char *text;
    size_t length;
};

/** Appends the ids of the message that is number `index` of a conversation; before the first come
 * prefix and system text (`system` of `system_length` bytes; 0 = none). */
kt_status kt_chat_encode(const struct kt_chat *chat, size_t index, const struct kt_turn *turn,
                         const char *system, size_t system_length, struct kt_ids *ids);

/** Does the template know thoughts, and has the reply none? */
bool kt_chat_lacks_thought(const struct kt_chat *chat, const struct kt_turn *reply);

/** Takes the thoughts out of a reply; `buffer` then holds its text. Templates without thoughts
 * leave it as it is. */
kt_status kt_chat_remove_thoughts(const struct kt_chat *chat, struct kt_turn *reply,
                                  struct kt_bytes *buffer);

/** Appends the ids of an empty thought. */
kt_status kt_chat_encode_empty_thought(const struct kt_chat *chat, struct kt_ids *ids);

#endif
