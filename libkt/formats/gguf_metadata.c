/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/gguf_bytes.h"
#include "formats/json.h"

enum { MAX_NAME = 65535, MAX_ELEMENTS = 1 << 22, TYPE_STRING = 8, TYPE_ARRAY = 9 };

/* Numbers of the format; bytes of a string and of an array differ. */
static const struct {
    int32_t size;
    enum { UNSIGNED, SIGNED, FLOAT, BOOLEAN, OTHER } kind;
} types[] = {{1, UNSIGNED}, {1, SIGNED}, {2, UNSIGNED}, {2, SIGNED}, {4, UNSIGNED},
             {4, SIGNED},   {4, FLOAT},  {1, BOOLEAN},  {0, OTHER},  {0, OTHER},
             {8, UNSIGNED}, {8, SIGNED}, {8, FLOAT}};

enum { NUM_TYPES = sizeof types / sizeof *types };

kt_status kt_gguf_take(struct kt_gguf_bytes *b, uint64_t count, const char *what,
                       const uint8_t **out)
{
    *out = NULL;
    if (count > b->size - b->at)
        return kt_fail(b->ctx, KT_ERROR_FORMAT,
                       "%s: truncated: %s takes %llu bytes from byte %llu on, but the file has "
                       "%llu; copy or download the file again",
                       b->path, what, (unsigned long long)count, (unsigned long long)b->at,
                       (unsigned long long)b->size);
    *out = b->bytes + b->at;
    b->at += count;
    return KT_OK;
}

kt_status kt_gguf_number(struct kt_gguf_bytes *b, int32_t size, const char *what, uint64_t *out)
{
    const uint8_t *bytes;
    *out = 0;
    KT_TRY(kt_gguf_take(b, (uint64_t)size, what, &bytes));
    for (int32_t i = 0; i < size; i++)
        *out |= (uint64_t)bytes[i] << (8 * i);
    return KT_OK;
}

kt_status kt_gguf_string(struct kt_gguf_bytes *b, const char *what, const char **text,
                         uint64_t *length)
{
    const uint8_t *bytes;
    *text = NULL;
    KT_TRY(kt_gguf_number(b, 8, what, length));
    KT_TRY(kt_gguf_take(b, *length, what, &bytes));
    *text = (const char *)bytes;
    return KT_OK;
}

kt_status kt_gguf_name(struct kt_gguf_bytes *b, const char *what, char **name)
{
    const char *text;
    uint64_t length;
    KT_TRY(kt_gguf_string(b, what, &text, &length));
    if (length == 0 || length > MAX_NAME || memchr(text, 0, (size_t)length))
        return kt_fail(b->ctx, KT_ERROR_FORMAT,
                       "%s: %s at byte %llu is empty, too long or holds a NUL; the file is damaged",
                       b->path, what, (unsigned long long)(b->at - length));
    *name = strndup(text, (size_t)length);
    return *name ? KT_OK : kt_fail_memory(b->ctx, length, "the header of a GGUF file");
}

kt_status kt_gguf_count(struct kt_gguf_bytes *b, const char *what, uint64_t least, uint64_t most,
                        uint64_t *count)
{
    KT_TRY(kt_gguf_number(b, 8, what, count));
    if (*count > most || *count > (b->size - b->at) / least)
        return kt_fail(b->ctx, KT_ERROR_FORMAT,
                       "%s: %s is %llu, more than the file of %llu bytes can hold or than is "
                       "sensible; it is truncated or damaged",
                       b->path, what, (unsigned long long)*count, (unsigned long long)b->size);
    return KT_OK;
}

static kt_status charge(struct kt_gguf_bytes *b, uint64_t bytes)
{
    return kt_budget_bytes(&b->budget, bytes, "the metadata");
}

static kt_status memory(const struct kt_gguf_bytes *b)
{
    return kt_fail_memory(b->ctx, 0, "the header of a GGUF file");
}

/* The shortest decimal that float32 rounds to the same number. */
static double shortest(float f)
{
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f)
            break;
    }
    return strtod(text, NULL);
}

static kt_status read_float(struct kt_gguf_bytes *b, int32_t size, const char *key, json_t **value)
{
    uint64_t bits;
    uint32_t bits32;
    double d;
    float f;
    KT_TRY(kt_gguf_number(b, size, key, &bits));
    bits32 = (uint32_t)bits;
    memcpy(&d, &bits, 8);
    memcpy(&f, &bits32, 4);
    if (!isfinite(size == 4 ? f : d))
        return kt_fail(b->ctx, KT_ERROR_FORMAT, "%s: metadata key %s is not a finite number",
                       b->path, key);
    *value = json_real(size == 4 ? shortest(f) : d);
    return *value ? KT_OK : memory(b);
}

