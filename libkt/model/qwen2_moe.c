/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen2-MoE, arXiv 2407.10671: biases of query, key and value, and a shared expert whose gate each
 * token weighs it with. */
#include "core/context.h"
#include "formats/json.h"
#include "model/qwen.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(KT_IF_ATTENTION_BIAS, 0),
    KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, KT_IF_DENSE, 0),
    KT_BIND_ROUTER("mlp.gate"),
    KT_BIND_EXPERT("mlp.experts.%e.gate_proj", GATE, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.up_proj", UP, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.down_proj", DOWN, HIDDEN, MOE_INTERMEDIATE),
    KT_BIND_MLP("mlp.shared_expert", SHARED_EXPERT, SHARED_INTERMEDIATE, KT_IF_MOE, 0),
    KT_BIND_LINEAR("mlp.shared_expert_gate", shared_gate, SHARED_GATE, ONE, HIDDEN, KT_IF_MOE, 0),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    bool bias = true;
    KT_TRY(kt_decoder_configure(json, 0, c));
    KT_TRY(kt_json_bool(json, "qkv_bias", KT_JSON_OPTIONAL, &bias));
    c->attention_bias = bias;
    KT_TRY(kt_qwen_read_moe(json, c));
    c->n_shared_experts = c->n_routed_experts ? 1 : 0;
    KT_TRY(kt_config_int(json, "shared_expert_intermediate_size", c->n_shared_experts, 1, 1 << 24,
                         &c->shared_intermediate_size));
    return kt_qwen_read_window(json, 0, c);
}

const struct kt_architecture kt_architecture_qwen2_moe = {
    .name = "Qwen2MoeForCausalLM",
    .model_type = "qwen2_moe",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .dim_keys = kt_qwen_dim_keys,
    .ignored = kt_decoder_ignored,
};
