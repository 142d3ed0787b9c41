/* SPDX-License-Identifier: Apache-2.0 */
#include "model/model.h"

extern const struct kt_architecture kt_architecture_deepseek_v2, kt_architecture_deepseek_v3,
    kt_architecture_qwen2_moe, kt_architecture_qwen3_moe, kt_architecture_mixtral,
    kt_architecture_llama, kt_architecture_mistral, kt_architecture_qwen2, kt_architecture_qwen3;

const struct kt_architecture *const kt_architectures[] = {
    /* clang-format off */
    &kt_architecture_deepseek_v2,
    &kt_architecture_deepseek_v3,
    &kt_architecture_qwen2_moe,
    &kt_architecture_qwen3_moe,
    &kt_architecture_mixtral,
    &kt_architecture_llama,
    &kt_architecture_mistral,
    &kt_architecture_qwen2,
    &kt_architecture_qwen3,
    NULL,
    /* clang-format on */
};
