/* SPDX-License-Identifier: Apache-2.0 */
#include "model/deepseek.h"

#include <math.h>
#include <string.h>

#include "backend/experts.h"
#include "core/context.h"
#include "formats/json.h"

enum { MAX_EXPERTS = 65536, MAX_HEAD_DIM = 65536, MAX_INTERMEDIATE = 1 << 24 };

const struct kt_binding kt_deepseek_layer_bindings[] = {
    KT_BIND_NORM("input_layernorm", input_norm, HIDDEN, 0),
    KT_BIND_LINEAR("self_attn.q_proj", q_proj, ATTENTION, Q, HIDDEN, KT_IF_NO_Q_LORA, 0),
    KT_BIND_LINEAR("self_attn.q_a_proj", q_a, ATTENTION, Q_LORA, HIDDEN, KT_IF_Q_LORA,
                   KT_IF_ATTENTION_BIAS),
    KT_BIND_NORM("self_attn.q_a_layernorm", q_a_norm, Q_LORA, KT_IF_Q_LORA),
    KT_BIND_LINEAR("self_attn.q_b_proj", q_b, ATTENTION, Q, Q_LORA, KT_IF_Q_LORA, 0),
    KT_BIND_LINEAR("self_attn.kv_a_proj_with_mqa", kv_a, ATTENTION, KV_A, HIDDEN, 0,
                   KT_IF_ATTENTION_BIAS),
    KT_BIND_NORM("self_attn.kv_a_layernorm", kv_a_norm, KV_LORA, 0),
    KT_BIND_LINEAR("self_attn.kv_b_proj", kv_b, ATTENTION, KV_B, KV_LORA, 0, 0),
    KT_BIND_LINEAR("self_attn.o_proj", o, ATTENTION, HIDDEN, V, 0, KT_IF_ATTENTION_BIAS),
    KT_BIND_NORM("post_attention_layernorm", post_attention_norm, HIDDEN, 0),
    KT_BIND_LINEAR("mlp.gate_proj", mlp.gate, DENSE_MLP, INTERMEDIATE, HIDDEN, KT_IF_DENSE, 0),
    KT_BIND_LINEAR("mlp.up_proj", mlp.up, DENSE_MLP, INTERMEDIATE, HIDDEN, KT_IF_DENSE, 0),
    KT_BIND_LINEAR("mlp.down_proj", mlp.down, DENSE_MLP, HIDDEN, INTERMEDIATE, KT_IF_DENSE, 0),
    {.name = "model.layers.%l.mlp.gate",
     .kind = KT_PLACE_MATRIX,
     .place = offsetof(struct kt_layer, router),
     .rows = KT_DIM_EXPERTS,
     .cols = KT_DIM_HIDDEN,
     .when = KT_IF_MOE},
    {.name = "model.layers.%l.mlp.gate",
     .tensor = "model.layers.%l.mlp.gate.e_score_correction_bias",
     .kind = KT_PLACE_VECTOR,
     .place = offsetof(struct kt_layer, correction_bias),
     .rows = KT_DIM_EXPERTS,
     .when = KT_IF_CORRECTION_BIAS},
    KT_BIND_EXPERT("mlp.experts.%e.gate_proj", GATE, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.up_proj", UP, MOE_INTERMEDIATE, HIDDEN),
    KT_BIND_EXPERT("mlp.experts.%e.down_proj", DOWN, HIDDEN, MOE_INTERMEDIATE),
    KT_BIND_LINEAR("mlp.shared_experts.gate_proj", mlp.gate, SHARED_EXPERT, SHARED_INTERMEDIATE,
                   HIDDEN, KT_IF_SHARED_EXPERTS, 0),
    KT_BIND_LINEAR("mlp.shared_experts.up_proj", mlp.up, SHARED_EXPERT, SHARED_INTERMEDIATE, HIDDEN,
                   KT_IF_SHARED_EXPERTS, 0),
    KT_BIND_LINEAR("mlp.shared_experts.down_proj", mlp.down, SHARED_EXPERT, HIDDEN,
                   SHARED_INTERMEDIATE, KT_IF_SHARED_EXPERTS, 0),
    {.name = NULL},
};

static kt_status read_attention(const struct kt_json *json, struct kt_model_config *c)
{
    bool bias = false, interleave = true;
    c->attention = KT_ATTENTION_MLA;
    c->latent_norm_eps = 1e-6f;
    if (c->num_key_value_heads != c->num_attention_heads)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"num_key_value_heads\" is %d, but latent attention needs as many as "
                       "\"num_attention_heads\", %d",
                       json->path, c->num_key_value_heads, c->num_attention_heads);
    KT_TRY(kt_config_int(json, "q_lora_rank", false, 1, MAX_INTERMEDIATE, &c->q_lora_rank));
    KT_TRY(kt_config_int(json, "kv_lora_rank", true, 1, MAX_INTERMEDIATE, &c->kv_lora_rank));
    KT_TRY(kt_config_int(json, "qk_nope_head_dim", true, 1, MAX_HEAD_DIM, &c->qk_nope_head_dim));
    KT_TRY(kt_config_int(json, "qk_rope_head_dim", true, 2, MAX_HEAD_DIM, &c->qk_rope_head_dim));
    KT_TRY(kt_config_int(json, "v_head_dim", true, 1, MAX_HEAD_DIM, &c->v_head_dim));
    KT_TRY(kt_json_bool(json, "attention_bias", KT_JSON_OPTIONAL, &bias));
    KT_TRY(kt_json_bool(json, "rope_interleave", KT_JSON_OPTIONAL, &interleave));
    c->attention_bias = bias;
    KT_TRY(kt_config_read_rope(json, c->qk_rope_head_dim, c));
    c->rope.interleaved = interleave;
    double scale = pow(c->qk_nope_head_dim + c->qk_rope_head_dim, -0.5);
    if (c->rope.kind == KT_ROPE_YARN && c->rope.mscale_all_dim != 0)
        scale *= pow(kt_yarn_mscale(c->rope.factor, c->rope.mscale_all_dim), 2);
    c->softmax_scale = (float)scale;
    return KT_OK;
}

