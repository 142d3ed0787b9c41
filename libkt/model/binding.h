/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/binding.h
 * Where an architecture's tensors go. A descriptor is a table of bindings, one for each module of a
 * layer: the module's path, the place in kt_layer (or kt_model) that takes it, its shape in named
 * dimensions of the configuration, and the layers that have it. Generic code finds, checks and
 * binds.
 *
 * An architecture with a new kind of place gets a field in kt_layer; one with a new size gets a
 * dimension here. */
#ifndef KT_MODEL_BINDING_H
#define KT_MODEL_BINDING_H

#include "formats/safetensors.h"
#include "model/model.h"

enum kt_dim {
    KT_DIM_NONE, /**< no such dimension: the tensor is a vector */
    KT_DIM_VOCAB,
    KT_DIM_HIDDEN,
    KT_DIM_Q, /**< all heads' queries, rotary part included */
    KT_DIM_Q_LORA,
    KT_DIM_KV_A, /**< latent and shared rotary key */
    KT_DIM_KV_LORA,
    KT_DIM_KV_B,     /**< all heads' keys, without rotary part, and values */
    KT_DIM_V,        /**< all heads' values */
    KT_DIM_HEADS,    /**< all heads' queries of grouped-query attention */
    KT_DIM_KV_HEADS, /**< all heads' keys, or values */
    KT_DIM_HEAD,     /**< a head of them */
    KT_DIM_ONE,
    KT_DIM_INTERMEDIATE,
    KT_DIM_MOE_INTERMEDIATE,
    KT_DIM_SHARED_INTERMEDIATE,
    KT_DIM_EXPERTS,
    KT_DIMS
};

int64_t kt_dim_value(const struct kt_model_config *config, enum kt_dim dim);
/** The keys of config.json that it comes from, for errors. */
const char *kt_dim_keys(const struct kt_model_config *config, enum kt_dim dim);

/** Properties of a layer (or of the model) that a module can depend on. */
enum {
    KT_IF_MOE = 1u << 0,
    KT_IF_DENSE = 1u << 1,
    KT_IF_SHARED_EXPERTS = 1u << 2,
    KT_IF_CORRECTION_BIAS = 1u << 3,
    KT_IF_Q_LORA = 1u << 4,
    KT_IF_NO_Q_LORA = 1u << 5,
    KT_IF_ATTENTION_BIAS = 1u << 6,
    KT_IF_TIED = 1u << 7,
    KT_IF_UNTIED = 1u << 8,
    KT_IF_MLP_BIAS = 1u << 9
};

/** KT_IF_* bits that hold for a layer; layer -1: for the model's own bindings. */
uint32_t kt_layer_features(const struct kt_model_config *config, int32_t layer);

enum kt_place_kind {
    KT_PLACE_LINEAR, /**< struct kt_linear *: a new linear of the model */
    KT_PLACE_MATRIX, /**< struct kt_weight: a matrix that LoRA does not attach to */
    KT_PLACE_VECTOR, /**< float *: widened to float32 */
    KT_PLACE_EXPERT  /**< one linear an expert: experts[] and expert_weights[] of kt_layer */
};

struct kt_binding {
    const char
        *name; /**< module path with %l for the layer and %e for the expert; NULL ends a table */
    enum kt_place_kind kind;
    size_t place; /**< offset in kt_layer or kt_model; of KT_PLACE_EXPERT: KT_EXPERT_GATE, ... */
    enum kt_dim rows, cols;
    uint32_t when;    /**< all of these KT_IF_* bits, or the layer lacks the module */
    uint32_t bias_if; /**< these KT_IF_* bits give the linear a ".bias" [rows]; 0 = never */
    enum kt_linear_role role;
    const char *tensor; /**< NULL = the module's ".weight" */
};

/** Finds, checks and binds every tensor of model->config.architecture; fills everything of `model`
 * that points to weights, `used`, and the counts. Errors: NOT_FOUND (a tensor is missing), MISMATCH
 * (its shape, or that of its scales), UNSUPPORTED (its dtype), FORMAT (its alignment or size),
 * OUT_OF_MEMORY. */
kt_status kt_model_bind(struct kt_model *model);

/** The binding that a tensor of this name has in some layer, also in one that the model does not
 * use; NULL = none. Biases have none. */
const struct kt_binding *kt_binding_of(const struct kt_architecture *architecture,
                                       const char *name);

/** Logs tensors that nothing uses and counts the bytes of those that are skipped knowingly. */
void kt_model_account_unused(struct kt_model *model);

#endif
