/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "app.h"
#include "formats/yaml_scan.h"
#include "keys.h"

/* Aliases let a short file stand for endless values: how many of them, and how many bytes in all,
 * are left. */
struct left {
    int nodes; /* in one value */
    size_t bytes;
};

enum { MAX_NODES = 4096, MAX_BYTES = 16 << 20, MAX_KEYS = 1024, MAX_KEY = 128 };

static void value_free(value *v)
{
    for (size_t i = 0; i < v->num_items; i++) {
        value_free(&v->items[i]);
        if (v->names)
            free(v->names[i]);
    }
    free(v->items);
    free(v->names);
    free(v->text);
}

static bool is_null_text(const char *text)
{
    return !*text || !strcmp(text, "~") || !strcmp(text, "null") || !strcmp(text, "Null") ||
           !strcmp(text, "NULL");
}

static value scalar_value(const char *text, bool quoted)
{
    value v = {.kind = VALUE_NULL};
    if (quoted || !is_null_text(text)) {
        v.kind = VALUE_SCALAR;
        v.text = app_copy(text);
    }
    return v;
}

static const char *node_text(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}

static size_t text_length(const value *v)
{
    return v->kind == VALUE_SCALAR ? strlen(v->text) : 0;
}

/* A list's text is its items with commas between them. */
static char *join(const value *v)
{
    size_t length = 1;
    for (size_t i = 0; i < v->num_items; i++)
        length += text_length(&v->items[i]) + 1;
    char *text = app_alloc(length, 1), *to = text;
    for (size_t i = 0; i < v->num_items; i++) {
        size_t n = text_length(&v->items[i]);
        if (i)
            *to++ = ',';
        if (n)
            memcpy(to, v->items[i].text, n);
        to += n;
    }
    *to = 0;
    return text;
}

/* Twice: a list has its items' text, too. */
static bool take_bytes(struct left *left, size_t length)
{
    if (2 * length > left->bytes)
        return false;
    left->bytes -= 2 * length;
    return true;
}

static const char too_large[] = "the value is too large, or contains itself";

/* What speaks against the text of a scalar. */
static const char *text_problem(const yaml_node_t *node, struct left *left)
{
    if (memchr(node_text(node), 0, node->data.scalar.length))
        return "the value holds a NUL character";
    return take_bytes(left, node->data.scalar.length) ? NULL : too_large;
}

static const char *convert(yaml_document_t *doc, int id, struct left *left, value *out);

static const char *convert_list(yaml_document_t *doc, const yaml_node_t *node, struct left *left,
                                value *out)
{
    size_t num = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    *out = (value){.kind = VALUE_LIST, .items = app_alloc(num, sizeof(value))};
    while (out->num_items < num) {
        size_t i = out->num_items++;
        const char *problem =
            convert(doc, node->data.sequence.items.start[i], left, &out->items[i]);
        if (problem)
            return problem;
    }
    out->text = join(out);
    return NULL;
}

static const char *convert_map(yaml_document_t *doc, const yaml_node_t *node, struct left *left,
                               value *out)
{
    size_t num = (size_t)(node->data.mapping.pairs.top - node->data.mapping.pairs.start);
    *out = (value){.kind = VALUE_MAP,
                   .items = app_alloc(num, sizeof(value)),
                   .names = app_alloc(num, sizeof(char *))};
    while (out->num_items < num) {
        size_t i = out->num_items++;
        const yaml_node_pair_t *pair = &node->data.mapping.pairs.start[i];
        const yaml_node_t *name = yaml_document_get_node(doc, pair->key);
        if (name->type != YAML_SCALAR_NODE)
            return "a key in the value is no plain word";
        const char *problem = text_problem(name, left);
        if (!problem)
            problem = convert(doc, pair->value, left, &out->items[i]);
        if (problem)
            return problem;
        out->names[i] = app_copy(node_text(name));
    }
    return NULL;
}

/* Returns what speaks against the value; NULL when nothing does. */
static const char *convert(yaml_document_t *doc, int id, struct left *left, value *out)
{
    const yaml_node_t *node = yaml_document_get_node(doc, id);
    *out = (value){.kind = VALUE_NULL};
    if (!node || --left->nodes < 0)
        return too_large;
    if (node->type == YAML_SEQUENCE_NODE)
        return convert_list(doc, node, left, out);
    if (node->type == YAML_MAPPING_NODE)
        return convert_map(doc, node, left, out);
    const char *problem = text_problem(node, left);
    if (!problem)
        *out = scalar_value(node_text(node), node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE);
    return problem;
}

static entry *add_entry(config *cfg, const char *name, value v, size_t line)
{
    cfg->entries = app_resize(cfg->entries, cfg->num_entries + 1, sizeof(entry));
    entry *e = &cfg->entries[cfg->num_entries++];
    *e = (entry){.key = app_copy(name), .value = v, .line = line};
    return e;
}

