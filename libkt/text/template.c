/* SPDX-License-Identifier: Apache-2.0 */
#include "text/template.h"

#include <stdio.h>

#include "core/context.h"

static kt_status memory(const kt_tokenizer *t)
{
    return kt_fail_memory(t->ctx, 0, "a chat template");
}

static kt_status put_special(struct kt_chat *chat, const char *word, int32_t *id)
{
    const kt_tokenizer *t = chat->tokenizer;
    struct kt_added_token token = {
        .content = (char *)word, .length = strlen(word), .special = true};
    int32_t old = kt_tokenizer_find(t, &chat->added, word, token.length);
    if (id == &chat->eos && old >= 0 && old == chat->eos)
        return KT_OK;
    if (!kt_added_put(&chat->added, &t->vocab, &token))
        return memory(t);
    *id = kt_added_find(&chat->added, word, token.length)->id;
    if (old < 0)
        kt_log(t->ctx, KT_LOG_WARNING,
               "template %s: the tokenizer has no token \"%s\"; it gets the new id %d, which the "
               "model must have an embedding for",
               chat->template->name, word, *id);
    return KT_OK;
}

static kt_status fix_special_tokens(struct kt_chat *chat)
{
    const char *const *stop = chat->template->stop_words;
    int32_t id;
    size_t i = 0;
    if (chat->template->replace_eos)
        KT_TRY(put_special(chat, stop[i++], &chat->eos));
    if (chat->eos < 0)
        KT_TRY(put_special(chat, "<|endoftext|>", &chat->eos));
    for (; i < KT_TEMPLATE_STOP_WORDS && stop[i]; i++)
        KT_TRY(put_special(chat, stop[i], &id));
    return kt_added_index(chat->tokenizer->ctx, chat->tokenizer->path, &chat->added,
                          &chat->tokenizer->normalizer);
}

kt_status kt_chat_open(const kt_tokenizer *tokenizer, const char *template_name, int32_t thinking,
                       struct kt_chat *chat)
{
    KT_TRY(kt_check_given(tokenizer->ctx, template_name, "the name of a template"));
    *chat = (struct kt_chat){.tokenizer = tokenizer,
                             .template = kt_template_find(template_name),
                             .eos = tokenizer->eos,
                             .thinking = thinking};
    if ((unsigned)thinking > KT_THINKING_EITHER)
        return kt_fail(tokenizer->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "thinking is %d; it must be one of kt_thinking", thinking);
    if (!chat->template)
        return kt_fail(tokenizer->ctx, KT_ERROR_NOT_FOUND,
                       "there is no template \"%s\"; the templates are %s", template_name,
                       kt_template_names());
    if (!kt_added_copy(&chat->added, &tokenizer->added))
        return memory(tokenizer);
    kt_status status = fix_special_tokens(chat);
    if (status != KT_OK)
        kt_chat_close(chat);
    return status;
}

void kt_chat_close(struct kt_chat *chat)
{
    kt_added_free(&chat->added);
}

/* Replaces the first `name` in `text`. False when memory ran out. */
static bool substitute(struct kt_bytes *text, const char *name, const char *value, size_t length)
{
    size_t size = strlen(name);
    char *at = text->count ? memmem(text->data, text->count, name, size) : NULL;
    if (!at)
        return true;
    size_t before = (size_t)(at - text->data), after = text->count - before - size;
    if (!kt_grow((void **)&text->data, &text->capacity, before + length + after, 1))
        return false;
    memmove(text->data + before + length, text->data + before + size, after);
    if (length)
        memcpy(text->data + before, value, length);
    text->count = before + length + after;
    return true;
}

/* `turn_number` (NULL = none) stands for {{idx}}, which LLaMA-Factory replaces after the content is
 * in place, in the content too. */
static kt_status encode_text(const struct kt_chat *chat, const char *slot, const char *content,
                             size_t length, const char *turn_number, struct kt_ids *ids)
{
    struct kt_bytes text = {0};
    bool ok = kt_bytes_append(&text, slot, strlen(slot)) &&
              substitute(&text, "{{content}}", content, length) &&
              (!turn_number || substitute(&text, "{{idx}}", turn_number, strlen(turn_number)));
    kt_status status =
        ok ? kt_tokenizer_encode_with(chat->tokenizer, &chat->added, text.data, text.count, ids)
           : memory(chat->tokenizer);
    free(text.data);
    return status;
}

