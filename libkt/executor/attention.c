/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/attention.h"

const struct kt_attention_ops *kt_attention_of(const struct kt_model *model)
{
    static const struct kt_attention_ops *const table[] = {
        [KT_ATTENTION_MLA] = &kt_attention_mla,
    };
    return table[model->config.attention];
}
