/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/qwen.h
 * Keys of config.json that Qwen's models share (arXiv 2407.10671, 2505.09388). */
#ifndef KT_MODEL_QWEN_H
#define KT_MODEL_QWEN_H

#include "model/decoder.h"

/** Names of the sizes of their experts, for errors: kt_architecture.dim_keys. */
extern const char *const kt_qwen_dim_keys[];

/** num_experts with their router, moe_intermediate_size, norm_topk_prob, and which layers have
 * them: decoder_sparse_step and mlp_only_layers. */
kt_status kt_qwen_read_moe(const struct kt_json *json, struct kt_model_config *config);

/** sliding_window where use_sliding_window turns it on, for layers from `first` on. */
kt_status kt_qwen_read_window(const struct kt_json *json, int32_t first,
                              struct kt_model_config *config);

/** The same for dense models: layers that layer_types names, or those from max_window_layers on. */
kt_status kt_qwen_read_layer_windows(const struct kt_json *json, struct kt_model_config *config);

#endif