static kt_status read_experts(const struct kt_json *json, struct kt_model_config *c)
{
    double scaling;
    struct kt_router *r = &c->router;
    int32_t dense = 0, step = 1;
    KT_TRY(
        kt_config_int(json, "intermediate_size", true, 1, MAX_INTERMEDIATE, &c->intermediate_size));
    KT_TRY(kt_config_int(json, "n_routed_experts", true, 1, MAX_EXPERTS, &c->n_routed_experts));
    KT_TRY(kt_config_int(json, "moe_intermediate_size", true, 1, MAX_INTERMEDIATE,
                         &c->moe_intermediate_size));
    KT_TRY(kt_config_int(json, "n_shared_experts", false, 0, 1024, &c->n_shared_experts));
    KT_TRY(kt_config_int(json, "first_k_dense_replace", true, 0, 1 << 20, &dense));
    KT_TRY(kt_config_int(json, "moe_layer_freq", false, 1, 1 << 20, &step));
    KT_TRY(kt_config_int(json, "num_experts_per_tok", true, 1, c->n_routed_experts, &r->topk));
    KT_TRY(kt_json_real(json, "routed_scaling_factor", KT_JSON_REQUIRED, &scaling));
    if (!isfinite(scaling))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"routed_scaling_factor\" is not finite",
                       json->path);
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        c->layers[i] = i >= dense && i % step == 0 ? KT_LAYER_MOE : 0;
    c->shared_intermediate_size = c->moe_intermediate_size * c->n_shared_experts;
    r->num_experts = c->n_routed_experts;
    r->routed_scaling_factor = (float)scaling;
    r->n_group = r->topk_group = 1;
    return KT_OK;
}

kt_status kt_deepseek_configure(const struct kt_json *json, struct kt_model_config *c)
{
    KT_TRY(read_attention(json, c));
    return read_experts(json, c);
}

kt_status kt_deepseek_read_groups(const struct kt_json *json, struct kt_model_config *c)
{
    struct kt_router *r = &c->router;
    int32_t least = r->group_score == KT_GROUP_TOP2_SUM ? 2 : 1;
    KT_TRY(kt_config_int(json, "n_group", true, 1, r->num_experts / least, &r->n_group));
    KT_TRY(kt_config_int(json, "topk_group", true, 1, r->n_group, &r->topk_group));
    if (r->num_experts % r->n_group)
        return kt_fail(
            json->ctx, KT_ERROR_FORMAT,
            "%s: \"n_routed_experts\" (%d) cannot be divided into \"n_group\" (%d) groups",
            json->path, r->num_experts, r->n_group);
    if (r->topk > r->num_experts / r->n_group * r->topk_group)
        return kt_fail(
            json->ctx, KT_ERROR_FORMAT,
            "%s: \"num_experts_per_tok\" (%d) is more than \"topk_group\" (%d) groups of "
            "%d experts have",
            json->path, r->topk, r->topk_group, r->num_experts / r->n_group);
    return KT_OK;
}

kt_status kt_deepseek_expect(const struct kt_json *json, const char *key, const char *value)
{
    const char *found = value;
    KT_TRY(kt_json_string(json, key, KT_JSON_OPTIONAL, &found));
    if (strcmp(found, value) != 0)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s\" is \"%s\"; only \"%s\" is supported for this architecture",
                       json->path, key, found, value);
    return KT_OK;
}
