/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/json.h
 * JSON files with errors that name file, line and key. Values are jansson's json_t.
 *
 *     json_t *root;
 *     KT_TRY(kt_json_load(ctx, path, KT_JSON_CONFIG_MAX, &root));
 *     struct kt_json config = {ctx, path, "", root};
 *     int64_t layers = 0;
 *     status = kt_json_int(&config, "num_hidden_layers", KT_JSON_REQUIRED, 1, 1000, &layers);
 *     json_decref(root);
 */
#ifndef KT_FORMATS_JSON_H
#define KT_FORMATS_JSON_H

#include <jansson.h>
#include <kt/types.h>

/** Limits for max_bytes: configuration files, and vocabularies or indexes. */
#define KT_JSON_CONFIG_MAX ((uint64_t)16 << 20)
#define KT_JSON_LARGE_MAX ((uint64_t)1 << 30)

/** Reads and parses a file. json_decref(*out) when done. Strings may hold NUL bytes. Errors:
 * those of kt_file_read; FORMAT with the line and column of a syntax error. */
kt_status kt_json_load(kt_context *ctx, const char *path, uint64_t max_bytes, json_t **out);

/** How Python's json.load reads, or a little less strictly, as data are read: control characters in
 * strings as they are, and NaN and Infinity for null. Strictly these two are strings, so that only
 * a key that must be a number refuses them. */
enum kt_json_dialect { KT_JSON_STRICT, KT_JSON_DATA };

/** Parses `size` bytes; `path` and `first_line` (1 for a whole file) are for the error. The last of
 * equal keys counts; an integer that 64 bits do not hold is a real. Errors: FORMAT (also a tree out
 * of proportion to its text, see core/budget.h), OUT_OF_MEMORY. */
kt_status kt_json_parse(kt_context *ctx, const char *path, size_t first_line, const char *data,
                        size_t size, enum kt_json_dialect dialect, json_t **out);

/** json_dumps; free(*text) when done. Errors: OUT_OF_MEMORY. */
kt_status kt_json_encode(kt_context *ctx, const char *path, const json_t *json, size_t flags,
                         char **text);

/** Bytes that jansson takes for a value, with its place in a list and malloc's own; for budgets. */
enum {
    KT_JSON_NUMBER_COST = 56,
    KT_JSON_STRING_COST = 104,
    KT_JSON_ARRAY_COST = 152,
    KT_JSON_OBJECT_COST = 248,
    KT_JSON_KEY_COST = 96
};

/** An object to read keys from. `prefix` comes before keys in errors: "" or "rope_scaling.". */
struct kt_json {
    kt_context *ctx;
    const char *path;
    const char *prefix;
    const json_t *object;
};

/** KT_JSON_OPTIONAL: an absent or null key leaves *value as it is. */
enum kt_json_need { KT_JSON_OPTIONAL, KT_JSON_REQUIRED };

/** Typed values. Errors name path and key: NOT_FOUND (required, absent or null, or `object` is no
 * object), FORMAT (another type, or a number out of [low, high]). kt_json_int takes 3.0 for 3,
 * kt_json_real takes integers. Strings are borrowed from the object and hold no NUL byte. */
kt_status kt_json_int(const struct kt_json *json, const char *key, enum kt_json_need need,
                      int64_t low, int64_t high, int64_t *value);
kt_status kt_json_real(const struct kt_json *json, const char *key, enum kt_json_need need,
                       double *value);
kt_status kt_json_bool(const struct kt_json *json, const char *key, enum kt_json_need need,
                       bool *value);
kt_status kt_json_string(const struct kt_json *json, const char *key, enum kt_json_need need,
                         const char **value);
/** `type` is JSON_ARRAY or JSON_OBJECT; the value is borrowed. */
kt_status kt_json_container(const struct kt_json *json, const char *key, enum kt_json_need need,
                            json_type type, json_t **value);

#endif