static int check_key(const config *cfg, const yaml_node_t *name)
{
    size_t line = name->start_mark.line + 1;
    if (name->type != YAML_SCALAR_NODE)
        return app_fail("%s:%zu: a key must be a plain word", cfg->file, line);
    if (name->data.scalar.length > MAX_KEY || strlen(node_text(name)) != name->data.scalar.length)
        return app_fail("%s:%zu: a key is a word of at most %d characters, and none of them is NUL",
                        cfg->file, line, MAX_KEY);
    for (size_t i = 0; i < cfg->num_entries; i++)
        if (!strcmp(cfg->entries[i].key, node_text(name)))
            return app_fail("%s:%zu: %s: the key was given before, at line %zu", cfg->file, line,
                            node_text(name), cfg->entries[i].line);
    return APP_OK;
}

static int read_mapping(config *cfg, yaml_document_t *doc)
{
    const yaml_node_t *root = yaml_document_get_root_node(doc);
    if (!root)
        return app_fail("%s: the file is empty; it must hold lines of the form key: value",
                        cfg->file);
    if (root->type != YAML_MAPPING_NODE)
        return app_fail("%s:%zu: expected lines of the form key: value", cfg->file,
                        root->start_mark.line + 1);
    struct left left = {.bytes = MAX_BYTES};
    if (root->data.mapping.pairs.top - root->data.mapping.pairs.start > MAX_KEYS)
        return app_fail("%s: more than %d keys are no configuration", cfg->file, MAX_KEYS);
    for (const yaml_node_pair_t *pair = root->data.mapping.pairs.start;
         pair < root->data.mapping.pairs.top; pair++) {
        const yaml_node_t *name = yaml_document_get_node(doc, pair->key);
        if (check_key(cfg, name) != APP_OK)
            return APP_ERROR;
        value v;
        left.nodes = MAX_NODES;
        const char *problem = convert(doc, pair->value, &left, &v);
        const entry *e = add_entry(cfg, node_text(name), v, name->start_mark.line + 1);
        if (problem)
            return app_fail("%s:%zu: %s: %s", cfg->file, e->line, e->key, problem);
    }
    return APP_OK;
}

static int load_document(const config *cfg, yaml_parser_t *parser, yaml_document_t *doc)
{
    if (yaml_parser_load(parser, doc))
        return APP_OK;
    if (parser->error == YAML_READER_ERROR)
        return app_fail("%s: not a YAML file: %s", cfg->file, parser->problem);
    return app_fail("%s:%zu: not valid YAML: %s", cfg->file, parser->problem_mark.line + 1,
                    parser->problem ? parser->problem : "unreadable");
}

static int check_end(const config *cfg, yaml_parser_t *parser)
{
    yaml_document_t doc;
    int rc = load_document(cfg, parser, &doc);
    if (rc != APP_OK)
        return rc;
    const yaml_node_t *root = yaml_document_get_root_node(&doc);
    if (root)
        rc = app_fail("%s:%zu: a second document begins here; put all keys into one", cfg->file,
                      root->start_mark.line + 1);
    yaml_document_delete(&doc);
    return rc;
}

static int read_yaml(config *cfg, yaml_parser_t *parser)
{
    yaml_document_t doc;
    int rc = load_document(cfg, parser, &doc);
    if (rc != APP_OK)
        return rc;
    rc = read_mapping(cfg, &doc);
    yaml_document_delete(&doc);
    return rc == APP_OK ? check_end(cfg, parser) : rc;
}

static int read_text(config *cfg, const char *text, size_t size)
{
    yaml_parser_t parser;
    size_t line = 0;
    const char *problem = kt_yaml_scan(text, size, &line);
    if (problem)
        return app_fail("%s:%zu: %s", cfg->file, line, problem);
    if (!yaml_parser_initialize(&parser))
        return app_fail("out of memory");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    int rc = read_yaml(cfg, &parser);
    yaml_parser_delete(&parser);
    return rc;
}

static int read_file(config *cfg, const char *path)
{
    cfg->file = app_copy(path);
    FILE *file = fopen(path, "rb");
    if (!file && errno == ENOENT)
        return app_fail("%s: there is no such configuration file or model folder", path);
    if (!file)
        return app_fail("%s: cannot open the configuration: %m", path);
    char *text = app_alloc(KT_YAML_MAX + 1, 1);
    size_t size = fread(text, 1, KT_YAML_MAX + 1, file);
    int rc = ferror(file) ? app_fail("%s: cannot read the configuration: %m", path)
             : size > KT_YAML_MAX
                 ? app_fail("%s: more than %zu bytes are no configuration", path, KT_YAML_MAX)
                 : read_text(cfg, text, size);
    free(text);
    fclose(file);
    return rc;
}

