/* SPDX-License-Identifier: Apache-2.0 */
#include "model/qwen.h"

#include <string.h>

#include "core/context.h"
#include "formats/json.h"

const char *const kt_qwen_dim_keys[KT_DIMS] = {
    [KT_DIM_EXPERTS] = "num_experts",
    [KT_DIM_SHARED_INTERMEDIATE] = "shared_expert_intermediate_size",
};

/* Layers that mlp_only_layers lists are dense; entries beyond the last layer mean nothing. */
static kt_status read_dense_layers(const struct kt_json *json, struct kt_model_config *c)
{
    json_t *list = NULL, *item;
    size_t i;
    KT_TRY(kt_json_container(json, "mlp_only_layers", KT_JSON_OPTIONAL, JSON_ARRAY, &list));
    json_array_foreach(list, i, item)
    {
        json_int_t layer = json_integer_value(item);
        if (!json_is_integer(item) || layer < 0)
            return kt_fail(json->ctx, KT_ERROR_FORMAT,
                           "%s: \"mlp_only_layers\" holds something that is not a layer's number",
                           json->path);
        if (layer < c->num_hidden_layers)
            c->layers[layer] &= (uint8_t)~KT_LAYER_MOE;
    }
    return KT_OK;
}

kt_status kt_qwen_read_moe(const struct kt_json *json, struct kt_model_config *c)
{
    int32_t step = 1;
    bool normalize = false;
    KT_TRY(kt_decoder_read_router(json, "num_experts", c));
    KT_TRY(kt_config_int(json, "decoder_sparse_step", false, 1, 1 << 20, &step));
    KT_TRY(kt_config_int(json, "moe_intermediate_size", c->n_routed_experts != 0, 1, 1 << 24,
                         &c->moe_intermediate_size));
    KT_TRY(kt_json_bool(json, "norm_topk_prob", KT_JSON_OPTIONAL, &normalize));
    c->router.norm_topk_prob = normalize;
    for (int32_t i = 0; c->n_routed_experts && i < c->num_hidden_layers; i++)
        if ((i + 1) % step == 0)
            c->layers[i] |= KT_LAYER_MOE;
    return read_dense_layers(json, c);
}

kt_status kt_qwen_read_window(const struct kt_json *json, int32_t first, struct kt_model_config *c)
{
    bool on = false;
    KT_TRY(kt_json_bool(json, "use_sliding_window", KT_JSON_OPTIONAL, &on));
    return on ? kt_decoder_read_window(json, 4096, first, c) : KT_OK;
}

/* layer_types wins over the layers that have windows so far. */
static kt_status read_layer_types(const struct kt_json *json, struct kt_model_config *c)
{
    json_t *types = NULL;
    KT_TRY(kt_json_container(json, "layer_types", KT_JSON_OPTIONAL, JSON_ARRAY, &types));
    if (!types)
        return KT_OK;
    for (int32_t i = 0; i < c->num_hidden_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        bool window = type && strcmp(type, "sliding_attention") == 0;
        if (!type || (!window && strcmp(type, "full_attention") != 0))
            return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"layer_types\" says nothing of layer %d that is known; each is "
                           "full_attention or sliding_attention",
                           json->path, i);
        if (window && !c->sliding_window)
            return kt_fail(json->ctx, KT_ERROR_FORMAT,
                           "%s: \"layer_types\" gives layer %d a sliding window, but "
                           "\"use_sliding_window\" and \"sliding_window\" give none",
                           json->path, i);
        c->layers[i] &= (uint8_t)~KT_LAYER_WINDOW;
        if (window)
            c->layers[i] |= KT_LAYER_WINDOW;
    }
    return KT_OK;
}

kt_status kt_qwen_read_layer_windows(const struct kt_json *json, struct kt_model_config *c)
{
    int32_t first = 28;
    KT_TRY(kt_config_int(json, "max_window_layers", false, 0, 1 << 30, &first));
    KT_TRY(kt_qwen_read_window(json, first, c));
    return read_layer_types(json, c);
}
