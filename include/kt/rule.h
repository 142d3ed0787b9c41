/* SPDX-License-Identifier: Apache-2.0 */
/** \file rule.h
 * A rule says where modules run. It is an ordered list: the first entry whose regular expression
 * (PCRE2, searched in the module path) matches and which names a device decides the device, and
 * likewise for the experts backend. Files are YAML lists in the form that
 * KTransformers users have:
 *
 *     - match:
 *         name: "^model\\.layers\\..*\\.mlp\\.experts$"
 *       replace:
 *         kwargs:
 *           generate_device: "cpu"      # or prefill_device; "cuda:0" ...
 *           backend: "AMXBF16"          # or amx, amx-int8, cpu (llamafile), reference, auto
 *
 * `match` may have a `class` too: torch.nn.Linear narrows an entry to linears, a class that ends in
 * Attention, MLP, MoE, RotaryEmbedding and so on to those modules. What replaces them
 * (`replace.class`, other kwargs) chooses classes in the other program: accepted and ignored. The
 * backend AMXBF16 means amx and AMXInt8 amx-int8: with both, weights are used as the checkpoint has
 * them, and amx-int8 differs where they are INT8. A device or backend that this build or machine
 * lacks falls back to the CPU's own with a warning in the log. A rule is needed only while an
 * executor is made of it. See kt.h for NULL, threads and lifetimes. */
#ifndef KT_RULE_H
#define KT_RULE_H

#include <kt/types.h>

KT_BEGIN_DECLS

/** An empty rule: everything on "cpu", experts backend "auto". Errors: OUT_OF_MEMORY. */
KT_API kt_status kt_rule_create(kt_context *ctx, kt_rule **out);
/** Reads a rule file. Errors: NOT_FOUND, IO, FORMAT with file, line and key. */
KT_API kt_status kt_rule_load(kt_context *ctx, const char *path, kt_rule **out);
/** Appends an entry for the modules that `name_regex` matches (NULL = all). `device` ("cpu",
 * "cpu:0", "cuda:0", or "auto": the first GPU, else the CPU) and `experts_backend` may be NULL =
 * default. Errors: INVALID_ARGUMENT (the expression; the sentence says where), OUT_OF_MEMORY; the
 * rule is as it was then. */
KT_API kt_status kt_rule_add(kt_rule *rule, const char *name_regex, const char *device,
                             const char *experts_backend);
/** The decision for a module path. The strings are owned by the rule. Never NULL: "cpu" and "auto"
 * for a NULL rule or module too. */
KT_API const char *kt_rule_device(const kt_rule *rule, const char *module);
KT_API const char *kt_rule_experts_backend(const kt_rule *rule, const char *module);
/** Frees a rule and the strings that it told. */
KT_API void kt_rule_free(kt_rule *rule);

KT_END_DECLS
#endif
