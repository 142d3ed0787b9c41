/* SPDX-License-Identifier: Apache-2.0 */
/** \file config.h
 * A configuration: the flat YAML mapping of a LLaMA-Factory file, then `key=value` arguments of the
 * command line over it. Each key remembers its line, so that errors can name it. What the keys mean
 * is in keys.h. */
#ifndef KT_CONFIG_H
#define KT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum value_kind { VALUE_NULL, VALUE_SCALAR, VALUE_LIST, VALUE_MAP } value_kind;

typedef struct value {
    value_kind kind;
    char *text;       /**< of a scalar; of a list: its items with commas between them */
    size_t num_items; /**< of a list or map */
    struct value *items;
    char **names; /**< of a map: the key of each item */
} value;

typedef struct entry {
    char *key;
    value value;
    size_t line; /**< from 1; 0 = the command line */
} entry;

typedef struct config {
    char *file; /**< NULL when everything came from the command line */
    entry *entries;
    size_t num_entries;
} config;

/** Reads `path`: a YAML file, or a model folder, which stands for `model_name_or_path: path` alone.
 * Then applies `num` arguments of the form key=value. Every key and value is checked against the
 * table of keys. Returns an exit code; the error has been told. */
int config_load(config *cfg, const char *path, char **overrides, int num);
void config_free(config *cfg);

/** The latest entry of `key` whose value is not null; NULL = not set. */
const entry *config_find(const config *cfg, const char *key);

/** Was the key's latest value given as null? */
bool config_is_null(const config *cfg, const char *key);

/** Tells an error about a key: "FILE:LINE: KEY: sentence". Returns APP_ERROR. */
int config_fail(const config *cfg, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** Tells a warning in the same form. */
void config_warn(const config *cfg, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** Values with the table's defaults. A string is owned by the configuration; NULL = null. A list is
 * one string with commas. The key must be in the table with that type. */
const char *config_string(const config *cfg, const char *key);
int64_t config_int(const config *cfg, const char *key);
double config_float(const config *cfg, const char *key);
bool config_bool(const config *cfg, const char *key);

#endif
