/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"

static kt_status parse(struct kt_yaml *y, const char *data, size_t size)
{
    yaml_parser_t parser;
    size_t line = 0;
    const char *problem = kt_yaml_scan(data, size, &line);
    if (problem)
        return kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: line %zu: %s", y->path, line, problem);
    if (!yaml_parser_initialize(&parser))
        return kt_fail_memory(y->ctx, size, y->path);
    yaml_parser_set_input_string(&parser, (const unsigned char *)data, size);
    kt_status status = KT_OK;
    if (!yaml_parser_load(&parser, &y->document)) {
        memset(&y->document, 0, sizeof y->document);
        status = !parser.problem || parser.error == YAML_MEMORY_ERROR
                     ? kt_fail_memory(y->ctx, size, y->path)
                     : kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: line %zu: malformed YAML: %s", y->path,
                               parser.problem_mark.line + 1, parser.problem);
    } else if (!yaml_document_get_root_node(&y->document)) {
        status = kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: the file is empty", y->path);
    }
    yaml_parser_delete(&parser);
    return status;
}

kt_status kt_yaml_load(kt_context *ctx, const char *path, uint64_t max_bytes, struct kt_yaml **out)
{
    char *data;
    size_t size;
    *out = NULL;
    KT_TRY(kt_file_read(ctx, path, max_bytes, &data, &size));
    struct kt_yaml *y = calloc(1, sizeof *y);
    kt_status status;
    if (!y || !(y->path = strdup(path))) {
        status = kt_fail_memory(ctx, size, path);
    } else {
        y->ctx = ctx;
        status = parse(y, data, size);
    }
    free(data);
    if (status == KT_OK)
        *out = y;
    else
        kt_yaml_free(y);
    return status;
}

void kt_yaml_free(struct kt_yaml *y)
{
    if (!y)
        return;
    yaml_document_delete(&y->document);
    free(y->path);
    free(y);
}

yaml_node_t *kt_yaml_root(struct kt_yaml *y)
{
    return yaml_document_get_root_node(&y->document);
}

size_t kt_yaml_size(const yaml_node_t *node)
{
    if (node->type == YAML_SEQUENCE_NODE)
        return (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    if (node->type == YAML_MAPPING_NODE)
        return (size_t)(node->data.mapping.pairs.top - node->data.mapping.pairs.start);
    return 0;
}

yaml_node_t *kt_yaml_item(struct kt_yaml *y, const yaml_node_t *sequence, size_t index)
{
    return yaml_document_get_node(&y->document, sequence->data.sequence.items.start[index]);
}

const char *kt_yaml_text(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : "";
}

static bool is_null(const yaml_node_t *node)
{
    static const char *const names[] = {"", "~", "null", "Null", "NULL"};
    if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(kt_yaml_text(node), names[i]) == 0)
            return true;
    return false;
}

kt_status kt_yaml_fail(struct kt_yaml *y, const yaml_node_t *node, const char *text)
{
    return kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: line %zu: %s", y->path, node->start_mark.line + 1,
                   text);
}

kt_status kt_yaml_expect(struct kt_yaml *y, const yaml_node_t *node, yaml_node_type_t type,
                         const char *what)
{
    static const char *const names[] = {
        [YAML_SCALAR_NODE] = "a single value",
        [YAML_SEQUENCE_NODE] = "a list",
        [YAML_MAPPING_NODE] = "a group of keys",
    };
    if (node->type == type)
        return KT_OK;
    return kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: line %zu: %s must be %s", y->path,
                   node->start_mark.line + 1, what, names[type]);
}

kt_status kt_yaml_get(struct kt_yaml *y, const yaml_node_t *mapping, const char *key,
                      yaml_node_type_t type, yaml_node_t **value)
{
    *value = NULL;
    for (size_t i = 0; i < kt_yaml_size(mapping); i++) {
        const yaml_node_pair_t *pair = &mapping->data.mapping.pairs.start[i];
        if (strcmp(kt_yaml_text(yaml_document_get_node(&y->document, pair->key)), key) != 0)
            continue;
        yaml_node_t *found = yaml_document_get_node(&y->document, pair->value);
        if (is_null(found))
            return KT_OK;
        KT_TRY(kt_yaml_expect(y, found, type, key));
        *value = found;
        return KT_OK;
    }
    return KT_OK;
}

kt_status kt_yaml_allow(struct kt_yaml *y, const yaml_node_t *mapping, const char *const *keys)
{
    for (size_t i = 0; i < kt_yaml_size(mapping); i++) {
        const yaml_node_pair_t *pair = &mapping->data.mapping.pairs.start[i];
        const yaml_node_t *key = yaml_document_get_node(&y->document, pair->key);
        size_t k = 0;
        while (keys[k] && strcmp(keys[k], kt_yaml_text(key)) != 0)
            k++;
        if (!keys[k])
            return kt_fail(y->ctx, KT_ERROR_FORMAT, "%s: line %zu: unknown key \"%s\"", y->path,
                           key->start_mark.line + 1, kt_yaml_text(key));
    }
    return KT_OK;
}
