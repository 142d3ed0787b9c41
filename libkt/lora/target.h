/* SPDX-License-Identifier: Apache-2.0 */
/** \file lora/target.h
 * Which linears a list of names means. */
#ifndef KT_LORA_TARGET_H
#define KT_LORA_TARGET_H

#include "model/model.h"

/** The part of a module path after its last dot. */
const char *kt_last_component(const char *path);

/** True when `path` is `name` or ends with "." and `name`: PEFT's rule for target_modules. */
bool kt_target_matches(const char *path, const char *name, size_t length);

/** Sets selected[i] to 1 for every linear that `target` (see kt_lora_options) names. */
kt_status kt_target_select(kt_model *model, const char *target, int experts, uint8_t *selected);

/** Writes the distinct last components of the model's linears into `text`, separated by ", ". */
void kt_target_list_names(const kt_model *model, char *text, size_t size);

#endif