static kt_status encode_slots(const struct kt_chat *chat, const struct kt_slot *slots,
                              const char *content, size_t length, const char *turn_number,
                              struct kt_ids *ids)
{
    for (size_t i = 0; i < KT_TEMPLATE_SLOTS && slots[i].kind != KT_SLOT_END; i++) {
        if (slots[i].kind == KT_SLOT_TEXT) {
            KT_TRY(encode_text(chat, slots[i].text, content, length, turn_number, ids));
            continue;
        }
        int32_t id = slots[i].kind == KT_SLOT_BOS ? chat->tokenizer->bos : chat->eos;
        if (id >= 0 && !kt_ids_push(ids, id))
            return memory(chat->tokenizer);
    }
    return KT_OK;
}

/* The first user message of templates that put the system text into it; it has no {{idx}}. */
static kt_status encode_first_user(const struct kt_chat *chat, const struct kt_turn *turn,
                                   const char *system, size_t system_length, struct kt_ids *ids)
{
    const char *format = chat->template->system[0].text;
    struct kt_bytes text = {0};
    bool ok = (!system_length || (kt_bytes_append(&text, format, strlen(format)) &&
                                  substitute(&text, "{{content}}", system, system_length))) &&
              kt_bytes_append(&text, turn->text, turn->length);
    kt_status status = ok ? encode_slots(chat, chat->template->user, text.data ? text.data : "",
                                         text.count, NULL, ids)
                          : memory(chat->tokenizer);
    free(text.data);
    return status;
}

kt_status kt_chat_encode(const struct kt_chat *chat, size_t index, const struct kt_turn *turn,
                         const char *system, size_t system_length, struct kt_ids *ids)
{
    const struct kt_template *t = chat->template;
    char number[24];
    const char *idx = t->system_in_user ? NULL : number;
    snprintf(number, sizeof number, "%zu", index / 2);
    if (index == 0) {
        KT_TRY(encode_slots(chat, t->prefix, "", 0, NULL, ids));
        if (t->system_in_user && turn->role == KT_ROLE_USER)
            return encode_first_user(chat, turn, system, system_length, ids);
        if (system_length && !t->system_in_user)
            KT_TRY(encode_slots(chat, t->system, system, system_length, NULL, ids));
    }
    if (turn->role == KT_ROLE_ASSISTANT)
        return encode_slots(chat, t->assistant, turn->text, turn->length, NULL, ids);
    if (turn->role == KT_ROLE_USER)
        return encode_slots(chat, t->user, turn->text, turn->length, idx, ids);
    if (turn->role == KT_ROLE_OBSERVATION)
        return encode_slots(chat, t->observation[0].kind ? t->observation : t->user, turn->text,
                            turn->length, NULL, ids);
    return kt_fail(chat->tokenizer->ctx, KT_ERROR_UNSUPPORTED,
                   "messages that call functions are not supported yet");
}

static bool read_role(const char *name, enum kt_role *role)
{
    static const char *const names[] = {"user", "assistant", "observation", "function"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            *role = (enum kt_role)i;
            return true;
        }
    }
    return false;
}

/* What was thought before earlier replies is not said again. */
static kt_status encode_turn(const struct kt_chat *chat, size_t i, struct kt_turn turn,
                             const char *system, struct kt_ids *ids)
{
    struct kt_bytes buffer = {0};
    kt_status status = KT_OK;
    if (turn.role == KT_ROLE_ASSISTANT)
        status = kt_chat_remove_thoughts(chat, &turn, &buffer);
    if (status == KT_OK)
        status = kt_chat_encode(chat, i, &turn, system, strlen(system), ids);
    free(buffer.data);
    return status;
}

/* Message i of an array whose elements have the size that the first one says. */
static const kt_message *message_at(const kt_message *messages, size_t i)
{
    return (const kt_message *)((const char *)messages + i * messages->size);
}

