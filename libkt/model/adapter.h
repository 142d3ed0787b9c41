/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/adapter.h
 * The matrices of a LoRA adapter bound to a model's linears: what the executor reads and adds
 * gradients to. libkt/lora creates, saves and updates it. */
#ifndef KT_MODEL_ADAPTER_H
#define KT_MODEL_ADAPTER_H

#include <kt/lora.h>

#include "backend/experts.h"
#include "model/model.h"

struct kt_lora_config; /* lora/: options as saved in adapter_config.json */

struct kt_lora {
    kt_model *model;
    struct kt_lora_pair *slots; /**< [model->num_linears]; a == NULL where there is no LoRA */
    uint8_t *has_grad;          /**< [model->num_linears]; slots[i].has_grad points here */
    int32_t *attached;          /**< [num_attached] indices of linears with LoRA, ascending */
    char **names;               /**< [num_attached] PEFT module name: "base_model.model." + path */
    int32_t num_attached;
    float *data, *grad;         /**< one block each; every a, b, da, db points into them */
    uint64_t num_parameters;
    uint64_t seed;
    struct kt_lora_config *config;
};

#endif
