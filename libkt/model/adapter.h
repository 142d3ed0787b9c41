/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/adapter.h
 * The matrices of a LoRA adapter bound to a model's linears: what the executor reads and adds
 * gradients to. libkt/lora creates, saves and updates it. */
#ifndef KT_MODEL_ADAPTER_H
#define KT_MODEL_ADAPTER_H

#include <kt/lora.h>

#include "backend/experts.h"
#include "core/handle.h"
#include "model/model.h"

/** What PEFT's adapter_config.json says of the whole adapter. */
struct kt_lora_config {
    int32_t rank;
    float alpha, dropout;
    bool use_rslora;
};

struct kt_lora {
    KT_HANDLE;
    kt_model *model;            /**< held */
    struct kt_lora_pair *slots; /**< [model->num_linears]; a == NULL where there is no LoRA */
    uint8_t *has_grad;          /**< [model->num_linears]; slots[i].has_grad points here */
    int32_t *attached;          /**< [num_attached] indices of linears with LoRA, ascending */
    int32_t num_attached;
    float *alphas;      /**< [num_attached]; as ranks, they may differ from config's */
    char **names;       /**< [2 * num_attached], A and B of each linear in turn:
                             "base_model.model." + path + ".lora_A.weight" */
    float *data, *grad; /**< [num_parameters] each: a, b (da, db) of each attached linear in turn */
    uint64_t num_parameters;
    uint64_t seed;
    uint64_t version; /**< of the values in data: rises when they change */
    struct kt_lora_config config;
};

/** Floats of the k-th attached linear's A and B together, and where they begin in data. */
static inline uint64_t kt_adapter_pair_size(const kt_lora *lora, int32_t k)
{
    const struct kt_linear *linear = &lora->model->linears[lora->attached[k]];
    uint64_t rank = (uint64_t)lora->slots[linear->index].rank;
    return rank * (uint64_t)(linear->weight.rows + linear->weight.cols);
}

static inline uint64_t kt_adapter_pair_offset(const kt_lora *lora, int32_t k)
{
    return (uint64_t)(lora->slots[lora->attached[k]].a - lora->data);
}

/** The layer of a linear, or num_hidden_layers for one outside of them (lm_head). */
int32_t kt_linear_unit(const kt_model *model, const struct kt_linear *linear);

/** Whether the adapter, which may be NULL, is attached to a linear. */
bool kt_adapter_has(const kt_lora *lora, const struct kt_linear *linear);

/** The lowest layer with an attached linear; num_hidden_layers if there is none. */
int32_t kt_adapter_lowest_layer(const kt_lora *lora);

/** A number that differs, but for an unlikely accident, when any value of the adapter does; 0 for
 * NULL. Reads them all. */
uint64_t kt_adapter_fingerprint(const kt_lora *lora);

/** Clears the gradients of all attached linears, or of the k-th. */
void kt_adapter_zero_pair(kt_lora *lora, int32_t k);
void kt_adapter_zero_grad(kt_lora *lora);

#endif
