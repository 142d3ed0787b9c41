/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/rule.h
 * A rule from inside. */
#ifndef KT_PLACEMENT_RULE_H
#define KT_PLACEMENT_RULE_H

#include <kt/rule.h>

#include "core/handle.h"

/** Kinds of modules that an entry's `class` can narrow it to. Rule files say "torch.nn.Linear" with
 * a name that matches whole layers, and mean the linears in them. */
enum kt_module_class {
    KT_CLASS_ANY,
    KT_CLASS_LINEAR,
    KT_CLASS_ATTENTION,
    KT_CLASS_MLP,
    KT_CLASS_EXPERTS,
    KT_CLASS_ROUTER,
    KT_CLASS_NORM,
    KT_CLASS_EMBEDDING,
    KT_CLASS_ROTARY,
    KT_CLASS_MODEL
};

/** The kind that a Python class names, such as "torch.nn.Linear"; KT_CLASS_ANY for an unknown one.
 */
enum kt_module_class kt_class_of_name(const char *python_class);
/** The kind of the module at a path, by its last component. */
enum kt_module_class kt_class_of_module(const char *module);

struct kt_rule_entry {
    void *regex; /**< compiled, pcre2_code; NULL = every module of the class */
    enum kt_module_class class;
    char *device, *experts_backend; /**< NULL = default */
};

struct kt_rule {
    KT_HANDLE;
    struct kt_rule_entry *entries;
    size_t num_entries;
};

/** kt_rule_add with a class; name_regex NULL = every module of the class. */
kt_status kt_rule_add_entry(kt_rule *rule, const char *name_regex, enum kt_module_class class,
                            const char *device, const char *experts_backend);

#endif
