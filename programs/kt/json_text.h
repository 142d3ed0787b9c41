/* SPDX-License-Identifier: Apache-2.0 */
/** \file json_text.h
 * JSON as text, with numbers as Python writes them. */
#ifndef KT_JSON_TEXT_H
#define KT_JSON_TEXT_H

#include <jansson.h>

/** The text, in new memory. Each number with a fraction has as many digits as are needed to read
 * the same number back. `flags` are jansson's. */
char *json_text(const json_t *json, size_t flags);

/** Reads what kt wrote. NULL with a sentence in error->text, and its line, when it is no JSON or
 * would take more memory than what kt writes of that length. */
json_t *json_read(const char *text, size_t size, json_error_t *error);

#endif
