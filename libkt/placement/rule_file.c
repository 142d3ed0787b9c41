/* SPDX-License-Identifier: Apache-2.0 */
/* Rule files: a YAML list of {match: {name}, replace: {kwargs: {generate_device, backend ...}}}. */
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/context.h"
#include "formats/file.h"
#include "placement/rule.h"

enum { MAX_FILE_BYTES = 1 << 24 };

struct reader {
    kt_context *ctx;
    const char *path;
    yaml_document_t *document;
};

static kt_status wrong(const struct reader *r, const yaml_node_t *node, const char *what)
{
    return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s:%zu: %s", r->path, node->start_mark.line + 1, what);
}

/** The value of a key in a mapping, or NULL. */
static yaml_node_t *get(const struct reader *r, const yaml_node_t *mapping, const char *key)
{
    if (!mapping || mapping->type != YAML_MAPPING_NODE)
        return NULL;
    for (yaml_node_pair_t *pair = mapping->data.mapping.pairs.start;
         pair < mapping->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(r->document, pair->key);
        if (name->type == YAML_SCALAR_NODE &&
            strcmp((const char *)name->data.scalar.value, key) == 0)
            return yaml_document_get_node(r->document, pair->value);
    }
    return NULL;
}

/** *text stays NULL where the key is absent. */
static kt_status get_text(const struct reader *r, const yaml_node_t *mapping, const char *key,
                          const char **text)
{
    yaml_node_t *node = get(r, mapping, key);
    if (!node)
        return KT_OK;
    if (node->type != YAML_SCALAR_NODE)
        return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s:%zu: %s must be a string", r->path,
                       node->start_mark.line + 1, key);
    *text = (const char *)node->data.scalar.value;
    return KT_OK;
}

/** An entry without a name only picks a class for modules of another class: nothing to decide. */
static kt_status add_entry(const struct reader *r, yaml_node_t *node, kt_rule *rule)
{
    const char *name = NULL, *device = NULL, *backend = NULL;
    yaml_node_t *match = get(r, node, "match"), *replace = get(r, node, "replace");
    if (!match || match->type != YAML_MAPPING_NODE)
        return wrong(r, node, "an entry of a rule needs a mapping \"match\" with a \"name\"");
    yaml_node_t *kwargs = get(r, replace, "kwargs");
    KT_TRY(get_text(r, match, "name", &name));
    KT_TRY(get_text(r, kwargs, "prefill_device", &device));
    KT_TRY(get_text(r, kwargs, "generate_device", &device));
    KT_TRY(get_text(r, kwargs, "backend", &backend));
    if (!name)
        return KT_OK;
    kt_status status = kt_rule_add(rule, name, device, backend);
    if (status != KT_ERROR_INVALID_ARGUMENT)
        return status;
    char sentence[512];
    strncpy(sentence, kt_last_error(r->ctx), sizeof sentence - 1);
    sentence[sizeof sentence - 1] = 0;
    return wrong(r, match, sentence);
}

static kt_status add_entries(const struct reader *r, kt_rule *rule)
{
    yaml_node_t *root = yaml_document_get_root_node(r->document);
    if (!root)
        return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s: the file is empty; a rule is a YAML list",
                       r->path);
    if (root->type != YAML_SEQUENCE_NODE)
        return wrong(r, root, "a rule is a YAML list of entries with \"match\" and \"replace\"");
    for (yaml_node_item_t *item = root->data.sequence.items.start;
         item < root->data.sequence.items.top; item++)
        KT_TRY(add_entry(r, yaml_document_get_node(r->document, *item), rule));
    return KT_OK;
}

static kt_status parse(kt_context *ctx, const char *path, const char *data, size_t size,
                       kt_rule *rule)
{
    yaml_parser_t parser;
    yaml_document_t document;
    kt_status status;
    if (!yaml_parser_initialize(&parser))
        return kt_fail_memory(ctx, sizeof parser, "a YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)data, size);
    if (yaml_parser_load(&parser, &document)) {
        struct reader reader = {ctx, path, &document};
        status = add_entries(&reader, rule);
        yaml_document_delete(&document);
    } else {
        status = kt_fail(ctx, KT_ERROR_FORMAT, "%s:%zu: %s", path, parser.problem_mark.line + 1,
                         parser.problem ? parser.problem : "not YAML");
    }
    yaml_parser_delete(&parser);
    return status;
}

kt_status kt_rule_load(kt_context *ctx, const char *path, kt_rule **out)
{
    kt_rule *rule;
    char *data;
    size_t size;
    KT_TRY(kt_rule_create(ctx, &rule));
    kt_status status = kt_file_read(ctx, path, MAX_FILE_BYTES, &data, &size);
    if (status == KT_OK) {
        status = parse(ctx, path, data, size, rule);
        free(data);
    }
    if (status != KT_OK) {
        kt_rule_free(rule);
        return status;
    }
    *out = rule;
    return KT_OK;
}
