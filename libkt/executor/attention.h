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
        struct kt_view q_a, q_latent; /**< compressed query before and after its norm, [tokens,
                                         q_lora_rank]; without data where there is none */
        struct kt_view q; /**< [tokens, heads, nope + rope], rotated; without data, as is kv, where
                             heads go through attention in groups, of which backward recomputes
                             them */
        struct kt_view kv_a;   /**< [tokens, kv_lora_rank + rope]: latent before its norm, rotated
                                    key */
        struct kt_view latent; /**< [tokens, kv_lora_rank] */
        struct kt_view kv;     /**< [tokens, heads, nope + v] */
        struct kt_view o;      /**< [tokens, heads, v] */
        float *lse;            /**< [heads, tokens] */
    } mla;
    struct kt_gqa_state {
        struct kt_view q_raw,
            k_raw;           /**< before the norm of each head; q and k where there is none */
        struct kt_view q;    /**< [tokens, heads, head_dim], rotated; without data, as are q_raw,
                                k_raw, k and v, where heads go through attention in groups */
        struct kt_view k, v; /**< [tokens, kv_heads, head_dim]; k rotated */
        struct kt_view o;    /**< [tokens, heads, head_dim] */
        float *lse;          /**< [heads, tokens] */
    } gqa;
};

/** What backward needs of a layer, kept from forward or recomputed. */
struct kt_kept {
    struct kt_view n;      /**< [tokens, hidden_size] normed input */
    struct kt_view middle; /**< [tokens, hidden_size] residual stream after attention */
    union kt_attention_state state;
    struct kt_products products; /**< of the feed-forward half; NULL where it is recomputed */
};

struct kt_attention_ops {
    /** y += attention; the caller releases what `state` points to. */
    void (*forward)(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    union kt_attention_state *state, struct kt_view y);
    /** dn = d(n), unless its data is NULL. Consumes the state. */
    void (*backward)(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                     union kt_attention_state *state, struct kt_view dy, struct kt_view dn);
    /** Whether any of the layer's attention linears has LoRA. */
    bool (*has_lora)(const struct kt_pass *pass, const struct kt_layer *layer);
    /** Floats a token takes in the cache of one layer. */
    int64_t (*cache_width)(const struct kt_model_config *config);
    /** y += attention of the pass's tokens, one sequence, over the cache and themselves. */
    void (*forward_cached)(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct kt_cache_slice *cache, struct kt_view y);
};

const struct kt_attention_ops *kt_attention_of(const struct kt_model *model);

/** The pass's sequences as queries, and as keys: those of the cache where there is one. */
struct kt_offsets kt_pass_queries(const struct kt_pass *pass);
struct kt_offsets kt_pass_keys(const struct kt_pass *pass);

/** Rotates `rope.dim` features that begin at x + h * head_stride; inverse for gradients. */
void kt_rotate(struct kt_pass *pass, struct kt_view x, int64_t head_stride, int64_t heads,
               bool inverse);

/** The pass's padding tokens: each attends to all tokens of its sequence. `whole` is the attention
 * of the others; its views stand at token 0. */
void kt_attend_padding(struct kt_pass *pass, const struct kt_attention_args *whole);

/** The most of `heads` that go through attention together. */
static inline int64_t kt_heads_at_once(const struct kt_pass *pass, int64_t heads)
{
    return (heads + pass->pieces - 1) / pass->pieces;
}

/** Log-sum-exp of the heads from `head` on. */
static inline float *kt_lse_at(const struct kt_pass *pass, float *lse, int64_t head)
{
    return lse + head * pass->cu_seqlens[pass->num_sequences];
}

extern const struct kt_attention_ops kt_attention_mla, kt_attention_gqa;

#endif
