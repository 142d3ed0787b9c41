/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "core/context.h"
#include "formats/json.h"
#include "text/pretokenize.h"
#include "text/utf8.h"

struct reader {
    kt_context *ctx;
    const char *path;
    struct kt_pretokenizer *out;
};

static kt_status unsupported(const struct reader *r, const char *key, const char *value)
{
    return kt_fail(r->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: pre_tokenizer: %s \"%s\" is not supported; Split, Digits, Metaspace and "
                   "ByteLevel are",
                   r->path, key, value);
}

static kt_status compile(const struct reader *r, const char *pattern, struct kt_regex **out)
{
    size_t size = strlen(r->path) + 32;
    char *where = malloc(size);
    if (!where)
        return kt_fail_memory(r->ctx, size, "a regular expression");
    snprintf(where, size, "%s: pre_tokenizer", r->path);
    kt_status status = kt_regex_compile(r->ctx, where, pattern, out);
    free(where);
    return status;
}

/* `pattern` NULL = Metaspace. */
static kt_status add_step(const struct reader *r, const char *pattern,
                          enum kt_split_behavior behavior, bool invert)
{
    struct kt_pretokenizer *p = r->out;
    struct kt_split_step *steps = realloc(p->steps, (p->num_steps + 1) * sizeof *steps);
    if (!steps)
        return kt_fail_memory(r->ctx, sizeof *steps, "the pre-tokenizer");
    p->steps = steps;
    steps[p->num_steps] = (struct kt_split_step){NULL, behavior, invert};
    if (pattern)
        KT_TRY(compile(r, pattern, &steps[p->num_steps].regex));
    p->num_steps++;
    return KT_OK;
}

/* A literal as a regular expression. */
static char *quote(const char *text)
{
    char *out = malloc(2 * strlen(text) + 1), *to = out;
    for (; out && *text; text++) {
        if (strchr("\\^$.|?*+()[]{}-", *text))
            *to++ = '\\';
        *to++ = *text;
    }
    if (out)
        *to = 0;
    return out;
}

static kt_status add_literal(const struct reader *r, const char *literal,
                             enum kt_split_behavior behavior, bool invert)
{
    char *quoted = quote(literal);
    if (!quoted)
        return kt_fail_memory(r->ctx, strlen(literal), "the pre-tokenizer");
    kt_status status = add_step(r, quoted, behavior, invert);
    free(quoted);
    return status;
}

static kt_status read_behavior(const struct reader *r, const struct kt_json *json,
                               enum kt_split_behavior *behavior)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    KT_TRY(kt_json_string(json, "behavior", KT_JSON_REQUIRED, &name));
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) == 0) {
            *behavior = (enum kt_split_behavior)i;
            return KT_OK;
        }
    }
    return unsupported(r, "behavior", name);
}

static kt_status read_split(const struct reader *r, const struct kt_json *json)
{
    enum kt_split_behavior behavior = KT_SPLIT_ISOLATED;
    bool invert = false;
    const char *pattern = NULL, *literal = NULL;
    json_t *object;
    KT_TRY(read_behavior(r, json, &behavior));
    KT_TRY(kt_json_bool(json, "invert", KT_JSON_OPTIONAL, &invert));
    KT_TRY(kt_json_container(json, "pattern", KT_JSON_REQUIRED, JSON_OBJECT, &object));
    struct kt_json inner = {r->ctx, r->path, "pre_tokenizer.pattern.", object};
    KT_TRY(kt_json_string(&inner, "String", KT_JSON_OPTIONAL, &literal));
    if (!literal) {
        KT_TRY(kt_json_string(&inner, "Regex", KT_JSON_REQUIRED, &pattern));
        return add_step(r, pattern, behavior, invert);
    }
    return add_literal(r, literal, behavior, invert);
}

static kt_status read_digits(const struct reader *r, const struct kt_json *json)
{
    bool individual = false;
    KT_TRY(kt_json_bool(json, "individual_digits", KT_JSON_OPTIONAL, &individual));
    return add_step(r, individual ? "\\p{N}" : "\\p{N}+", KT_SPLIT_ISOLATED, false);
}

