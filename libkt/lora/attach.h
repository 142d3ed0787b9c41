/* SPDX-License-Identifier: Apache-2.0 */
/** \file lora/attach.h
 * Memory and names of an adapter, for creation and for loading. */
#ifndef KT_LORA_ATTACH_H
#define KT_LORA_ATTACH_H

#include "model/adapter.h"

/** What one linear of the model gets; rank 0 = nothing. */
struct kt_lora_choice {
    int32_t rank;
    float alpha;
};

/** An adapter with the matrices that `choices` [model->num_linears] ask for; their values are left
 * for the caller to write, gradients are zero. Errors: OUT_OF_MEMORY. */
kt_status kt_lora_attach(kt_model *model, const struct kt_lora_config *config,
                         const struct kt_lora_choice *choices, kt_lora **out);

#endif
