/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/rule.h
 * A rule from inside. */
#ifndef KT_PLACEMENT_RULE_H
#define KT_PLACEMENT_RULE_H

#include <kt/rule.h>

struct kt_rule_entry {
    void *regex;                    /**< compiled, pcre2_code */
    char *device, *experts_backend; /**< NULL = default */
};

struct kt_rule {
    kt_context *ctx;
    struct kt_rule_entry *entries;
    size_t num_entries;
};

#endif
