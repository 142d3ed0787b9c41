/* SPDX-License-Identifier: Apache-2.0 */
/* Mixtral, arXiv 2401.04088: every layer routes each token to experts; no other MLP. */
#include "core/context.h"
#include "formats/json.h"
#include "model/decoder.h"

static const struct kt_binding layer_bindings[] = {
    KT_BIND_LAYER_NORMS,
    KT_BIND_GQA(0, 0),
    KT_BIND_ROUTER("block_sparse_moe.gate"),
    KT_BIND_EXPERT("block_sparse_moe.experts.%e.w1", GATE, INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("block_sparse_moe.experts.%e.w3", UP, INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("block_sparse_moe.experts.%e.w2", DOWN, HIDDEN, INTERMEDIATE),
    {.name = NULL},
};

static const char *const dim_keys[KT_DIMS] = {[KT_DIM_EXPERTS] = "num_local_experts"};

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    KT_TRY(kt_decoder_configure(json, 0, c));
    KT_TRY(kt_decoder_read_router(json, "num_local_experts", c));
    if (!c->n_routed_experts)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"num_local_experts\" is 0, but every layer of this architecture has "
                       "experts",
                       json->path);
    c->router.norm_topk_prob = 1;
    c->moe_intermediate_size = c->intermediate_size;
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        c->layers[i] = KT_LAYER_MOE;
    return kt_decoder_read_window(json, 0, 0, c);
}

const struct kt_architecture kt_architecture_mixtral = {
    .name = "MixtralForCausalLM",
    .model_type = "mixtral",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = layer_bindings,
    .dim_keys = dim_keys,
    .ignored = kt_decoder_ignored,
};
