/* SPDX-License-Identifier: Apache-2.0 */
/** \file lora/peft_config.h
 * adapter_config.json as PEFT 0.17 reads and writes it. */
#ifndef KT_LORA_PEFT_CONFIG_H
#define KT_LORA_PEFT_CONFIG_H

#include "lora/attach.h"

struct kt_peft_pattern;

/** What a configuration says; free with kt_peft_config_clear. */
struct kt_peft_config {
    struct kt_lora_config lora;
    struct kt_peft_pattern *patterns; /**< of rank_pattern and alpha_pattern, in the file's order */
    size_t num_patterns;
};

/** Reads `file`. Keys that change the mathematics in a way libkt does not have are refused
 * (UNSUPPORTED), as are unknown keys that hold anything. Other errors: NOT_FOUND, IO, FORMAT. */
kt_status kt_peft_config_read(kt_context *ctx, const char *file, struct kt_peft_config *config);
void kt_peft_config_clear(struct kt_peft_config *config);

/** Rank and alpha of the linear at `path`, patterns applied as PEFT applies them: the first whose
 * expression matches the end of the path, at a dot. */
struct kt_lora_choice kt_peft_config_choice(const struct kt_peft_config *config, const char *path);

/** Writes the configuration of `lora` to `file`. */
kt_status kt_peft_config_write(const kt_lora *lora, const char *file);

#endif
