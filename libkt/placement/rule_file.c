/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/context.h"
#include "formats/yaml.h"
#include "placement/rule.h"

/* Names of other programs' backends. Weights stay as the checkpoint has them with all of them. */
static const char *backend_name(const char *name)
{
    if (strcasecmp(name, "amxint8") == 0 || strcasecmp(name, "amx-int8") == 0)
        return "amx-int8";
    if (strncasecmp(name, "amx", 3) == 0)
        return "amx";
    return strcasecmp(name, "llamafile") == 0 ? "llamafile" : name;
}

static kt_status get_text(struct kt_yaml *y, const yaml_node_t *map, const char *key,
                          const char **text)
{
    yaml_node_t *node = NULL;
    if (map)
        KT_TRY(kt_yaml_get(y, map, key, YAML_SCALAR_NODE, &node));
    *text = node ? kt_yaml_text(node) : NULL;
    return KT_OK;
}

static kt_status add_entry(struct kt_yaml *y, kt_rule *rule, const yaml_node_t *match,
                           const yaml_node_t *kwargs)
{
    const char *name, *class, *device, *backend;
    KT_TRY(get_text(y, match, "name", &name));
    KT_TRY(get_text(y, match, "class", &class));
    KT_TRY(get_text(y, kwargs, "generate_device", &device));
    if (!device)
        KT_TRY(get_text(y, kwargs, "prefill_device", &device));
    KT_TRY(get_text(y, kwargs, "backend", &backend));
    if (!name && !class)
        return kt_yaml_fail(y, match, "\"match\" needs a \"name\" or a \"class\"");
    enum kt_module_class kind = class ? kt_class_of_name(class) : KT_CLASS_ANY;
    if (!name && kind == KT_CLASS_ANY) {
        kt_log(y->ctx, KT_LOG_WARNING, "%s: line %zu: no module has the class %s; entry ignored",
               y->path, match->start_mark.line + 1, class);
        return KT_OK;
    }
    kt_status status =
        kt_rule_add_entry(rule, name, kind, device, backend ? backend_name(backend) : NULL);
    if (status != KT_ERROR_INVALID_ARGUMENT)
        return status;
    char reason[sizeof y->ctx->error];
    strcpy(reason, kt_last_error(y->ctx));
    return kt_yaml_fail(y, match, reason);
}

static kt_status read_entry(struct kt_yaml *y, kt_rule *rule, const yaml_node_t *entry)
{
    static const char *const entry_keys[] = {"match", "replace", "recursive", NULL};
    static const char *const match_keys[] = {"name", "class", NULL};
    static const char *const replace_keys[] = {"class", "kwargs", NULL};
    yaml_node_t *match, *replace, *kwargs = NULL;
    KT_TRY(kt_yaml_expect(y, entry, YAML_MAPPING_NODE, "an entry of a rule"));
    KT_TRY(kt_yaml_allow(y, entry, entry_keys));
    KT_TRY(kt_yaml_get(y, entry, "match", YAML_MAPPING_NODE, &match));
    KT_TRY(kt_yaml_get(y, entry, "replace", YAML_MAPPING_NODE, &replace));
    if (!match)
        return kt_yaml_fail(y, entry, "an entry of a rule needs a \"match\"");
    KT_TRY(kt_yaml_allow(y, match, match_keys));
    if (replace) {
        KT_TRY(kt_yaml_allow(y, replace, replace_keys));
        KT_TRY(kt_yaml_get(y, replace, "kwargs", YAML_MAPPING_NODE, &kwargs));
    }
    return add_entry(y, rule, match, kwargs);
}

static kt_status read_entries(struct kt_yaml *y, kt_rule *rule)
{
    const yaml_node_t *root = kt_yaml_root(y);
    KT_TRY(kt_yaml_expect(y, root, YAML_SEQUENCE_NODE, "a rule file"));
    for (size_t i = 0; i < kt_yaml_size(root); i++)
        KT_TRY(read_entry(y, rule, kt_yaml_item(y, root, i)));
    return KT_OK;
}

kt_status kt_rule_load(kt_context *ctx, const char *path, kt_rule **out)
{
    struct kt_yaml *yaml;
    kt_rule *rule;
    KT_ENTER_CONTEXT_OUT(ctx, out);
    KT_TRY(kt_check_given(ctx, path, "the path of a rule"));
    KT_TRY(kt_yaml_load(ctx, path, KT_YAML_MAX, &yaml));
    kt_status status = kt_rule_create(ctx, &rule);
    if (status == KT_OK) {
        status = read_entries(yaml, rule);
        if (status == KT_OK)
            *out = rule;
        else
            kt_rule_free(rule);
    }
    kt_yaml_free(yaml);
    return status;
}
