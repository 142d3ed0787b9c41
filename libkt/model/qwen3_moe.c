/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen3-MoE, arXiv 2505.09388: norms of each head's query and key, routed experts alone. */
#include "core/context.h"
#include "formats/json.h"
#include "model/qwen.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(KT_IF_ATTENTION_BIAS, KT_IF_ATTENTION_BIAS),
    KT_BIND_HEAD_NORMS,
    KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, KT_IF_DENSE, 0),
    KT_BIND_ROUTER("mlp.gate"),
    KT_BIND_EXPERT("mlp.experts.%e.gate_proj", GATE, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.up_proj", UP, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.down_proj", DOWN, HIDDEN, MOE_INTERMEDIATE),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    bool bias = false;
    KT_TRY(kt_decoder_configure(json, 0, c));
    KT_TRY(kt_json_bool(json, "attention_bias", KT_JSON_OPTIONAL, &bias));
    c->attention_bias = bias;
    KT_TRY(kt_qwen_read_moe(json, c));
    return kt_qwen_read_window(json, 0, c);
}

const struct kt_architecture kt_architecture_qwen3_moe = {
    .name = "Qwen3MoeForCausalLM",
    .model_type = "qwen3_moe",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .dim_keys = kt_qwen_dim_keys,
    .ignored = kt_decoder_ignored,
};
