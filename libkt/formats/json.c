/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"

static const char *const type_names[] = {
    [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "a list",  [JSON_STRING] = "a string",
    [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number", [JSON_TRUE] = "true",
    [JSON_FALSE] = "false",        [JSON_NULL] = "null",
};

kt_status kt_json_decode(kt_context *ctx, const char *path, const char *data, size_t size,
                         size_t flags, json_t **out, json_error_t *error)
{
    int saved = errno;
    errno = 0;
    *out = json_loadb(data, size, flags, error);
    /* jansson tells most failures of memory as syntax errors, and some not at all. */
    bool no_memory =
        errno == ENOMEM || (!*out && json_error_code(error) == json_error_out_of_memory);
    errno = saved;
    if (!no_memory)
        return *out ? KT_OK : KT_ERROR_FORMAT;
    json_decref(*out);
    *out = NULL;
    return kt_fail_memory(ctx, size, path);
}

kt_status kt_json_encode(kt_context *ctx, const char *path, const json_t *json, size_t flags,
                         char **text)
{
    int saved = errno;
    errno = 0;
    *text = json_dumps(json, flags);
    bool no_memory = !*text || errno == ENOMEM; /* jansson may leave out what it cannot keep */
    errno = saved;
    if (!no_memory)
        return KT_OK;
    free(*text);
    *text = NULL;
    return kt_fail_memory(ctx, 0, path);
}

kt_status kt_json_parse(kt_context *ctx, const char *path, size_t first_line, const char *data,
                        size_t size, json_t **out)
{
    json_error_t error;
    size_t flags = JSON_DECODE_ANY | JSON_ALLOW_NUL;
    *out = NULL;
    if (size >= 3 && !memcmp(data, "\xef\xbb\xbf", 3))
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: begins with a byte order mark; save it as UTF-8 without one", path);
    kt_status status = kt_json_decode(ctx, path, data, size, flags, out, &error);
    /* transformers writes 10^30 as an integer for "no limit" (model_max_length). */
    if (status == KT_ERROR_FORMAT && json_error_code(&error) == json_error_numeric_overflow)
        status =
            kt_json_decode(ctx, path, data, size, flags | JSON_DECODE_INT_AS_REAL, out, &error);
    if (status != KT_ERROR_FORMAT)
        return status;
    size_t line = first_line + (error.line > 0 ? (size_t)error.line - 1 : 0);
    return kt_fail(ctx, KT_ERROR_FORMAT, "%s: line %zu, column %d: malformed JSON: %s", path, line,
                   error.column > 0 ? error.column : 1, error.text);
}

kt_status kt_json_load(kt_context *ctx, const char *path, uint64_t max_bytes, json_t **out)
{
    char *data;
    size_t size;
    *out = NULL;
    KT_TRY(kt_file_read(ctx, path, max_bytes, &data, &size));
    kt_status status = kt_json_parse(ctx, path, 1, data, size, out);
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
