/* SPDX-License-Identifier: Apache-2.0 */
/* DeepSeek-V3, arXiv 2412.19437: sigmoid routing with a correction bias for the choice alone,
 * limited to the groups whose two best experts sum highest. */
#include "core/context.h"
#include "formats/json.h"
#include "model/deepseek.h"

static kt_status configure(const struct kt_json *json, struct kt_model_config *c)
{
    bool normalize = true;
    KT_TRY(kt_deepseek_configure(json, c));
    KT_TRY(kt_deepseek_expect(json, "scoring_func", "sigmoid"));
    KT_TRY(kt_deepseek_expect(json, "topk_method", "noaux_tc"));
    KT_TRY(kt_json_bool(json, "norm_topk_prob", KT_JSON_OPTIONAL, &normalize));
    c->num_nextn_predict_layers = 1;
    KT_TRY(kt_config_int(json, "num_nextn_predict_layers", false, 0, 1024,
                         &c->num_nextn_predict_layers));
    c->router_correction_bias = true;
    c->router.scoring = KT_SCORING_SIGMOID;
    c->router.group_score = KT_GROUP_TOP2_SUM;
    c->router.norm_topk_prob = normalize;
    return kt_deepseek_read_groups(json, c);
}

const struct kt_architecture kt_architecture_deepseek_v3 = {
    .name = "DeepseekV3ForCausalLM",
    .model_type = "deepseek_v3",
    .configure = configure,
    .model_bindings = kt_decoder_model_bindings,
    .layer_bindings = kt_deepseek_layer_bindings,
    .ignored = kt_decoder_ignored,
};
