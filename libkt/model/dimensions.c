/* SPDX-License-Identifier: Apache-2.0 */
#include "model/binding.h"

int64_t kt_dim_value(const struct kt_model_config *c, enum kt_dim dim)
{
    int64_t heads = c->num_attention_heads;
    switch (dim) {
    case KT_DIM_NONE:
        return 0;
    case KT_DIM_VOCAB:
        return c->vocab_size;
    case KT_DIM_HIDDEN:
        return c->hidden_size;
    case KT_DIM_Q:
        return heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    case KT_DIM_Q_LORA:
        return c->q_lora_rank;
    case KT_DIM_KV_A:
        return (int64_t)c->kv_lora_rank + c->qk_rope_head_dim;
    case KT_DIM_KV_LORA:
        return c->kv_lora_rank;
    case KT_DIM_KV_B:
        return heads * (c->qk_nope_head_dim + c->v_head_dim);
    case KT_DIM_V:
        return heads * c->v_head_dim;
    case KT_DIM_HEADS:
        return heads * c->head_dim;
    case KT_DIM_KV_HEADS:
        return (int64_t)c->num_key_value_heads * c->head_dim;
    case KT_DIM_HEAD:
        return c->head_dim;
    case KT_DIM_ONE:
        return 1;
    case KT_DIM_INTERMEDIATE:
        return c->intermediate_size;
    case KT_DIM_MOE_INTERMEDIATE:
        return c->moe_intermediate_size;
    case KT_DIM_SHARED_INTERMEDIATE:
        return c->shared_intermediate_size;
    case KT_DIM_EXPERTS:
        return c->n_routed_experts;
    case KT_DIMS:
        break;
    }
    return 0;
}

const char *kt_dim_keys(const struct kt_model_config *c, enum kt_dim dim)
{
    const char *const *own = c->architecture->dim_keys;
    static const char *const keys[KT_DIMS] = {
        [KT_DIM_NONE] = "",
        [KT_DIM_VOCAB] = "vocab_size",
        [KT_DIM_HIDDEN] = "hidden_size",
        [KT_DIM_Q] = "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
        [KT_DIM_Q_LORA] = "q_lora_rank",
        [KT_DIM_KV_A] = "(kv_lora_rank + qk_rope_head_dim)",
        [KT_DIM_KV_LORA] = "kv_lora_rank",
        [KT_DIM_KV_B] = "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
        [KT_DIM_V] = "num_attention_heads * v_head_dim",
        [KT_DIM_HEADS] = "num_attention_heads * head_dim",
        [KT_DIM_KV_HEADS] = "num_key_value_heads * head_dim",
        [KT_DIM_HEAD] = "head_dim",
        [KT_DIM_ONE] = "one row",
        [KT_DIM_INTERMEDIATE] = "intermediate_size",
        [KT_DIM_MOE_INTERMEDIATE] = "moe_intermediate_size",
        [KT_DIM_SHARED_INTERMEDIATE] = "n_shared_experts * moe_intermediate_size",
        [KT_DIM_EXPERTS] = "n_routed_experts",
    };
    return own && own[dim] ? own[dim] : keys[dim];
}

bool kt_config_is_moe(const struct kt_model_config *c, int32_t layer)
{
    return (c->layers[layer] & KT_LAYER_MOE) != 0;
}

uint32_t kt_layer_features(const struct kt_model_config *c, int32_t layer)
{
    uint32_t features = c->tie_word_embeddings ? KT_IF_TIED : KT_IF_UNTIED;
    if (layer < 0)
        return features;
    features |= c->q_lora_rank ? KT_IF_Q_LORA : KT_IF_NO_Q_LORA;
    if (c->attention_bias)
        features |= KT_IF_ATTENTION_BIAS;
    if (c->mlp_bias)
        features |= KT_IF_MLP_BIAS;
    if (!kt_config_is_moe(c, layer))
        return features | KT_IF_DENSE;
    if (c->n_shared_experts)
        features |= KT_IF_SHARED_EXPERTS;
    if (c->router_correction_bias)
        features |= KT_IF_CORRECTION_BIAS;
    return features | KT_IF_MOE;
}