static bool parse_flow(const char *text, value *out)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    size_t line;
    if (kt_yaml_scan(text, strlen(text), &line) || !yaml_parser_initialize(&parser))
        return false;
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, strlen(text));
    bool loaded = yaml_parser_load(&parser, &doc);
    struct left left = {MAX_NODES, MAX_BYTES};
    *out = (value){.kind = VALUE_NULL};
    bool ok = loaded && yaml_document_get_root_node(&doc) && !convert(&doc, 1, &left, out);
    if (loaded)
        yaml_document_delete(&doc);
    yaml_parser_delete(&parser);
    return ok;
}

/* [a, b] and {a: 1} on the command line are YAML; anything else is taken as it stands. */
static int parse_override(const char *name, const char *text, value *out)
{
    if (*text != '[' && *text != '{')
        *out = scalar_value(text, false);
    else if (!parse_flow(text, out))
        return app_usage("command line: %s: \"%s\" is not valid YAML", name, text);
    return APP_OK;
}

/* A map may be given as JSON text, as on LLaMA-Factory's command line. */
static void expand_map(entry *e)
{
    const key *k = key_find(e->key);
    value map;
    if (!k || k->type != KEY_MAP || e->value.kind != VALUE_SCALAR || e->value.text[0] != '{')
        return;
    if (parse_flow(e->value.text, &map)) {
        value_free(&e->value);
        e->value = map;
    } else {
        value_free(&map);
    }
}

static int apply_override(config *cfg, const char *argument)
{
    const char *equals = strchr(argument, '=');
    if (!equals || equals == argument)
        return app_usage("%s: expected key=value after the configuration", argument);
    if (equals - argument > MAX_KEY)
        return app_usage("command line: a key is a word of at most %d characters", MAX_KEY);
    char *name = app_text("%.*s", (int)(equals - argument), argument);
    value v = {.kind = VALUE_NULL};
    int rc = parse_override(name, equals + 1, &v);
    add_entry(cfg, name, v, 0);
    free(name);
    return rc;
}

static const entry *find_entry(const config *cfg, const char *name)
{
    for (size_t i = cfg->num_entries; i-- > 0;)
        if (!strcmp(cfg->entries[i].key, name))
            return &cfg->entries[i];
    return NULL;
}

int config_load(config *cfg, const char *path, char **overrides, int num)
{
    struct stat st;
    *cfg = (config){0};
    int rc = APP_OK;
    size_t length = strlen(path);
    bool gguf = length > 5 && !strcmp(path + length - 5, ".gguf");
    if (gguf || (!stat(path, &st) && S_ISDIR(st.st_mode)))
        add_entry(cfg, "model_name_or_path", scalar_value(path, true), 0);
    else
        rc = read_file(cfg, path);
    for (int i = 0; i < num && rc == APP_OK; i++)
        rc = apply_override(cfg, overrides[i]);
    for (size_t i = 0; i < cfg->num_entries && rc == APP_OK; i++) {
        expand_map(&cfg->entries[i]);
        if (find_entry(cfg, cfg->entries[i].key) == &cfg->entries[i])
            rc = key_check(cfg, &cfg->entries[i]);
    }
    return rc;
}

void config_free(config *cfg)
{
    for (size_t i = 0; i < cfg->num_entries; i++) {
        free(cfg->entries[i].key);
        value_free(&cfg->entries[i].value);
    }
    free(cfg->entries);
    free(cfg->file);
    *cfg = (config){0};
}

const entry *config_find(const config *cfg, const char *name)
{
    const entry *e = find_entry(cfg, name);
    return e && e->value.kind != VALUE_NULL ? e : NULL;
}

bool config_is_null(const config *cfg, const char *name)
{
    const entry *e = find_entry(cfg, name);
    return e && e->value.kind == VALUE_NULL;
}

/* "FILE:LINE: KEY: sentence", to be freed. */
static char *place_sentence(const config *cfg, const char *name, const char *format, va_list args)
{
    const entry *e = find_entry(cfg, name);
    char *sentence = NULL, *whole = NULL;
    const char *text = vasprintf(&sentence, format, args) < 0 ? "out of memory" : sentence;
    int length;
    if (e && e->line)
        length = asprintf(&whole, "%s:%zu: %s: %s", cfg->file, e->line, name, text);
    else
        length = asprintf(&whole, "%s: %s: %s", e || !cfg->file ? "command line" : cfg->file, name,
                          text);
    free(sentence);
    if (length < 0)
        exit(app_fail("out of memory"));
    return whole;
}

int config_fail(const config *cfg, const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *sentence = place_sentence(cfg, name, format, args);
    va_end(args);
    app_fail("%s", sentence);
    free(sentence);
    return APP_ERROR;
}

void config_warn(const config *cfg, const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *sentence = place_sentence(cfg, name, format, args);
    va_end(args);
    app_warn("%s", sentence);
    free(sentence);
}
