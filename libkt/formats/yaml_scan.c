/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/yaml_scan.h"

#include <stdbool.h>
#include <yaml.h>

enum {
    MAX_DEPTH = 64,
    MAX_ANCHORS = 256,
    MAX_ALIASES = 4096,
    MAX_VALUES = 1 << 17,
    MAX_DIRECTIVES = 64
};

struct counts {
    int depth, anchors, aliases, values;
};

/* A value of any kind. */
static void count_value(struct counts *c, const yaml_char_t *anchor)
{
    c->anchors += anchor != NULL;
    c->values++;
}

static const char *count(struct counts *c, const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        count_value(c, event->data.scalar.anchor);
        break;
    case YAML_SEQUENCE_START_EVENT:
        count_value(c, event->data.sequence_start.anchor);
        c->depth++;
        break;
    case YAML_MAPPING_START_EVENT:
        count_value(c, event->data.mapping_start.anchor);
        c->depth++;
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        c->depth--;
        break;
    case YAML_ALIAS_EVENT:
        c->aliases++;
        break;
    default:
        break;
    }
    return c->depth > MAX_DEPTH       ? "lists and groups are nested more than 64 deep"
           : c->anchors > MAX_ANCHORS ? "there are more than 256 anchors"
           : c->aliases > MAX_ALIASES ? "there are more than 4096 aliases"
           : c->values > MAX_VALUES   ? "there are more than 131072 values"
                                      : NULL;
}

/* Lines that begin with a percent sign, before any event comes. NUL bytes are UTF-16's. */
static const char *count_directives(const char *text, size_t size, size_t *line)
{
    char before = '\n';
    int directives = 0;
    *line = 1;
    for (size_t i = 0; i < size; i++) {
        directives += text[i] == '%' && (before == '\n' || before == '\r');
        *line += text[i] == '\n';
        if (text[i])
            before = text[i];
        if (directives > MAX_DIRECTIVES)
            return "there are more than 64 directives";
    }
    return NULL;
}

const char *kt_yaml_scan(const char *text, size_t size, size_t *line)
{
    struct counts counts = {0};
    yaml_parser_t parser;
    const char *problem = count_directives(text, size, line);
    if (problem)
        return problem;
    if (!yaml_parser_initialize(&parser))
        return NULL;
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    for (bool more = true; more && !problem;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event))
            break;
        *line = event.start_mark.line + 1;
        problem = count(&counts, &event);
        more = event.type != YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return problem;
}
