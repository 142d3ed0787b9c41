/* SPDX-License-Identifier: Apache-2.0 */
/* Llama 2 and 3, arXiv 2307.09288 and 2407.21783. */
#include "core/context.h"
#include "formats/json.h"
#include "model/decoder.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(KT_IF_ATTENTION_BIAS, KT_IF_ATTENTION_BIAS),
    KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, 0, KT_IF_MLP_BIAS),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    bool attention_bias = false, mlp_bias = false;
    KT_TRY(kt_json_bool(json, "attention_bias", KT_JSON_OPTIONAL, &attention_bias));
    KT_TRY(kt_json_bool(json, "mlp_bias", KT_JSON_OPTIONAL, &mlp_bias));
    c->attention_bias = attention_bias;
    c->mlp_bias = mlp_bias;
    return kt_decoder_configure(json, 0, c);
}

const struct kt_architecture kt_architecture_llama = {
    .name = "LlamaForCausalLM",
    .model_type = "llama",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .ignored = kt_decoder_ignored,
};