/* Older files have add_prefix_space in place of prepend_scheme, newer ones both. */
static kt_status read_prepend(const struct reader *r, const struct kt_json *json)
{
    static const char *const names[] = {"first", "never", "always"};
    const char *scheme = "always";
    bool add_space = true;
    KT_TRY(kt_json_string(json, "prepend_scheme", KT_JSON_OPTIONAL, &scheme));
    KT_TRY(kt_json_bool(json, "add_prefix_space", KT_JSON_OPTIONAL, &add_space));
    if (!add_space && strcmp(scheme, "never") != 0)
        return kt_fail(
            r->ctx, KT_ERROR_FORMAT,
            "%s: pre_tokenizer: \"add_prefix_space\" is false, but \"prepend_scheme\" is "
            "\"%s\"",
            r->path, scheme);
    for (int i = 0; i < 3; i++) {
        if (strcmp(scheme, names[i]) == 0) {
            r->out->metaspace.prepend = i;
            return KT_OK;
        }
    }
    return unsupported(r, "prepend_scheme", scheme);
}

static kt_status read_metaspace(const struct reader *r, const struct kt_json *json)
{
    struct kt_replacement *space = &r->out->metaspace.space;
    const char *to;
    bool split = true;
    if (space->from)
        return unsupported(r, "more than one", "Metaspace");
    KT_TRY(kt_json_string(json, "replacement", KT_JSON_REQUIRED, &to));
    KT_TRY(kt_json_bool(json, "split", KT_JSON_OPTIONAL, &split));
    KT_TRY(read_prepend(r, json));
    size_t length = strlen(to);
    if (!length || kt_utf8_next(to, length).length != length)
        return kt_fail(r->ctx, KT_ERROR_FORMAT,
                       "%s: pre_tokenizer: \"replacement\" of Metaspace is no character", r->path);
    *space = (struct kt_replacement){strdup(" "), strdup(to), 1, length};
    if (!space->from || !space->to)
        return kt_fail_memory(r->ctx, length, "the pre-tokenizer");
    KT_TRY(add_step(r, NULL, KT_SPLIT_ISOLATED, false));
    return split ? add_literal(r, to, KT_SPLIT_MERGED_WITH_NEXT, false) : KT_OK;
}

static kt_status read_byte_level(struct reader *r, const struct kt_json *json)
{
    bool use_regex = true;
    r->out->add_space = true;
    KT_TRY(kt_json_bool(json, "add_prefix_space", KT_JSON_OPTIONAL, &r->out->add_space));
    KT_TRY(kt_json_bool(json, "use_regex", KT_JSON_OPTIONAL, &use_regex));
    r->out->bytes = true;
    return use_regex ? compile(r,
                               "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                               "\\s+(?!\\S)|\\s+",
                               &r->out->byte_level)
                     : KT_OK;
}

static kt_status read_one(struct reader *r, const json_t *value)
{
    struct kt_json json = {r->ctx, r->path, "pre_tokenizer.", value};
    const char *type;
    if (r->out->bytes)
        return kt_fail(r->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: pre_tokenizer: steps after ByteLevel are not supported", r->path);
    KT_TRY(kt_json_string(&json, "type", KT_JSON_REQUIRED, &type));
    if (strcmp(type, "Split") == 0)
        return read_split(r, &json);
    if (strcmp(type, "Digits") == 0)
        return read_digits(r, &json);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(r, &json);
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(r, &json);
    return unsupported(r, "type", type);
}

static kt_status read_all(struct reader *r, const json_t *value)
{
    struct kt_json json = {r->ctx, r->path, "pre_tokenizer.", value};
    const char *type;
    json_t *list;
    size_t i;
    KT_TRY(kt_json_string(&json, "type", KT_JSON_REQUIRED, &type));
    if (strcmp(type, "Sequence") != 0) {
        r->out->lone_byte_level = strcmp(type, "ByteLevel") == 0;
        return read_one(r, value);
    }
    KT_TRY(kt_json_container(&json, "pretokenizers", KT_JSON_REQUIRED, JSON_ARRAY, &list));
    json_t *item;
    json_array_foreach(list, i, item) KT_TRY(read_one(r, item));
    return KT_OK;
}

kt_status kt_pretokenizer_read(kt_context *ctx, const char *path, const json_t *json,
                               struct kt_pretokenizer *out)
{
    struct reader r = {ctx, path, out};
    kt_status status = !json || json_is_null(json) ? KT_OK : read_all(&r, json);
    if (status != KT_OK)
        kt_pretokenizer_free(out);
    return status;
}

void kt_pretokenizer_free(struct kt_pretokenizer *p)
{
    for (size_t i = 0; i < p->num_steps; i++)
        kt_regex_free(p->steps[i].regex);
    free(p->steps);
    kt_replacement_free(&p->metaspace.space);
    kt_regex_free(p->byte_level);
    *p = (struct kt_pretokenizer){0};
}
