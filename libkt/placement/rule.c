/* SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "placement/rule.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"

static void free_entry(struct kt_rule_entry *entry)
{
    pcre2_code_free(entry->regex);
    free(entry->device);
    free(entry->experts_backend);
}

static void destroy(void *handle)
{
    kt_rule *rule = handle;
    for (size_t i = 0; i < rule->num_entries; i++)
        free_entry(&rule->entries[i]);
    free(rule->entries);
}

kt_status kt_rule_create(kt_context *ctx, kt_rule **out)
{
    KT_ENTER_CONTEXT_OUT(ctx, out);
    return kt_handle_new(ctx, sizeof **out, destroy, "a rule", (void **)out);
}

void kt_rule_free(kt_rule *rule)
{
    kt_handle_free(rule);
}

static kt_status compile(kt_context *ctx, const char *regex, void **out)
{
    int error;
    size_t offset;
    PCRE2_UCHAR text[128];
    *out =
        pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &offset, NULL);
    if (*out)
        return KT_OK;
    if (error == PCRE2_ERROR_HEAP_FAILED)
        return kt_fail_memory(ctx, strlen(regex), "the regular expression of a rule");
    pcre2_get_error_message(error, text, sizeof text);
    return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                   "the regular expression \"%s\" of a rule is wrong at character %zu: %s", regex,
                   offset, (const char *)text);
}

/** Copies a string that may be NULL; false when memory ran out. */
static bool copy(const char *text, char **out)
{
    *out = text ? strdup(text) : NULL;
    return !text || *out;
}

kt_status kt_rule_add_entry(kt_rule *rule, const char *name_regex, enum kt_module_class class,
                            const char *device, const char *experts_backend)
{
    struct kt_rule_entry entry = {.class = class}, *bigger;
    if (name_regex)
        KT_TRY(compile(rule->ctx, name_regex, &entry.regex));
    bigger = realloc(rule->entries, (rule->num_entries + 1) * sizeof *bigger);
    if (bigger)
        rule->entries = bigger;
    if (!bigger || !copy(device, &entry.device) || !copy(experts_backend, &entry.experts_backend)) {
        free_entry(&entry);
        return kt_fail_memory(rule->ctx, sizeof entry, "an entry of a rule");
    }
    rule->entries[rule->num_entries++] = entry;
    return KT_OK;
}

kt_status kt_rule_add(kt_rule *rule, const char *name_regex, const char *device,
                      const char *experts_backend)
{
    KT_ENTER(rule, "rule");
    return kt_rule_add_entry(rule, name_regex, KT_CLASS_ANY, device, experts_backend);
}

static bool found_in(void *regex, const char *module)
{
    if (!regex)
        return true;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    bool found = match && pcre2_match(regex, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, match,
                                      NULL) >= 0;
    pcre2_match_data_free(match);
    return found;
}

static bool matches(const struct kt_rule_entry *entry, const char *module)
{
    return (entry->class == KT_CLASS_ANY || entry->class == kt_class_of_module(module)) &&
           found_in(entry->regex, module);
}

const char *kt_rule_device(const kt_rule *rule, const char *module)
{
    for (size_t i = 0; rule && module && i < rule->num_entries; i++)
        if (rule->entries[i].device && matches(&rule->entries[i], module))
            return rule->entries[i].device;
    return "cpu";
}

const char *kt_rule_experts_backend(const kt_rule *rule, const char *module)
{
    for (size_t i = 0; rule && module && i < rule->num_entries; i++)
        if (rule->entries[i].experts_backend && matches(&rule->entries[i], module))
            return rule->entries[i].experts_backend;
    return "auto";
}