static kt_status read_integer(struct kt_gguf_bytes *b, uint64_t type, const char *key,
                              json_t **value)
{
    uint64_t bits;
    int32_t size = types[type].size;
    KT_TRY(kt_gguf_number(b, size, key, &bits));
    if (types[type].kind == BOOLEAN && bits > 1)
        return kt_fail(b->ctx, KT_ERROR_FORMAT, "%s: metadata key %s is neither true nor false",
                       b->path, key);
    if (types[type].kind == BOOLEAN)
        *value = json_boolean(bits);
    else if (types[type].kind == UNSIGNED && bits > INT64_MAX)
        *value = json_real((double)bits);
    else if (types[type].kind == SIGNED) /* the sign bit of a narrower number is spread */
        *value = json_integer((int64_t)(bits << (64 - 8 * size)) >> (64 - 8 * size));
    else
        *value = json_integer((json_int_t)bits);
    return *value ? KT_OK : memory(b);
}

static kt_status read_string(struct kt_gguf_bytes *b, const char *key, json_t **value)
{
    const char *text;
    uint64_t length;
    KT_TRY(kt_gguf_string(b, key, &text, &length));
    KT_TRY(charge(b, KT_JSON_STRING_COST + length));
    int saved = errno;
    errno = 0;
    *value = json_stringn(text, (size_t)length);
    bool no_memory = !*value && errno == ENOMEM;
    errno = saved;
    if (!*value) /* not UTF-8 */
        *value = json_null();
    return no_memory ? memory(b) : KT_OK;
}

/* A value that is no array. */
static kt_status read_scalar(struct kt_gguf_bytes *b, uint64_t type, const char *key,
                             json_t **value)
{
    if (type == TYPE_STRING)
        return read_string(b, key, value);
    return types[type].kind == FLOAT ? read_float(b, types[type].size, key, value)
                                     : read_integer(b, type, key, value);
}

static kt_status read_elements(struct kt_gguf_bytes *b, uint64_t type, uint64_t count,
                               const char *key, json_t *array)
{
    for (uint64_t i = 0; i < count; i++) {
        json_t *element = NULL;
        KT_TRY(read_scalar(b, type, key, &element));
        if (json_array_append_new(array, element) != 0)
            return memory(b);
    }
    return KT_OK;
}

static kt_status check_type(const struct kt_gguf_bytes *b, uint64_t type, const char *key)
{
    if (type < NUM_TYPES)
        return KT_OK;
    return kt_fail(
        b->ctx, KT_ERROR_FORMAT,
        "%s: metadata key %s has type %llu, which GGUF does not have; the file is damaged", b->path,
        key, (unsigned long long)type);
}

static kt_status read_array(struct kt_gguf_bytes *b, const char *key, json_t **value)
{
    uint64_t type, count;
    const uint8_t *skipped;
    KT_TRY(kt_gguf_number(b, 4, key, &type));
    KT_TRY(check_type(b, type, key));
    if (type == TYPE_ARRAY)
        return kt_fail(b->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: metadata key %s is an array of arrays, which is not supported", b->path,
                       key);
    uint64_t least = type == TYPE_STRING ? 8 : (uint64_t)types[type].size;
    KT_TRY(kt_gguf_count(b, key, least, MAX_ELEMENTS, &count));
    if (types[type].kind == FLOAT) {
        *value = json_null();
        return kt_gguf_take(b, count * least, key, &skipped);
    }
    KT_TRY(charge(b, KT_JSON_ARRAY_COST + KT_JSON_NUMBER_COST * count));
    *value = json_array();
    return *value ? read_elements(b, type, count, key, *value) : memory(b);
}

static kt_status read_pair(struct kt_gguf_bytes *b, const char *key, json_t *metadata)
{
    uint64_t type;
    json_t *value = NULL;
    if (json_object_get(metadata, key))
        return kt_fail(b->ctx, KT_ERROR_FORMAT, "%s: metadata key %s is there twice", b->path, key);
    KT_TRY(kt_gguf_number(b, 4, key, &type));
    KT_TRY(check_type(b, type, key));
    KT_TRY(charge(b, KT_JSON_KEY_COST + strlen(key)));
    kt_status status =
        type == TYPE_ARRAY ? read_array(b, key, &value) : read_scalar(b, type, key, &value);
    if (status != KT_OK) {
        json_decref(value);
        return status;
    }
    return json_object_set_new_nocheck(metadata, key, value) == 0 ? KT_OK : memory(b);
}

kt_status kt_gguf_read_metadata(struct kt_gguf_bytes *b, uint64_t count, json_t **metadata)
{
    kt_status status = KT_OK;
    *metadata = json_object();
    if (!*metadata)
        return memory(b);
    for (uint64_t i = 0; i < count && status == KT_OK; i++) {
        char *key = NULL;
        status = kt_gguf_name(b, "a metadata key", &key);
        if (status == KT_OK)
            status = read_pair(b, key, *metadata);
        free(key);
    }
    if (status == KT_OK)
        return KT_OK;
    json_decref(*metadata);
    *metadata = NULL;
    return status;
}
