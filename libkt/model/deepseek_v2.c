/* SPDX-License-Identifier: Apache-2.0 */
/* DeepSeek-V2, arXiv 2405.04434: softmax routing, greedy or limited to the groups with the best
 * expert; weights are the chosen probabilities times routed_scaling_factor. */
#include <string.h>

#include "core/context.h"
#include "formats/json.h"
#include "model/deepseek.h"

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    const char *method = "greedy";
    bool normalize = false, mlp_bias = false;
    KT_TRY(kt_deepseek_configure(json, c));
    KT_TRY(kt_deepseek_expect(json, "scoring_func", "softmax"));
    KT_TRY(kt_json_string(json, "topk_method", KT_JSON_OPTIONAL, &method));
    KT_TRY(kt_json_bool(json, "norm_topk_prob", KT_JSON_OPTIONAL, &normalize));
    KT_TRY(kt_json_bool(json, "mlp_bias", KT_JSON_OPTIONAL, &mlp_bias));
    if (normalize || mlp_bias)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s\" true is not supported for this architecture", json->path,
                       normalize ? "norm_topk_prob" : "mlp_bias");
    c->router.scoring = KT_SCORING_SOFTMAX;
    if (strcmp(method, "greedy") == 0)
        return KT_OK;
    c->router.group_score = KT_GROUP_MAX;
    if (strcmp(method, "group_limited_greedy") == 0)
        return kt_deepseek_read_groups(json, c);
    return kt_fail(
        json->ctx, KT_ERROR_UNSUPPORTED,
        "%s: \"topk_method\" is \"%s\"; greedy and group_limited_greedy are supported for "
        "this architecture",
        json->path, method);
}

const struct kt_architecture kt_architecture_deepseek_v2 = {
    .name = "DeepseekV2ForCausalLM",
    .model_type = "deepseek_v2",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = kt_deepseek_layer_bindings,
    .ignored = kt_decoder_ignored,
};
