/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "text/dataset.h"

struct converter {
    const struct kt_convert *options;
    const struct kt_dataset_info *info;
    kt_context *ctx;
    const json_t *entry;
    size_t number;
    struct kt_conversation *out;
};

void kt_conversation_free(struct kt_conversation *c)
{
    for (size_t i = 0; i < c->num_owned; i++)
        free(c->owned[i]);
    free(c->owned);
    free(c->turns);
    *c = (struct kt_conversation){0};
}

static kt_status memory(const struct converter *c)
{
    return kt_fail_memory(c->ctx, 0, c->info->path);
}

static kt_status malformed(const struct converter *c, const char *key, const char *want)
{
    return kt_fail(c->ctx, KT_ERROR_FORMAT, "%s: entry %zu: \"%s\" must be %s", c->info->path,
                   c->number, key, want);
}

/* Hands `bytes` to the conversation. */
static kt_status own(const struct converter *c, struct kt_bytes *bytes)
{
    struct kt_conversation *out = c->out;
    if (!kt_grow((void **)&out->owned, &out->owned_capacity, out->num_owned + 1,
                 sizeof *out->owned)) {
        free(bytes->data);
        return memory(c);
    }
    out->owned[out->num_owned++] = bytes->data;
    return KT_OK;
}

/* Appends text with each `name` in it replaced by `value` (NULL = leave it). */
static bool append_filled(struct kt_bytes *out, const char *text, size_t length, const char *name,
                          const char *value)
{
    const char *end = text + length, *at;
    while (value && (at = memmem(text, (size_t)(end - text), name, strlen(name))) != NULL) {
        if (!kt_bytes_append(out, text, (size_t)(at - text)) ||
            !kt_bytes_append(out, value, strlen(value)))
            return false;
        text = at + strlen(name);
    }
    return kt_bytes_append(out, text, (size_t)(end - text));
}

/* Replaces {{name}} and {{author}}; the text stays borrowed when there is nothing to fill in. */
static kt_status fill(const struct converter *c, const char **text, size_t *length)
{
    const char *name = c->options->name, *author = c->options->author;
    if ((!name && !author) || !memmem(*text, *length, "{{", 2))
        return KT_OK;
    struct kt_bytes named = {0}, full = {0};
    bool ok = append_filled(&named, *text, *length, "{{name}}", name) &&
              append_filled(&full, named.data, named.count, "{{author}}", author);
    free(named.data);
    if (!ok) {
        free(full.data);
        return memory(c);
    }
    *text = full.data;
    *length = full.count;
    return own(c, &full);
}

static kt_status add_turn(const struct converter *c, enum kt_role role, const char *text,
                          size_t length)
{
    struct kt_conversation *out = c->out;
    KT_TRY(fill(c, &text, &length));
    if (!kt_grow((void **)&out->turns, &out->capacity, out->count + 1, sizeof *out->turns))
        return memory(c);
    out->turns[out->count++] = (struct kt_turn){role, text, length};
    return KT_OK;
}

static kt_status add_string(const struct converter *c, enum kt_role role, const json_t *value,
                            const char *key)
{
    if (!json_is_string(value))
        return malformed(c, key, "a string");
    return add_turn(c, role, json_string_value(value), json_string_length(value));
}

/* A column's value; NULL when the column is not in use, absent or null. */
static const json_t *column(const struct converter *c, const char *key)
{
    const json_t *value = key ? json_object_get(c->entry, key) : NULL;
    return json_is_null(value) ? NULL : value;
}

static kt_status set_system(const struct converter *c, const json_t *value, const char *key)
{
    if (!value)
        return KT_OK;
    if (!json_is_string(value))
        return malformed(c, key, "a string");
    c->out->system = json_string_value(value);
    c->out->system_length = json_string_length(value);
    return fill(c, &c->out->system, &c->out->system_length);
}

static kt_status refuse_tools(const struct converter *c)
{
    const json_t *tools = column(c, c->info->tools);
    if (!tools || (json_is_string(tools) && json_string_length(tools) == 0))
        return KT_OK;
    return kt_fail(c->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: entry %zu: \"%s\": tool descriptions are not supported; take them out",
                   c->info->path, c->number, c->info->tools);
}

static kt_status add_history(const struct converter *c)
{
    const json_t *history = column(c, c->info->history), *pair;
    size_t i;
    if (!json_is_array(history))
        return KT_OK;
    json_array_foreach((json_t *)history, i, pair)
    {
        if (json_array_size(pair) != 2)
            return malformed(c, c->info->history, "a list of [question, answer] pairs");
        KT_TRY(add_string(c, KT_ROLE_USER, json_array_get(pair, 0), c->info->history));
        KT_TRY(add_string(c, KT_ROLE_ASSISTANT, json_array_get(pair, 1), c->info->history));
    }
    return KT_OK;
}

