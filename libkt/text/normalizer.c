/* SPDX-License-Identifier: Apache-2.0 */
#include "text/normalizer.h"

#include "core/context.h"
#include "core/memory.h"
#include "text/normalize.h"

#define MAX_DEPTH 8

void kt_replacement_free(struct kt_replacement *r)
{
    free(r->from);
    free(r->to);
    *r = (struct kt_replacement){0};
}

static kt_status copy(const struct kt_json *json, const char *text, char **out, size_t *length)
{
    *length = strlen(text);
    *out = strdup(text);
    return *out ? KT_OK : kt_fail_memory(json->ctx, *length, json->path);
}

kt_status kt_replacement_read(const struct kt_json *json, struct kt_replacement *out)
{
    const char *from, *to;
    json_t *pattern;
    KT_TRY(kt_json_container(json, "pattern", KT_JSON_REQUIRED, JSON_OBJECT, &pattern));
    if (json_object_get(pattern, "Regex"))
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: %spattern: Replace with a regular expression is not supported; a "
                       "String is",
                       json->path, json->prefix);
    struct kt_json inner = {json->ctx, json->path, json->prefix, pattern};
    KT_TRY(kt_json_string(&inner, "String", KT_JSON_REQUIRED, &from));
    KT_TRY(kt_json_string(json, "content", KT_JSON_REQUIRED, &to));
    KT_TRY(copy(json, from, &out->from, &out->from_length));
    return copy(json, to, &out->to, &out->to_length);
}

static const char *find(const struct kt_replacement *r, const char *at, const char *end)
{
    if (r->from_length == 1)
        return memchr(at, r->from[0], (size_t)(end - at));
    return r->from_length ? memmem(at, (size_t)(end - at), r->from, r->from_length) : NULL;
}

/* The length of what kt_replace makes, as far as 64 bits hold it. */
static uint64_t replaced_length(const struct kt_replacement *r, const char *text, size_t length)
{
    uint64_t matches = 0, more;
    const char *end = text + length;
    for (const char *at = text; (at = find(r, at, end)) != NULL; at += r->from_length)
        matches++;
    return kt_mul_u64(matches, r->to_length, &more) ? more + (length - matches * r->from_length)
                                                    : UINT64_MAX;
}

kt_status kt_replace(struct kt_budget *budget, const char *what, const struct kt_replacement *r,
                     const char *text, size_t length, struct kt_bytes *out)
{
    uint64_t size = replaced_length(r, text, length);
    const char *at = text, *end = text + length, *match;
    KT_TRY(kt_budget_bytes(budget, size, what));
    if (!size)
        return KT_OK;
    if (!kt_grow((void **)&out->data, &out->capacity, out->count + size, 1))
        return kt_fail_memory(budget->ctx, size, what);
    char *to = out->data + out->count;
    for (; (match = find(r, at, end)) != NULL; at = match + r->from_length) {
        to = mempcpy(to, at, (size_t)(match - at));
        to = mempcpy(to, r->to, r->to_length);
    }
    if (at < end)
        memcpy(to, at, (size_t)(end - at));
    out->count += size;
    return KT_OK;
}

static struct kt_normalizer_step *add_step(struct kt_normalizer *n)
{
    struct kt_normalizer_step *steps = realloc(n->steps, (n->count + 1) * sizeof *steps);
    if (!steps)
        return NULL;
    n->steps = steps;
    steps[n->count] = (struct kt_normalizer_step){0};
    return &steps[n->count++];
}

static kt_status read_prepend(const struct kt_json *json, struct kt_replacement *out)
{
    const char *text;
    KT_TRY(kt_json_string(json, "prepend", KT_JSON_REQUIRED, &text));
    return copy(json, text, &out->to, &out->to_length);
}

static kt_status read_any(const struct kt_json *json, struct kt_normalizer *out, int depth);

static kt_status read_sequence(const struct kt_json *json, struct kt_normalizer *out, int depth)
{
    json_t *list, *item;
    size_t i;
    KT_TRY(kt_json_container(json, "normalizers", KT_JSON_REQUIRED, JSON_ARRAY, &list));
    json_array_foreach(list, i, item)
    {
        struct kt_json inner = {json->ctx, json->path, "normalizer.normalizers.", item};
        KT_TRY(read_any(&inner, out, depth + 1));
    }
    return KT_OK;
}

static kt_status read_any(const struct kt_json *json, struct kt_normalizer *out, int depth)
{
    const char *type;
    KT_TRY(kt_json_string(json, "type", KT_JSON_REQUIRED, &type));
    if (strcmp(type, "Sequence") == 0 && depth < MAX_DEPTH)
        return read_sequence(json, out, depth);
    bool prepend = strcmp(type, "Prepend") == 0, replace = strcmp(type, "Replace") == 0;
    if (!prepend && !replace && strcmp(type, "NFC") != 0)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: the normalizer \"%s\" is not supported; NFC, Prepend and Replace are, "
                       "alone or in a Sequence",
                       json->path, type);
    struct kt_normalizer_step *step = add_step(out);
    if (!step)
        return kt_fail_memory(json->ctx, sizeof *step, json->path);
    step->kind = prepend ? KT_NORMALIZE_PREPEND : replace ? KT_NORMALIZE_REPLACE : KT_NORMALIZE_NFC;
    if (replace)
        return kt_replacement_read(json, &step->replacement);
    return prepend ? read_prepend(json, &step->replacement) : KT_OK;
}

kt_status kt_normalizer_read(kt_context *ctx, const char *path, const json_t *json,
                             struct kt_normalizer *out)
{
    struct kt_json object = {ctx, path, "normalizer.", json};
    return !json || json_is_null(json) ? KT_OK : read_any(&object, out, 0);
}

void kt_normalizer_free(struct kt_normalizer *n)
{
    for (size_t i = 0; i < n->count; i++)
        kt_replacement_free(&n->steps[i].replacement);
    free(n->steps);
    *n = (struct kt_normalizer){0};
}

static const char name[] = "the normalizer";

static kt_status apply_step(struct kt_budget *budget, const struct kt_normalizer_step *step,
                            const struct kt_bytes *from, struct kt_bytes *out)
{
    const struct kt_replacement *r = &step->replacement;
    if (step->kind == KT_NORMALIZE_REPLACE)
        return kt_replace(budget, name, r, from->data, from->count, out);
    KT_TRY(kt_budget_bytes(budget, from->count + r->to_length, name));
    bool ok = step->kind == KT_NORMALIZE_NFC ? kt_normalize_nfc(from->data, from->count, out)
                                             : kt_bytes_append(out, r->to, r->to_length) &&
                                                   kt_bytes_append(out, from->data, from->count);
    return ok ? KT_OK : kt_fail_memory(budget->ctx, from->count, name);
}

kt_status kt_normalizer_apply(struct kt_budget *budget, const struct kt_normalizer *n,
                              const char *text, size_t length, struct kt_bytes *out)
{
    struct kt_bytes from = {0};
    kt_status status = KT_OK;
    out->count = 0;
    if (!kt_bytes_append(out, text, length))
        return kt_fail_memory(budget->ctx, length, name);
    for (size_t i = 0; i < n->count && status == KT_OK && out->count; i++) { /* "" stays "" */
        struct kt_bytes before = *out;
        *out = from;
        from = before;
        out->count = 0;
        status = apply_step(budget, &n->steps[i], &from, out);
    }
    free(from.data);
    return status;
}
