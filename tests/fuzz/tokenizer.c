/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.json, tokenizer_config.json, a text. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello  it's 12345 w\xc3\xb6rld\n\n \xe4\xbd\xa0\xe5\xa5\xbd <s>";
    size_t lengths[2];
    char *json = fuzz_text(&data, &size, &lengths[0]);
    char *config = fuzz_text(&data, &size, &lengths[1]);
    kt_tokenizer *tokenizer = NULL;
    const char *file = fuzz_file("tokenizer.json", json, lengths[0]);
    fuzz_file("tokenizer_config.json", config, lengths[1]);
    if (fuzz_ok(kt_tokenizer_load(fuzz_context(), file, &tokenizer))) {
        fuzz_use_tokenizer(tokenizer, text, sizeof text - 1);
        fuzz_use_tokenizer(tokenizer, (const char *)data, size);
        kt_tokenizer_free(tokenizer);
    }
    free(config);
    free(json);
    return 0;
}