/* Prompt and query joined with a newline, without those that are empty. */
static kt_status add_question(const struct converter *c)
{
    const char *keys[] = {c->info->prompt, c->info->query};
    struct kt_bytes text = {0};
    for (int i = 0; i < 2; i++) {
        const json_t *value = column(c, keys[i]);
        if (value && !json_is_string(value)) {
            free(text.data);
            return malformed(c, keys[i], "a string");
        }
        size_t length = json_string_length(value);
        if (length && (!kt_bytes_append(&text, "\n", text.count != 0) ||
                       !kt_bytes_append(&text, json_string_value(value), length))) {
            free(text.data);
            return memory(c);
        }
    }
    if (text.data)
        KT_TRY(own(c, &text));
    return add_turn(c, KT_ROLE_USER, text.data ? text.data : "", text.count);
}

static kt_status convert_alpaca(const struct converter *c, const char **why)
{
    const json_t *response = column(c, c->info->response);
    KT_TRY(add_history(c));
    KT_TRY(add_question(c));
    KT_TRY(set_system(c, column(c, c->info->system), c->info->system));
    if (!json_is_string(response)) {
        *why = "it has no response";
        return KT_OK;
    }
    return add_string(c, KT_ROLE_ASSISTANT, response, c->info->response);
}

static bool same(const char *tag, const char *role)
{
    return tag && strcmp(tag, role) == 0;
}

/* The role of a tag at a place in the conversation; false where it may not stand. */
static bool role_of(const struct kt_dataset_info *info, const char *tag, bool answer,
                    enum kt_role *role)
{
    if (same(answer ? info->assistant_tag : info->user_tag, tag))
        *role = answer ? KT_ROLE_ASSISTANT : KT_ROLE_USER;
    else if (same(answer ? info->function_tag : info->observation_tag, tag))
        *role = answer ? KT_ROLE_FUNCTION : KT_ROLE_OBSERVATION;
    else
        return false;
    return true;
}

static kt_status message_role(const struct converter *c, const json_t *message, const char **role)
{
    const json_t *value = c->info->role_tag ? json_object_get(message, c->info->role_tag) : NULL;
    if (!json_is_string(value))
        return malformed(c, c->info->role_tag ? c->info->role_tag : "role_tag",
                         "a string in every message");
    *role = json_string_value(value);
    return KT_OK;
}

static kt_status add_message(const struct converter *c, const json_t *message, const char **why)
{
    const char *tag = NULL;
    enum kt_role role;
    KT_TRY(message_role(c, message, &tag));
    if (!role_of(c->info, tag, c->out->count % 2 == 1, &role)) {
        *why = "its roles do not take turns";
        return KT_OK;
    }
    if (role == KT_ROLE_FUNCTION)
        return kt_fail(
            c->ctx, KT_ERROR_UNSUPPORTED,
            "%s: entry %zu: \"%s\": calls of functions are not supported; take the entry "
            "out",
            c->info->path, c->number, tag);
    if (!c->info->content_tag)
        return malformed(c, "content_tag", "given in dataset_info.json");
    return add_string(c, role, json_object_get(message, c->info->content_tag),
                      c->info->content_tag);
}

static kt_status convert_sharegpt(const struct converter *c, const char **why)
{
    const json_t *messages = column(c, c->info->messages);
    const char *first = NULL;
    size_t i = 0;
    if (!json_is_array(messages))
        return malformed(c, c->info->messages ? c->info->messages : "messages",
                         "a list of messages");
    KT_TRY(set_system(c, column(c, c->info->system), c->info->system));
    if (json_array_size(messages)) {
        KT_TRY(message_role(c, json_array_get(messages, 0), &first));
        if (same(c->info->system_tag, first)) {
            const char *key = c->info->content_tag ? c->info->content_tag : "content_tag";
            KT_TRY(set_system(c, json_object_get(json_array_get(messages, 0), key), key));
            i = 1;
        }
    }
    for (; i < json_array_size(messages) && !*why; i++)
        KT_TRY(add_message(c, json_array_get(messages, i), why));
    if (!*why && (c->out->count == 0 || c->out->count % 2))
        *why = "its last message is not an answer";
    return KT_OK;
}

kt_status kt_dataset_convert(const struct kt_convert *options, const json_t *entry, size_t number,
                             struct kt_conversation *conversation, const char **why)
{
    struct converter c = {options, options->info, options->ctx, entry, number, conversation};
    *why = NULL;
    KT_TRY(refuse_tools(&c));
    return c.info->sharegpt ? convert_sharegpt(&c, why) : convert_alpaca(&c, why);
}
