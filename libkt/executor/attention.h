/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/attention.h
 * The attention of one layer. There is one table for each kt_attention_kind, so that another kind
 * of attention is another file and a line in attention.c. n is the normed input of the layer. */
#ifndef KT_EXECUTOR_ATTENTION_H
#define KT_EXECUTOR_ATTENTION_H

#include "executor/pass.h"

/** What forward leaves on the arena for backward. */
union kt_attention_state {
    struct kt_mla_state {
        float *q_a, *q_latent; /**< compressed query before and after its norm, [tokens,
                                  q_lora_rank]; NULL without compression */
        float *q;              /**< [tokens, heads, nope + rope], rotated */
        float *kv_a;   /**< [tokens, kv_lora_rank + rope]: latent before its norm, rotated key */
        float *latent; /**< [tokens, kv_lora_rank] */
        float *kv;     /**< [tokens, heads, nope + v] */
        float *o;      /**< [tokens, heads, v] */
        float *lse;    /**< [heads, tokens] */
    } mla;
    struct kt_gqa_state {
        float *q_raw, *k_raw; /**< before the norm of each head; q and k where there is none */
        float *q;             /**< [tokens, heads, head_dim], rotated */
        float *k, *v;         /**< [tokens, kv_heads, head_dim]; k rotated */
        float *o;             /**< [tokens, heads, head_dim] */
        float *lse;           /**< [heads, tokens] */
    } gqa;
};

/** What backward needs of a layer, kept from forward or recomputed. */
struct kt_kept {
    float *n;      /**< [tokens, hidden_size] normed input */
    float *middle; /**< [tokens, hidden_size] residual stream after attention */
    union kt_attention_state state;
    struct kt_products products; /**< of the feed-forward half; NULL where it is recomputed */
};

struct kt_attention_ops {
    /** y += attention; the caller releases what `state` points to. */
    kt_status (*forward)(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         union kt_attention_state *state, float *y);
    /** dn = d(n), unless NULL. Consumes the state. */
    kt_status (*backward)(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                          union kt_attention_state *state, const float *dy, float *dn);
    /** Whether any of the layer's attention linears has LoRA. */
    int (*has_lora)(const struct kt_pass *pass, const struct kt_layer *layer);
    /** Floats a token takes in the cache of one layer. */
    int64_t (*cache_width)(const struct kt_model_config *config);
    /** Features of a head's key or value, whichever has more. */
    int32_t (*head_dim)(const struct kt_model_config *config);
    /** y += attention of the pass's tokens, one sequence, over the cache and themselves. */
    kt_status (*forward_cached)(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                                const struct kt_cache_slice *cache, float *y);
};

const struct kt_attention_ops *kt_attention_of(const struct kt_model *model);

/** Rotates `rope.dim` features that begin at x + h * head_stride; inverse for gradients. */
kt_status kt_rotate(struct kt_pass *pass, float *x, int64_t stride, int64_t head_stride,
                    int64_t heads, int inverse);

/** The pass's padding tokens: each attends to all tokens of its sequence. `whole` is the attention
 * of the others; its pointers stand at token 0. */
kt_status kt_attend_padding(struct kt_pass *pass, const struct kt_attention *whole);

extern const struct kt_attention_ops kt_attention_mla, kt_attention_gqa;

#endif
