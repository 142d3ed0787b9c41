/* SPDX-License-Identifier: Apache-2.0 */
/* Mistral 7B, arXiv 2310.06825: Llama with a sliding window. */
#include "core/context.h"
#include "formats/json.h"
#include "model/decoder.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(0, 0),
    KT_BIND_MLP("mlp", DENSE_MLP, INTERMEDIATE, 0, 0),
    {.name = NULL},
};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    KT_TRY(kt_decoder_configure(json, 0, c));
    return kt_decoder_read_window(json, 4096, 0, c);
}

const struct kt_architecture kt_architecture_mistral = {
    .name = "MistralForCausalLM",
    .model_type = "mistral",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .ignored = kt_decoder_ignored,
};
