/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/mla.h
 * Multi-head latent attention (arXiv 2405.04434, section 2.1): what its training side and its
 * cached side share. */
#ifndef KT_EXECUTOR_MLA_H
#define KT_EXECUTOR_MLA_H

#include "executor/attention.h"

struct kt_mla_shape {
    int64_t heads, nope, rope, v, latent; /**< latent = kv_lora_rank */
    int64_t qk;                           /**< nope + rope: a head of q */
    int64_t kv;                           /**< nope + v: a head of kv_b's output */
    int64_t q_width;                      /**< heads * qk */
    int64_t kv_width;                     /**< heads * kv */
    int64_t row;                          /**< latent + rope: kv_a's output, and a cache row */
};

struct kt_mla_shape kt_mla_shape_of(const struct kt_model_config *config);

/** Fills q_a, q_latent, q (rotated) and kv_a (its rotary key rotated). */
void kt_mla_project(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                    struct kt_mla_state *s);

/** Attention of q over keys and values in kv_b's expanded form. */
struct kt_attention_args kt_mla_expanded(const struct kt_pass *pass, struct kt_view q,
                                         struct kt_view kv, struct kt_view rotary_key,
                                         struct kt_view o);

/** Attention of q over the cache in the space of the latents, which all heads share: q K_h replaces
 * q, and V_h maps the weighted sum of latents to the head's output, where K_h and V_h are the
 * head's rows of kv_b. No key or value is expanded. */
void kt_mla_absorbed(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view q,
                     const struct kt_cache_slice *cache, struct kt_view o);

/** kt_attention_ops.forward_cached; a cache row is the normed latent and the rotated key. */
void kt_mla_forward_cached(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                           const struct kt_cache_slice *cache, struct kt_view y);

#endif
