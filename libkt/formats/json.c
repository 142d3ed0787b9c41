/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/budget.h"
#include "core/context.h"
#include "formats/file.h"
#include "formats/json_read.h"

static const char *const type_names[] = {
    [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "a list",  [JSON_STRING] = "a string",
    [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number", [JSON_TRUE] = "true",
    [JSON_FALSE] = "false",        [JSON_NULL] = "null",
};

struct builder {
    struct kt_json_reader reader;
    struct kt_budget budget;
    bool lenient;
    kt_status status; /* of the budget */
};

static bool charge(struct builder *b, uint64_t bytes)
{
    b->status = kt_budget_bytes(&b->budget, bytes, "its contents");
    return b->status == KT_OK;
}

static json_t *build(struct builder *b, int depth);

static bool build_items(struct builder *b, json_t *array, int depth)
{
    struct kt_json_reader *r = &b->reader;
    bool more = kt_json_peek(r) != ']';
    if (!more)
        return kt_json_take(r, ']', "");
    while (more) {
        json_t *item = build(b, depth);
        if (!item)
            return false;
        if (json_array_append_new(array, item) != 0 || !kt_json_more(r, ']', &more))
            return false;
    }
    return true;
}

/* A key that came before gets the later value, as in Python. */
static bool build_pair(struct builder *b, json_t *object, int depth)
{
    struct kt_json_reader *r = &b->reader;
    const char *text;
    size_t length;
    if (!kt_json_read_string(r, &text, &length))
        return false;
    if (memchr(text, 0, length)) {
        r->problem = "a key holds a NUL character";
        return false;
    }
    if (!charge(b, KT_JSON_KEY_COST + length))
        return false;
    char *key = strndup(text, length); /* the value may need the reader's buffer */
    json_t *value = NULL;
    bool ok = key && kt_json_take(r, ':', "expected a colon") && (value = build(b, depth)) &&
              json_object_set_new_nocheck(object, key, value) == 0;
    free(key);
    return ok;
}

static bool build_pairs(struct builder *b, json_t *object, int depth)
{
    struct kt_json_reader *r = &b->reader;
    bool more = kt_json_peek(r) != '}';
    if (!more)
        return kt_json_take(r, '}', "");
    while (more)
        if (!build_pair(b, object, depth) || !kt_json_more(r, '}', &more))
            return false;
    return true;
}

static json_t *build_container(struct builder *b, char open, int depth)
{
    b->reader.at++;
    if (depth >= KT_JSON_DEPTH) {
        b->reader.problem = "lists and objects are nested too deeply";
        return NULL;
    }
    if (!charge(b, open == '[' ? KT_JSON_ARRAY_COST : KT_JSON_OBJECT_COST))
        return NULL;
    json_t *value = open == '[' ? json_array() : json_object();
    bool ok = value &&
              (open == '[' ? build_items(b, value, depth + 1) : build_pairs(b, value, depth + 1));
    if (ok)
        return value;
    json_decref(value);
    return NULL;
}

static json_t *build_string(struct builder *b)
{
    const char *text;
    size_t length;
    if (!kt_json_read_string(&b->reader, &text, &length) ||
        !charge(b, KT_JSON_STRING_COST + length))
        return NULL;
    return json_stringn_nocheck(text, length);
}

/* jansson has no number that is none. In data an empty cell of a table is written so, which is
 * null; elsewhere it becomes a string, which is no number either and harms nobody unless read. */
static json_t *build_word(struct builder *b, const char *word)
{
    if (word[0] == 't' || word[0] == 'f')
        return json_boolean(word[0] == 't');
    return word[0] == 'n' || b->lenient ? json_null() : json_string_nocheck(word);
}

static json_t *build_number(struct builder *b)
{
    struct kt_json_number number;
    if (!kt_json_read_number(&b->reader, &number) || !charge(b, KT_JSON_NUMBER_COST))
        return NULL;
    return number.is_integer ? json_integer(number.integer) : json_real(number.real);
}

static json_t *build(struct builder *b, int depth)
{
    char first = kt_json_peek(&b->reader);
    if (first == '[' || first == '{')
        return build_container(b, first, depth);
    if (first == '"')
        return build_string(b);
    const char *word = kt_json_word(&b->reader);
    return word ? build_word(b, word) : build_number(b);
}

static kt_status syntax_error(const struct builder *b, size_t line)
{
    const struct kt_json_reader *r = &b->reader;
    const char *start = r->begin;
    for (const char *s = r->begin; s < r->at; s++) {
        if (*s == '\n') {
            start = s + 1;
            line++;
        }
    }
    return kt_fail(b->budget.ctx, KT_ERROR_FORMAT, "%s: line %zu, column %zu: malformed JSON: %s",
                   b->budget.name, line, (size_t)(r->at - start) + 1, r->problem);
}

kt_status kt_json_parse(kt_context *ctx, const char *path, size_t first_line, const char *data,
                        size_t size, enum kt_json_dialect dialect, json_t **out)
{
    struct builder b = {.lenient = dialect == KT_JSON_DATA};
    *out = NULL;
    if (size >= 3 && !memcmp(data, "\xef\xbb\xbf", 3))
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: begins with a byte order mark; save it as UTF-8 without one", path);
    kt_budget_start(&b.budget, ctx, path, size);
    kt_json_reader_start(&b.reader, data, size, b.lenient);
    json_t *root = build(&b, 0);
    kt_status status = KT_OK;
    if (!root || !kt_json_end(&b.reader))
        status = b.status != KT_OK  ? b.status
                 : b.reader.problem ? syntax_error(&b, first_line)
                                    : kt_fail_memory(ctx, size, path);
    kt_json_reader_free(&b.reader);
    if (status == KT_OK)
        *out = root;
    else
        json_decref(root);
    return status;
}

struct text {
    char *data;
    size_t count, capacity;
    bool failed; /* jansson goes on after a key that could not be written */
};

static int append(const char *more, size_t count, void *user)
{
    struct text *text = user;
    if (text->capacity - text->count <= count) {
        size_t capacity = 2 * text->capacity + count + 256;
        char *grown = realloc(text->data, capacity);
        if (!grown) {
            text->failed = true;
            return -1;
        }
        text->data = grown;
        text->capacity = capacity;
    }
    memcpy(text->data + text->count, more, count);
    text->count += count;
    text->data[text->count] = 0;
    return 0;
}

/* json_dumps may leave out what it could not keep. */
kt_status kt_json_encode(kt_context *ctx, const char *path, const json_t *json, size_t flags,
                         char **text)
{
    struct text all = {0};
    *text = NULL;
    if (json_dump_callback(json, append, &all, flags) != 0 || all.failed || !all.data) {
        free(all.data);
        return kt_fail_memory(ctx, 0, path);
    }
    *text = all.data;
    return KT_OK;
}

kt_status kt_json_load(kt_context *ctx, const char *path, uint64_t max_bytes, json_t **out)
{
    char *data;
    size_t size;
    *out = NULL;
    KT_TRY(kt_file_read(ctx, path, max_bytes, &data, &size));
    kt_status status = kt_json_parse(ctx, path, 1, data, size, KT_JSON_STRICT, out);
    free(data);
    return status;
}

static kt_status wrong_type(const struct kt_json *json, const char *key, const json_t *value,
                            const char *want)
{
    return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s%s\" must be %s, not %s", json->path,
                   json->prefix, key, want, type_names[json_typeof(value)]);
}

/* *value is NULL when the key is absent and may be. */
static kt_status find(const struct kt_json *json, const char *key, enum kt_json_need need,
                      json_t **value)
{
    *value = json_object_get(json->object, key);
    if (json_is_null(*value))
        *value = NULL;
    if (!*value && need == KT_JSON_REQUIRED)
        return kt_fail(json->ctx, KT_ERROR_NOT_FOUND, "%s: the key \"%s%s\" is missing", json->path,
                       json->prefix, key);
    return KT_OK;
}

kt_status kt_json_int(const struct kt_json *json, const char *key, enum kt_json_need need,
                      int64_t low, int64_t high, int64_t *value)
{
    json_t *found;
    int64_t number;
    KT_TRY(find(json, key, need, &found));
    if (!found)
        return KT_OK;
    if (json_is_integer(found)) {
        number = json_integer_value(found);
    } else if (json_is_real(found) && fabs(json_real_value(found)) < 0x1p62 &&
               json_real_value(found) == floor(json_real_value(found))) {
        number = (int64_t)json_real_value(found);
    } else {
        return wrong_type(json, key, found, "an integer");
    }
    if (number < low || number > high)
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s%s\" is %lld, outside of %lld to %lld",
                       json->path, json->prefix, key, (long long)number, (long long)low,
                       (long long)high);
    *value = number;
    return KT_OK;
}

