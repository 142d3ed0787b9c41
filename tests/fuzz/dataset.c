/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_info.json, whose dataset "a" is d.json, and that file. */
#include "fuzz.h"

static void look(kt_dataset *dataset)
{
    for (size_t i = 0; i < kt_dataset_num_examples(dataset); i++) {
        kt_example example = {.size = sizeof example};
        fuzz_expect(kt_dataset_get(dataset, i, &example) == KT_OK, "an example that is not there");
        for (size_t j = 0; j < example.length; j++)
            fuzz_expect(example.labels[j] == -100 || example.labels[j] == example.input_ids[j],
                        "a label that is no id");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const kt_tokenizer *tokenizer;
    if (!tokenizer)
        tokenizer = fuzz_tokenizer("tiny");
    size_t length;
    char *info = fuzz_text(&data, &size, &length);
    fuzz_file("dataset_info.json", info, length);
    free(info);
    fuzz_file("d.json", data, size);
    char folder[512];
    strcpy(folder, fuzz_path(""));
    static const char *const names[] = {"deepseek3", "qwen3", "default"};
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = folder;
    options.dataset = "a";
    options.template_name = names[size % 3];
    options.cutoff_len = size % 2 ? 24 : 512;
    kt_dataset *dataset = NULL;
    if (fuzz_ok(kt_dataset_load(fuzz_context(), tokenizer, &options, &dataset)))
        look(dataset);
    kt_dataset_free(dataset);
    return 0;
}
