/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/dataset.h
 * From dataset_info.json to ids and labels, in the steps that LLaMA-Factory 0.9.4 takes. */
#ifndef KT_TEXT_DATASET_H
#define KT_TEXT_DATASET_H

#include <kt/dataset.h>

#include "formats/json.h"
#include "text/template.h"

/** An entry of dataset_info.json. Strings are borrowed from it; NULL = not in use. */
struct kt_dataset_info {
    const char *name;
    char *path; /**< of the data file */
    bool sharegpt;
    const char *prompt, *query, *response, *history, *messages, *system, *tools;
    const char *role_tag, *content_tag;
    const char *user_tag, *assistant_tag, *observation_tag, *function_tag, *system_tag;
};

/** Finds `name` in the parsed dataset_info.json `root` read from `path` in `folder`;
 * free(info->path) after success. Errors: NOT_FOUND, FORMAT, UNSUPPORTED (hubs, scripts, other
 * formats). */
kt_status kt_dataset_info_read(kt_context *ctx, const char *folder, const char *path,
                               const json_t *root, const char *name, struct kt_dataset_info *info);

/** Reads a file of entries: a JSON list of objects, or one object a line. *entries is a JSON array.
 * Errors: those of reading JSON; FORMAT (no entry, an entry that is no object). */
kt_status kt_dataset_read(kt_context *ctx, const char *path, json_t **entries);

/** The conversation of one entry: an odd number of turns, then the assistant's. */
struct kt_conversation {
    struct kt_turn *turns;
    size_t count, capacity;
    const char *system; /**< NULL = none given */
    size_t system_length;
    char **owned; /**< texts that are not borrowed from the entry */
    size_t num_owned, owned_capacity;
};

struct kt_convert {
    kt_context *ctx;
    const struct kt_dataset_info *info;
    const char *name, *author;
};

/** Fills a zeroed conversation from entry `number` (from 1). *why is set to the reason when the
 * entry is one that LLaMA-Factory leaves out, otherwise to NULL. Errors: FORMAT, UNSUPPORTED,
 * naming the file and the entry. */
kt_status kt_dataset_convert(const struct kt_convert *convert, const json_t *entry, size_t number,
                             struct kt_conversation *conversation, const char **why);
void kt_conversation_free(struct kt_conversation *conversation);

/** Ids and labels of a conversation, cut to cutoff_len; appended to both arrays. */
kt_status kt_dataset_encode(const struct kt_chat *chat, const kt_dataset_options *options,
                            const struct kt_conversation *conversation, struct kt_ids *ids,
                            struct kt_ids *labels);


#endif
