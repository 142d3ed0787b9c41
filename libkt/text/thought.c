/* SPDX-License-Identifier: Apache-2.0 */
/* Thoughts in replies, as LLaMA-Factory's ReasoningTemplate treats them. */
#include "core/context.h"
#include "text/template.h"

/* `word` without the white space around it. */
static const char *core_of(const char *word, size_t *length)
{
    word += strspn(word, "\n ");
    *length = strcspn(word, "\n ");
    return word;
}

static bool contains(const struct kt_turn *reply, const char *word)
{
    size_t length;
    word = core_of(word, &length);
    return reply->length && memmem(reply->text, reply->length, word, length);
}

bool kt_chat_lacks_thought(const struct kt_chat *chat, const struct kt_turn *reply)
{
    const struct kt_template *t = chat->template;
    return t->thought_begin && !contains(reply, t->thought_begin) &&
           !contains(reply, t->thought_end);
}

/* The first thought in the text; false when there is none. */
static bool find_thought(const struct kt_template *t, const char *text, size_t length,
                         size_t *begin, size_t *end)
{
    size_t first = strlen(t->thought_begin), last = strlen(t->thought_end);
    const char *open = memmem(text, length, t->thought_begin, first);
    if (!open)
        return false;
    size_t inside = (size_t)(open - text) + first;
    const char *close = memmem(text + inside, length - inside, t->thought_end, last);
    if (!close)
        return false;
    *begin = (size_t)(open - text);
    *end = (size_t)(close - text) + last;
    return true;
}

kt_status kt_chat_remove_thoughts(const struct kt_chat *chat, struct kt_turn *reply,
                                  struct kt_bytes *buffer)
{
    size_t at = 0, begin, end, blank = 0;
    bool ok = true;
    if (!chat->template->thought_begin || !reply->length)
        return KT_OK;
    buffer->count = 0;
    while (ok && find_thought(chat->template, reply->text + at, reply->length - at, &begin, &end)) {
        ok = kt_bytes_append(buffer, reply->text + at, begin);
        at += end;
    }
    if (!ok || !kt_bytes_append(buffer, reply->text + at, reply->length - at))
        return kt_fail_memory(chat->tokenizer->ctx, reply->length, "a reply");
    while (blank < buffer->count && buffer->data[blank] == '\n')
        blank++;
    reply->text = buffer->count ? buffer->data + blank : "";
    reply->length = buffer->count - blank;
    return KT_OK;
}

kt_status kt_chat_encode_empty_thought(const struct kt_chat *chat, struct kt_ids *ids)
{
    struct kt_bytes text = {0};
    const char *begin = chat->template->thought_begin, *end = chat->template->thought_end;
    bool ok =
        kt_bytes_append(&text, begin, strlen(begin)) && kt_bytes_append(&text, end, strlen(end));
    kt_status status =
        ok ? kt_tokenizer_encode_with(chat->tokenizer, &chat->added, text.data, text.count, ids)
           : kt_fail_memory(chat->tokenizer->ctx, 0, "a thought");
    free(text.data);
    return status;
}
