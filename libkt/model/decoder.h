/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/decoder.h
 * What the tables of decoder-only models are made of: the bindings outside of layers, and macros
 * for the entries of layers that most architectures have alike. */
#ifndef KT_MODEL_DECODER_H
#define KT_MODEL_DECODER_H

#include "backend/experts.h"
#include "model/binding.h"

/** Embedding, final norm and lm_head (tied or not). */
extern const struct kt_binding kt_decoder_model_bindings[];
/** Inverse rotary frequencies, which old checkpoints hold. */
extern const char *const kt_decoder_ignored[];

/** A linear of a layer; path is "self_attn.q_proj", part and dimensions without their prefix. */
#define KT_BIND_LINEAR(path, field, part, rows_, cols_, when_, bias_)                              \
    {                                                                                              \
        .name = "model.layers.%l." path, .kind = KT_PLACE_LINEAR,                                  \
        .place = offsetof(struct kt_layer, field), .role = KT_ROLE_##part, .rows = KT_DIM_##rows_, \
        .cols = KT_DIM_##cols_, .when = when_, .bias_if = bias_                                    \
    }
/** A linear of each routed expert; path is "mlp.experts.%e.gate_proj". */
#define KT_BIND_EXPERT(path, which, rows_, cols_)                                                  \
    {                                                                                              \
        .name = "model.layers.%l." path, .kind = KT_PLACE_EXPERT, .place = KT_EXPERT_##which,      \
        .role = KT_ROLE_ROUTED_EXPERT, .rows = KT_DIM_##rows_, .cols = KT_DIM_##cols_,             \
        .when = KT_IF_MOE                                                                          \
    }
#define KT_BIND_NORM(path, field, rows_, when_)                                                    \
    {                                                                                              \
        .name = "model.layers.%l." path, .kind = KT_PLACE_VECTOR,                                  \
        .place = offsetof(struct kt_layer, field), .rows = KT_DIM_##rows_, .when = when_           \
    }

#define KT_BIND_LAYER_NORMS                                                                        \
    KT_BIND_NORM("input_layernorm", input_norm, HIDDEN, 0),                                        \
        KT_BIND_NORM("post_attention_layernorm", post_attention_norm, HIDDEN, 0)

/** Grouped-query attention; the KT_IF_* bits that give q, k, v and o a bias. */
#define KT_BIND_GQA(qkv_bias, o_bias)                                                              \
    KT_BIND_LINEAR("self_attn.q_proj", q_proj, ATTENTION, HEADS, HIDDEN, 0, qkv_bias),             \
        KT_BIND_LINEAR("self_attn.k_proj", k_proj, ATTENTION, KV_HEADS, HIDDEN, 0, qkv_bias),      \
        KT_BIND_LINEAR("self_attn.v_proj", v_proj, ATTENTION, KV_HEADS, HIDDEN, 0, qkv_bias),      \
        KT_BIND_LINEAR("self_attn.o_proj", o, ATTENTION, HIDDEN, HEADS, 0, o_bias)
/** Norms of each head's query and key. */
#define KT_BIND_HEAD_NORMS                                                                         \
    KT_BIND_NORM("self_attn.q_norm", q_norm, HEAD, 0),                                             \
        KT_BIND_NORM("self_attn.k_norm", k_norm, HEAD, 0)

/** A gated MLP under `path`, which takes kt_layer.mlp. */
#define KT_BIND_MLP(path, part, inner, when, bias)                                                 \
    KT_BIND_LINEAR(path ".gate_proj", mlp.gate, part, inner, HIDDEN, when, bias),                  \
        KT_BIND_LINEAR(path ".up_proj", mlp.up, part, inner, HIDDEN, when, bias),                  \
        KT_BIND_LINEAR(path ".down_proj", mlp.down, part, HIDDEN, inner, when, bias)

/** A router that is an ordinary linear. */
#define KT_BIND_ROUTER(path)                                                                       \
    KT_BIND_LINEAR(path, router_linear, ROUTER, EXPERTS, HIDDEN, KT_IF_MOE, 0)

/** Reads what grouped-query attention (arXiv 2305.13245) needs: head_dim (`head_dim` where the key
 * is absent; 0 = hidden_size / num_attention_heads), rotary embedding of the whole head, scale;
 * and intermediate_size. Errors: as kt_architecture.configure's. */
kt_status kt_decoder_configure(const struct kt_json *json, int32_t head_dim,
                               struct kt_model_config *config);

/** Reads sliding_window, `fallback` where the key is absent (0 = none), and gives it to all layers
 * from `first` on; null turns it off. */
kt_status kt_decoder_read_window(const struct kt_json *json, int32_t fallback, int32_t first,
                                 struct kt_model_config *config);

/** A softmax router over the experts that `key` counts and num_experts_per_tok. With no experts
 * (0) it reads nothing else. */
kt_status kt_decoder_read_router(const struct kt_json *json, const char *key,
                                 struct kt_model_config *config);

#endif
