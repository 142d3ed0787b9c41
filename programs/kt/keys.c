/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "app.h"
#include "output.h"

const key *key_find(const char *name)
{
    for (size_t i = 0; i < key_table_size; i++)
        if (!strcmp(key_table[i].name, name))
            return &key_table[i];
    return NULL;
}

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t m = a < b ? a : b;
    return m < c ? m : c;
}

/* Levenshtein's edit distance. */
static size_t distance(const char *a, const char *b)
{
    size_t width = strlen(b), result;
    size_t *row = app_alloc(width + 1, sizeof *row);
    for (size_t j = 0; j <= width; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < width; j++) {
            size_t above = row[j + 1];
            row[j + 1] = smallest(above + 1, row[j] + 1, diagonal + (a[i] != b[j]));
            diagonal = above;
        }
    }
    result = row[width];
    free(row);
    return result;
}

static const char *nearest(const char *name)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (size_t i = 0; i < key_table_size; i++) {
        size_t d = distance(name, key_table[i].name);
        if (d < best_distance) {
            best = key_table[i].name;
            best_distance = d;
        }
    }
    return best;
}

static bool parse_int(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return end != text && !*end && !errno;
}

static bool parse_float(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out) && !strpbrk(text, "xX");
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on"}, *const no[] = {"false", "no", "off"};
    for (int i = 0; i < 3; i++) {
        if (!strcasecmp(text, yes[i]))
            return *out = true;
        if (!strcasecmp(text, no[i])) {
            *out = false;
            return true;
        }
    }
    return false;
}

static bool in_interval(const char *domain, double x)
{
    double low, high;
    char open, close;
    if (sscanf(domain, ">=%lf", &low) == 1)
        return x >= low;
    if (sscanf(domain, ">%lf", &low) == 1)
        return x > low;
    if (sscanf(domain, "%c%lf,%lf%c", &open, &low, &high, &close) == 4)
        return (open == '[' ? x >= low : x > low) && (close == ']' ? x <= high : x < high);
    return false;
}

/* Is `text` one of "a|b|c"? Numbers and truth values are compared by value. */
static bool in_choices(const key *k, const char *text)
{
    for (const char *p = k->domain; *p; p += strspn(p, "|")) {
        size_t length = strcspn(p, "|");
        char *choice = app_text("%.*s", (int)length, p);
        bool a, b, same = !strcmp(choice, text);
        double x, y;
        if (k->type == KEY_BOOL && parse_bool(choice, &a) && parse_bool(text, &b))
            same = a == b;
        else if (parse_float(choice, &x) && parse_float(text, &y))
            same = x == y;
        free(choice);
        if (same)
            return true;
        p += length;
    }
    return false;
}

static const char *type_error(const key *k, const value *v)
{
    int64_t i;
    double d;
    bool b;
    switch (k->type) {
    case KEY_STRING:
        return v->kind == VALUE_SCALAR ? NULL : "must be a text";
    case KEY_INT:
        return v->kind == VALUE_SCALAR && parse_int(v->text, &i) ? NULL : "must be a whole number";
    case KEY_FLOAT:
        return v->kind == VALUE_SCALAR && parse_float(v->text, &d) ? NULL : "must be a number";
    case KEY_BOOL:
        return v->kind == VALUE_SCALAR && parse_bool(v->text, &b) ? NULL : "must be true or false";
    case KEY_LIST:
        if (v->kind == VALUE_MAP)
            return "must be a list, or a text with commas";
        for (size_t n = 0; n < v->num_items; n++)
            if (v->items[n].kind != VALUE_SCALAR)
                return "must be a list of texts";
        return NULL;
    case KEY_MAP:
        return v->kind == VALUE_MAP ? NULL : "must be a mapping such as {num_cycles: 2}";
    case KEY_ANY:
        return NULL;
    }
    return NULL;
}

static const char *shown(const value *v)
{
    return v->text ? v->text : "{...}";
}

/* KEY_LIMITED: every part of the value must be a possible one; what is empty always is. */
static bool is_possible(const key *k, const value *v)
{
    if (v->kind == VALUE_NULL)
        return true;
    if (v->kind == VALUE_SCALAR)
        return !*v->text || (k->domain && in_choices(k, v->text));
    for (size_t i = 0; i < v->num_items; i++)
        if (v->kind == VALUE_MAP || !is_possible(k, &v->items[i]))
            return false;
    return true;
}

static int check_domain(const config *cfg, const key *k, const value *v)
{
    double x;
    bool number = k->type == KEY_INT || k->type == KEY_FLOAT;
    if (k->use == KEY_LIMITED) {
        if (!is_possible(k, v))
            return config_fail(cfg, k->name, "%.200s is not supported; %s", shown(v), k->note);
    } else if (k->domain && number) {
        if (parse_float(v->text, &x) && !in_interval(k->domain, x))
            return config_fail(cfg, k->name, "%.200s is out of range; it must be %s%s", v->text,
                               *k->domain == '>' ? "" : "in ", k->domain);
    } else if (k->domain && v->kind == VALUE_SCALAR && !in_choices(k, v->text)) {
        return config_fail(cfg, k->name, "%.200s is not possible; choose one of %s", v->text,
                           k->domain);
    }
    return APP_OK;
}

int key_check(const config *cfg, const entry *e)
{
    const key *k = key_find(e->key);
    if (!k)
        return config_fail(cfg, e->key, "unknown key; did you mean %s?", nearest(e->key));
    if (e->value.kind == VALUE_NULL)
        return APP_OK;
    /* A limited key says what to use instead, whatever was written. */
    const char *problem = k->use == KEY_LIMITED ? NULL : type_error(k, &e->value);
    if (problem)
        return config_fail(cfg, k->name, "%.200s %s", shown(&e->value), problem);
    return check_domain(cfg, k, &e->value);
}

void key_print_ignored(const config *cfg)
{
    bool first = true;
    for (size_t i = 0; i < key_table_size; i++) {
        const key *k = &key_table[i];
        if (k->use != KEY_NO_EFFECT || !config_find(cfg, k->name))
            continue;
        out_print("%s%s: %s\n", first ? "keys without effect here:\n  " : "  ", k->name, k->note);
        first = false;
    }
}

void key_print_table(void)
{
    static const char *const types[] = {"text", "int", "float", "bool", "list", "map", "any"};
    static const char *const uses[] = {"supported", "no effect", "limited"};
    for (size_t i = 0; i < key_table_size; i++) {
        const key *k = &key_table[i];
        out_print("%s\t%s\t%s\t%s\t%s\t%s\n", k->name, types[k->type], uses[k->use],
                  k->fallback ? k->fallback : "null", k->domain ? k->domain : "",
                  k->note ? k->note : "");
    }
}

static const char *scalar_text(const config *cfg, const char *name)
{
    const entry *e = config_find(cfg, name);
    return e ? e->value.text : key_find(name)->fallback;
}

const char *config_string(const config *cfg, const char *name)
{
    return scalar_text(cfg, name);
}

int64_t config_int(const config *cfg, const char *name)
{
    int64_t result = 0;
    const char *text = scalar_text(cfg, name);
    if (text)
        parse_int(text, &result);
    return result;
}

double config_float(const config *cfg, const char *name)
{
    double result = 0;
    const char *text = scalar_text(cfg, name);
    if (text)
        parse_float(text, &result);
    return result;
}

bool config_bool(const config *cfg, const char *name)
{
    bool result = false;
    const char *text = scalar_text(cfg, name);
    if (text)
        parse_bool(text, &result);
    return result;
}
