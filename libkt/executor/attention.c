/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/attention.h"

#include "core/context.h"

const struct kt_attention_ops *kt_attention_of(const struct kt_model *model)
{
    static const struct kt_attention_ops *const table[] = {
        [KT_ATTENTION_MLA] = &kt_attention_mla,
        [KT_ATTENTION_GQA] = &kt_attention_gqa,
    };
    return table[model->config.attention];
}

kt_status kt_rotate(struct kt_pass *pass, float *x, int64_t stride, int64_t head_stride,
                    int64_t heads, int inverse)
{
    const struct kt_rope_config *config = &pass->model->config.rope;
    struct kt_rope rope = {.x = x,
                           .stride = stride,
                           .head_stride = head_stride,
                           .num_heads = (int32_t)heads,
                           .rope_dim = config->dim,
                           .interleaved = config->interleaved,
                           .inverse = inverse,
                           .cos = pass->cos,
                           .sin = pass->sin,
                           .rows = pass->rope_rows};
    return pass->device->ops->rope(pass->device, &rope, pass->tokens);
}

/** A window that ends at a padding token holds fewer tokens of the sequence; at least the last. */
static int32_t padding_window(int32_t window, int32_t distance)
{
    if (!window)
        return 0;
    return window > distance ? window - distance : 1;
}

kt_status kt_attend_padding(struct kt_pass *pass, const struct kt_attention *whole)
{
    int64_t real = pass->tokens - pass->padding;
    for (int64_t i = 0; i < pass->padding && pass->kind != KT_PASS_MEASURE; i++) {
        int32_t begin = pass->cu_seqlens[pass->padding_sequences[i]];
        int32_t end = pass->cu_seqlens[pass->padding_sequences[i] + 1];
        const int32_t query[] = {0, 1}, keys[] = {0, end - begin};
        struct kt_attention a = *whole;
        a.num_sequences = 1;
        a.window = padding_window(a.window, pass->positions[real + i] - (end - begin - 1));
        a.cu_seqlens_q = query;
        a.cu_seqlens_k = keys;
        a.q += (real + i) * a.q_stride;
        a.o += (real + i) * a.o_stride;
        a.k += begin * a.k_stride;
        if (a.shared_dim)
            a.k_shared += begin * a.k_shared_stride;
        a.v += begin * a.v_stride;
        a.lse = NULL;
        KT_TRY(pass->device->ops->attention_forward(pass->device, &a));
    }
    return KT_OK;
}
