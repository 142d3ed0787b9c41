/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/attention.h"

const struct kt_attention_ops *kt_attention_of(const struct kt_model *model)
{
    static const struct kt_attention_ops *const table[] = {
        [KT_ATTENTION_MLA] = &kt_attention_mla,
        [KT_ATTENTION_GQA] = &kt_attention_gqa,
    };
    return table[model->config.attention];
}

struct kt_offsets kt_pass_queries(const struct kt_pass *pass)
{
    return (struct kt_offsets){pass->num_sequences, pass->cu_seqlens, pass->stage->feed.queries};
}

struct kt_offsets kt_pass_keys(const struct kt_pass *pass)
{
    return (struct kt_offsets){pass->num_sequences, pass->cu_keys, pass->stage->feed.keys};
}

void kt_rotate(struct kt_pass *pass, struct kt_view x, int64_t head_stride, int64_t heads,
               bool inverse)
{
    const struct kt_rope_config *config = &pass->model->config.rope;
    const struct kt_feed *feed = &pass->stage->feed;
    struct kt_rope_args args = {.tokens = pass->tokens,
                                .x = x,
                                .head_stride = head_stride,
                                .num_heads = (int32_t)heads,
                                .rope_dim = config->dim,
                                .interleaved = config->interleaved,
                                .inverse = inverse,
                                .cos = feed->cos,
                                .sin = feed->sin,
                                .rows = feed->rope_rows};
    kt_run_rope(&pass->stage->run, &args);
}

/** A window that ends at a padding token holds fewer tokens of the sequence; at least the last. */
static int32_t padding_window(int32_t window, int32_t distance)
{
    if (!window)
        return 0;
    return window > distance ? window - distance : 1;
}

void kt_attend_padding(struct kt_pass *pass, const struct kt_attention_args *whole)
{
    int64_t real = pass->tokens - pass->padding;
    for (int64_t i = 0; i < pass->padding; i++) {
        const int32_t *host = pass->padding_offsets + 4 * i;
        const int32_t *device = pass->stage->feed.padding + 4 * i;
        int64_t begin = pass->cu_seqlens[pass->padding_sequences[i]];
        struct kt_attention_args a = *whole;
        a.window = padding_window(a.window, pass->positions[real + i] - (host[3] - 1));
        a.queries = (struct kt_offsets){1, host, device};
        a.keys = (struct kt_offsets){1, host + 2, device + 2};
        a.q = kt_view_at(a.q, real + i, 0);
        a.o = kt_view_at(a.o, real + i, 0);
        a.k = kt_view_at(a.k, begin, 0);
        if (a.shared_dim)
            a.k_shared = kt_view_at(a.k_shared, begin, 0);
        a.v = kt_view_at(a.v, begin, 0);
        a.lse = NULL;
        kt_run_attention_forward(&pass->stage->run, &a);
    }
}
