/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/deepseek.h
 * What DeepSeek-V2 and V3 share: multi-head latent attention (arXiv 2405.04434 section 2.1) and
 * layers of routed and shared experts. */
#ifndef KT_MODEL_DEEPSEEK_H
#define KT_MODEL_DEEPSEEK_H

#include "model/decoder.h"

extern const struct kt_binding kt_deepseek_layer_bindings[];

/** Everything but the router's kind. */
kt_status kt_deepseek_configure(const struct kt_json *json, struct kt_model_config *config);

/** Reads n_group and topk_group into config->router and checks that num_experts_per_tok experts can
 * come from the groups. */
kt_status kt_deepseek_read_groups(const struct kt_json *json, struct kt_model_config *config);

/** UNSUPPORTED unless the key is absent or has the only value that the architecture knows. */
kt_status kt_deepseek_expect(const struct kt_json *json, const char *key, const char *value);

#endif
