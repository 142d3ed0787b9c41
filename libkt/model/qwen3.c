/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen3, arXiv 2505.09388: norms of each head's query and key. */
#include "core/context.h"
#include "formats/json.h"
#include "model/qwen.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS, KT_BIND_GQA(KT_IF_ATTENTION_BIAS, KT_IF_ATTENTION_BIAS),
    KT_BIND_HEAD_NORMS,  KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, 0, 0),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    bool bias = false;
    KT_TRY(kt_decoder_configure(json, 128, c));
    KT_TRY(kt_json_bool(json, "attention_bias", KT_JSON_OPTIONAL, &bias));
    c->attention_bias = bias;
    return kt_qwen_read_layer_windows(json, c);
}

const struct kt_architecture kt_architecture_qwen3 = {
    .name = "Qwen3ForCausalLM",
    .model_type = "qwen3",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .ignored = kt_decoder_ignored,
};
