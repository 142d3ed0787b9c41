/* SPDX-License-Identifier: Apache-2.0 */
#include "model/decoder.h"

#include <math.h>

#include "core/context.h"
#include "formats/json.h"

enum { MAX_EXPERTS = 65536, MAX_HEAD_DIM = 65536, MAX_INTERMEDIATE = 1 << 24 };

const struct kt_binding kt_decoder_model_bindings[] = {
    {.name = "model.embed_tokens",
     .kind = KT_PLACE_MATRIX,
     .place = offsetof(struct kt_model, embed_tokens),
     .rows = KT_DIM_VOCAB,
     .cols = KT_DIM_HIDDEN},
    {.name = "model.norm",
     .kind = KT_PLACE_VECTOR,
     .place = offsetof(struct kt_model, final_norm),
     .rows = KT_DIM_HIDDEN},
    {.name = "lm_head",
     .kind = KT_PLACE_LINEAR,
     .place = offsetof(struct kt_model, lm_head),
     .role = KT_ROLE_HEAD,
     .rows = KT_DIM_VOCAB,
     .cols = KT_DIM_HIDDEN,
     .when = KT_IF_UNTIED},
    {.name = "lm_head",
     .kind = KT_PLACE_LINEAR,
     .place = offsetof(struct kt_model, lm_head),
     .role = KT_ROLE_HEAD,
     .rows = KT_DIM_VOCAB,
     .cols = KT_DIM_HIDDEN,
     .when = KT_IF_TIED,
     .tensor = "model.embed_tokens.weight"},
    {.name = NULL},
};

const char *const kt_decoder_ignored[] = {"model.layers.%l.self_attn.rotary_emb.inv_freq", NULL};

static kt_status read_head_dim(const struct kt_json *json, struct kt_model_config *c)
{
    KT_TRY(kt_config_int(json, "head_dim", false, 2, MAX_HEAD_DIM, &c->head_dim));
    if (!c->head_dim && c->hidden_size % c->num_attention_heads)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"hidden_size\" (%d) cannot be divided into \"num_attention_heads\" "
                       "(%d) heads, and there is no \"head_dim\"",
                       json->path, c->hidden_size, c->num_attention_heads);
    if (!c->head_dim)
        c->head_dim = c->hidden_size / c->num_attention_heads;
    if (c->num_attention_heads % c->num_key_value_heads)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"num_attention_heads\" (%d) cannot be divided into "
                       "\"num_key_value_heads\" (%d) groups",
                       json->path, c->num_attention_heads, c->num_key_value_heads);
    return KT_OK;
}

kt_status kt_decoder_configure(const struct kt_json *json, int32_t head_dim,
                               struct kt_model_config *c)
{
    c->attention = KT_ATTENTION_GQA;
    c->head_dim = head_dim;
    KT_TRY(read_head_dim(json, c));
    KT_TRY(
        kt_config_int(json, "intermediate_size", true, 1, MAX_INTERMEDIATE, &c->intermediate_size));
    c->softmax_scale = (float)pow(c->head_dim, -0.5);
    return kt_config_read_rope(json, c->head_dim, c);
}

kt_status kt_decoder_read_window(const struct kt_json *json, int32_t fallback, int32_t first,
                                 struct kt_model_config *c)
{
    if (!json_is_null(json_object_get(json->object, "sliding_window")))
        c->sliding_window = fallback;
    KT_TRY(kt_config_int(json, "sliding_window", false, 1, INT32_MAX, &c->sliding_window));
    for (int32_t i = first; c->sliding_window && i < c->num_hidden_layers; i++)
        c->layers[i] |= KT_LAYER_WINDOW;
    return KT_OK;
}

kt_status kt_decoder_read_router(const struct kt_json *json, const char *key,
                                 struct kt_model_config *c)
{
    struct kt_router *r = &c->router;
    KT_TRY(kt_config_int(json, key, true, 0, MAX_EXPERTS, &c->n_routed_experts));
    if (!c->n_routed_experts)
        return KT_OK;
    KT_TRY(kt_config_int(json, "num_experts_per_tok", true, 1, c->n_routed_experts, &r->topk));
    r->scoring = KT_SCORING_SOFTMAX;
    r->num_experts = c->n_routed_experts;
    r->n_group = r->topk_group = 1;
    r->routed_scaling_factor = 1;
    return KT_OK;
}