kt_status kt_json_real(const struct kt_json *json, const char *key, enum kt_json_need need,
                       double *value)
{
    json_t *found;
    KT_TRY(find(json, key, need, &found));
    if (!found)
        return KT_OK;
    if (!json_is_number(found))
        return wrong_type(json, key, found, "a number");
    *value = json_number_value(found);
    return KT_OK;
}

kt_status kt_json_bool(const struct kt_json *json, const char *key, enum kt_json_need need,
                       bool *value)
{
    json_t *found;
    KT_TRY(find(json, key, need, &found));
    if (!found)
        return KT_OK;
    if (!json_is_boolean(found))
        return wrong_type(json, key, found, "true or false");
    *value = json_is_true(found);
    return KT_OK;
}

kt_status kt_json_string(const struct kt_json *json, const char *key, enum kt_json_need need,
                         const char **value)
{
    json_t *found;
    KT_TRY(find(json, key, need, &found));
    if (!found)
        return KT_OK;
    if (!json_is_string(found))
        return wrong_type(json, key, found, "a string");
    if (strlen(json_string_value(found)) != json_string_length(found))
        return wrong_type(json, key, found, "a string without NUL characters");
    *value = json_string_value(found);
    return KT_OK;
}

kt_status kt_json_container(const struct kt_json *json, const char *key, enum kt_json_need need,
                            json_type type, json_t **value)
{
    json_t *found;
    KT_TRY(find(json, key, need, &found));
    if (!found)
        return KT_OK;
    if (json_typeof(found) != type)
        return wrong_type(json, key, found, type_names[type]);
    *value = found;
    return KT_OK;
}
