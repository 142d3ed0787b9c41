/* SPDX-License-Identifier: Apache-2.0 */
/** \file talk.h
 * Answers with a model: what kt chat and kt generate share. */
#ifndef KT_TALK_H
#define KT_TALK_H

#include <kt/kt.h>

#include "session.h"

typedef struct talk {
    session session;
    kt_generator *generator;
    const char *template_name; /**< NULL = text is continued as it stands */
    int32_t stop_ids[16];
    size_t num_stop_ids;
} talk;

/** Loads tokenizer, model and adapter. Returns an exit code. */
int talk_open(talk *t, const config *cfg);
void talk_close(talk *t);

/** Ids of the conversation, or of the last message's text alone without a template. Free with
 * kt_free. */
int talk_encode(talk *t, const kt_message *messages, size_t num, int32_t **ids, size_t *num_ids);

/** Generates after `ids` until the turn ends, max_new_tokens are there, or session_cancelled() says
 * stop; writes to standard output as it goes. `answer` (free it) gets the text. */
int talk_answer(talk *t, const int32_t *ids, size_t num_ids, char **answer);

#endif
