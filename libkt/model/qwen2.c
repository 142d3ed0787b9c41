/* SPDX-License-Identifier: Apache-2.0 */
/* Qwen2 and 2.5, arXiv 2407.10671: biases of query, key and value. */
#include "core/context.h"
#include "formats/json.h"
#include "model/qwen.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(KT_IF_ATTENTION_BIAS, 0),
    KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, 0, 0),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    c->attention_bias = true;
    KT_TRY(kt_decoder_configure(json, 0, c));
    return kt_qwen_read_layer_windows(json, c);
}

const struct kt_architecture kt_architecture_qwen2 = {
    .name = "Qwen2ForCausalLM",
    .model_type = "qwen2",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .ignored = kt_decoder_ignored,
};