static kt_status check_messages(kt_context *ctx, const kt_message *messages, size_t num_messages)
{
    if (num_messages)
        KT_TRY(kt_check_given(ctx, messages, "messages"));
    for (size_t i = 0; i < num_messages; i++) {
        kt_message known;
        const kt_message *m = i ? message_at(messages, i) : messages;
        KT_TRY(kt_options_copy(ctx, &known, m, KT_SIZED(kt_message)));
        if (known.size != messages->size)
            return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                           "message %zu has the size %zu, and the first one %zu", i, known.size,
                           messages->size);
        KT_TRY(kt_check_given(ctx, known.role, "the role of a message"));
        KT_TRY(kt_check_given(ctx, known.content, "the content of a message"));
    }
    return KT_OK;
}

static kt_status encode_messages(const struct kt_chat *chat, const kt_message *messages,
                                 size_t num_messages, struct kt_ids *ids)
{
    kt_context *ctx = chat->tokenizer->ctx;
    const char *system = chat->template->default_system;
    KT_TRY(check_messages(ctx, messages, num_messages));
    if (num_messages && strcmp(messages->role, "system") == 0) {
        if (*messages->content)
            system = messages->content;
        messages = message_at(messages, 1);
        num_messages--;
    }
    for (size_t i = 0; i < num_messages; i++) {
        const kt_message *m = message_at(messages, i);
        struct kt_turn turn = {0, m->content, strlen(m->content)};
        if (!read_role(m->role, &turn.role) || (turn.role & 1) != (i & 1))
            return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                           "message %zu has the role \"%s\"; user and assistant take turns, after "
                           "one system message at most",
                           i, m->role);
        KT_TRY(encode_turn(chat, i, turn, system, ids));
    }
    if (num_messages % 2 == 0)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "the last message must be the user's");
    return chat->template->thought_begin && chat->thinking != KT_THINKING_ON
               ? kt_chat_encode_empty_thought(chat, ids)
               : KT_OK;
}

kt_status kt_tokenizer_apply_template(const kt_tokenizer *tokenizer, const char *template_name,
                                      const kt_message *messages, size_t num_messages,
                                      int32_t **ids, size_t *num_ids)
{
    return kt_tokenizer_apply_template_thinking(tokenizer, template_name, KT_THINKING_ON, messages,
                                                num_messages, ids, num_ids);
}

kt_status kt_tokenizer_apply_template_thinking(const kt_tokenizer *tokenizer,
                                               const char *template_name, int32_t thinking,
                                               const kt_message *messages, size_t num_messages,
                                               int32_t **ids, size_t *num_ids)
{
    struct kt_chat chat;
    struct kt_ids all = {0};
    KT_ENTER_OUT(tokenizer, "tokenizer", ids);
    KT_TRY(kt_check_out(tokenizer->ctx, num_ids, __func__));
    *num_ids = 0;
    KT_TRY(kt_chat_open(tokenizer, template_name, thinking, &chat));
    kt_status status = encode_messages(&chat, messages, num_messages, &all);
    kt_chat_close(&chat);
    if (status != KT_OK) {
        free(all.data);
        return status;
    }
    *ids = all.data;
    *num_ids = all.count;
    return KT_OK;
}

kt_status kt_tokenizer_stop_ids(const kt_tokenizer *tokenizer, const char *template_name,
                                int32_t *ids, size_t capacity, size_t *num)
{
    struct kt_chat chat;
    int32_t all[KT_TEMPLATE_STOP_WORDS + 1];
    size_t count = 0;
    KT_ENTER(tokenizer, "tokenizer");
    KT_TRY(kt_check_out(tokenizer->ctx, num, __func__));
    *num = 0;
    if (capacity)
        KT_TRY(kt_check_given(tokenizer->ctx, ids, "ids"));
    KT_TRY(kt_chat_open(tokenizer, template_name, KT_THINKING_ON, &chat));
    const char *const *stop = chat.template->stop_words;
    all[count++] = chat.eos;
    for (size_t i = chat.template->replace_eos; i < KT_TEMPLATE_STOP_WORDS && stop[i]; i++)
        all[count++] = kt_added_find(&chat.added, stop[i], strlen(stop[i]))->id;
    kt_chat_close(&chat);
    if (count > capacity)
        return kt_fail(tokenizer->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "template %s has %zu stop ids, and there is room for %zu", template_name,
                       count, capacity);
    memcpy(ids, all, count * sizeof *ids);
    *num = count;
    return KT_OK;
}
