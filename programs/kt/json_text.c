/* SPDX-License-Identifier: Apache-2.0 */
#include "json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

/* Writes the shortest text of `x` that reads as `x` again; returns where it ends. */
static char *put_real(char *out, double x)
{
    char text[FORMAT_SIZE];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    out = stpcpy(out, text);
    return strpbrk(text, ".e") ? out : stpcpy(out, ".0");
}

static size_t string_length(const char *text)
{
    const char *p = text + 1;
    while (*p != '"')
        p += *p == '\\' ? 2 : 1;
    return (size_t)(p + 1 - text);
}

char *json_text(const json_t *json, size_t flags)
{
    char *text = json_dumps(json, flags | JSON_REAL_PRECISION(17));
    if (!text)
        exit(app_fail("out of memory"));
    char *result = app_alloc(strlen(text) + 1, 2), *out = result;
    for (const char *p = text; *p;) {
        size_t length = strspn(p, "+-.eE0123456789");
        if (*p == '"')
            length = string_length(p);
        else if (!length || *p == 'e')
            length = 1;
        else if (strcspn(p, ".eE") < length) {
            out = put_real(out, strtod(p, NULL));
            p += length;
            continue;
        }
        memcpy(out, p, length);
        out += length;
        p += length;
    }
    *out = 0;
    free(text);
    return result;
}

/* An upper bound of what jansson takes for the values: an object is the largest. */
static bool is_dense(const char *text, size_t size)
{
    enum { VALUE_BYTES = 400, FREE_VALUES = 1 << 14, BYTES_EACH = 32 };
    size_t values = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '"')
            in_string = !in_string;
        else if (in_string && text[i] == '\\')
            i++;
        else if (!in_string)
            values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    }
    return values > FREE_VALUES && values > size * BYTES_EACH / VALUE_BYTES;
}

json_t *json_read(const char *text, size_t size, json_error_t *error)
{
    const char *problem = memchr(text, 0, size) ? "it holds a NUL character" /* jansson skips it */
                          : is_dense(text, size)
                              ? "so many values in so few bytes are not what kt writes"
                              : NULL;
    if (!problem)
        return json_loadb(text, size, 0, error);
    error->line = 1;
    snprintf(error->text, sizeof error->text, "%s", problem);
    return NULL;
}
