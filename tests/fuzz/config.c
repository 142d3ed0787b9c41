/* SPDX-License-Identifier: Apache-2.0 */
/* A model's config.json. */
#include "fuzz.h"
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_file("config.json", data, size);
    struct kt_model_config config = {0};
    if (fuzz_ok(kt_config_read(fuzz_context(), fuzz_path(""), &config)))
        for (int32_t layer = 0; layer < config.num_hidden_layers && layer < 100; layer++)
            kt_config_is_moe(&config, layer);
    return 0;
}
