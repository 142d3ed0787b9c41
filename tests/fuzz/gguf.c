/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/gguf_header.h"
#include "formats/safetensors_header.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kt_context *ctx = fuzz_context();
    struct kt_tensor *tensors = NULL;
    json_t *metadata = NULL;
    size_t num = 0;
    if (!fuzz_ok(kt_gguf_parse(ctx, "input", data, size, &tensors, &num, &metadata))) {
        fuzz_expect(!tensors && !metadata, "a failure left something");
        return 0;
    }
    json_decref(metadata);
    kt_tensors_free(tensors, num);

    const char *file = fuzz_file("input.gguf", data, size);
    kt_model *model = NULL;
    kt_tokenizer *tokenizer = NULL;
    if (fuzz_ok(kt_model_load(ctx, file, NULL, &model)))
        kt_model_free(model);
    if (fuzz_ok(kt_tokenizer_load(ctx, file, &tokenizer))) {
        fuzz_use_tokenizer(tokenizer, "Hello  you 12\n", 14);
        kt_tokenizer_free(tokenizer);
    }
    return 0;
}
