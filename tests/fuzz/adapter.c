/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_config.json. */
#include "fuzz.h"
#include "lora/peft_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kt_peft_config config = {0};
    const char *file = fuzz_file("adapter_config.json", data, size);
    if (fuzz_ok(kt_peft_config_read(fuzz_context(), file, &config))) {
        kt_peft_config_choice(&config, "model.layers.0.self_attn.q_proj");
        kt_peft_config_choice(&config, "lm_head");
        kt_peft_config_choice(&config, "");
    }
    kt_peft_config_clear(&config);
    return 0;
}
