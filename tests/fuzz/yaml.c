/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/yaml.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kt_yaml *yaml = NULL;
    const char *file = fuzz_file("input.yaml", data, size);
    if (!fuzz_ok(kt_yaml_load(fuzz_context(), file, KT_YAML_MAX, &yaml)))
        return 0;
    yaml_node_t *root = kt_yaml_root(yaml), *value = NULL;
    if (fuzz_ok(kt_yaml_expect(yaml, root, YAML_SEQUENCE_NODE, "it")))
        for (size_t i = 0; i < kt_yaml_size(root); i++)
            kt_yaml_text(kt_yaml_item(yaml, root, i));
    if (fuzz_ok(kt_yaml_expect(yaml, root, YAML_MAPPING_NODE, "it")))
        fuzz_ok(kt_yaml_get(yaml, root, "match", YAML_SCALAR_NODE, &value));
    kt_yaml_free(yaml);
    return 0;
}
