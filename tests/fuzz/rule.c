/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const modules[] = {"model.layers.1.self_attn.o_proj", "model.embed_tokens",
                                          "model.layers.12.mlp.experts", "lm_head", ""};
    kt_rule *rule = NULL;
    if (!fuzz_ok(kt_rule_load(fuzz_context(), fuzz_file("input.yaml", data, size), &rule)))
        return 0;
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        fuzz_expect(kt_rule_device(rule, modules[i]) != NULL, "no device");
        fuzz_expect(kt_rule_experts_backend(rule, modules[i]) != NULL, "no backend");
    }
    kt_rule_free(rule);
    return 0;
}
