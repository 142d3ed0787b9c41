/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/device.h
 * What a device does: memory, and the operations of a transformer's training step. The executor
 * calls these through a table and knows no device by name.
 *
 * Activations are float32, row-major, [tokens, features] with a row stride (ld*) in elements.
 * Weights are read where they lie in the checkpoint, in their own dtype. `accumulate` 0 overwrites
 * the output (which may be uninitialised), 1 adds to it. All operations are deterministic: the same
 * inputs and number of threads give the same bits. They return OUT_OF_MEMORY (recorded in the
 * context) when scratch cannot be had, else KT_OK. tokens = 0 is valid and does nothing. */
#ifndef KT_BACKEND_DEVICE_H
#define KT_BACKEND_DEVICE_H

#include "weights/weight.h"

struct kt_device;

/** C[m,n] (+)= alpha * op(A) * op(B), float32. op(A) is [m,k]: A is [m,k], or [k,m] if trans_a. */
struct kt_gemm {
    int trans_a, trans_b;
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t lda;
    const float *b;
    int64_t ldb;
    int accumulate;
    float *c;
    int64_t ldc;
};

/** Scaled dot-product attention over packed sequences, causal, aligned at the ends: query i of a
 * sequence with nq queries and nk >= nq keys sees keys 0 .. nk - nq + i (FlashAttention-2,
 * arXiv 2307.08691). A key is the concatenation of a per-head part k [.., qk_dim - shared_dim] and
 * a part k_shared [.., shared_dim] that all heads share (MLA's rotary key; shared_dim 0 = none).
 * Element (token t, head h, i) of q is q[t*q_stride + h*q_head_stride + i]; likewise k, v, o.
 * Head h uses key/value head h / (num_heads / num_kv_heads). */
struct kt_attention {
    int32_t num_heads, num_kv_heads;
    int32_t qk_dim, shared_dim, v_dim;
    int32_t window; /**< keys a query sees, itself included; 0 = all */
    float scale;
    int32_t num_sequences;
    const int32_t *cu_seqlens_q, *cu_seqlens_k; /**< [num_sequences + 1] */
    kt_compute compute;
    const float *q;
    int64_t q_stride, q_head_stride;
    const float *k;
    int64_t k_stride, k_head_stride;
    const float *k_shared;
    int64_t k_shared_stride;
    const float *v;
    int64_t v_stride, v_head_stride;
    float *o; /**< in backward: the forward's output, read */
    int64_t o_stride, o_head_stride;
    float *lse; /**< [num_heads, total queries]: log-sum-exp of the scaled scores; forward writes it
                     unless NULL, backward reads it */
};

/** Gradients; strides are those of the matching input. dk_shared is summed over heads. Overwritten.
 */
struct kt_attention_grad {
    const float *d_o;
    float *dq, *dk, *dk_shared, *dv;
};

/** Rotary embedding of the last `rope_dim` features of `num_heads` heads in place. cos/sin are
 * [rows, rope_dim / 2]. interleaved: pairs (2i, 2i+1) rotate (DeepSeek); else (i, i + dim/2).
 * inverse = 1 rotates back, which is also the backward. */
struct kt_rope {
    float *x; /**< first rotated element of token 0, head 0 */
    int64_t stride, head_stride;
    int32_t num_heads, rope_dim;
    int interleaved, inverse;
    const float *cos, *sin;
    const int32_t *rows; /**< [tokens] the row of cos and sin for each */
};

enum kt_scoring { KT_SCORING_SOFTMAX, KT_SCORING_SIGMOID };
enum kt_group_score { KT_GROUP_NONE, KT_GROUP_MAX, KT_GROUP_TOP2_SUM };

/** Routing of DeepSeek-V2 (softmax, group maximum) and V3 (sigmoid with a correction bias for the
 * choice only, sum of the two best of a group), arXiv 2412.19437 section 2.1.2. */
struct kt_router {
    enum kt_scoring scoring;
    enum kt_group_score group_score;
    int32_t num_experts, topk, n_group, topk_group;
    int norm_topk_prob;
    float routed_scaling_factor;
    const float *correction_bias; /**< [num_experts] or NULL */
};

enum kt_activation { KT_ACTIVATION_SILU };

/** How large the arguments of operations get. */
struct kt_extent {
    int64_t tokens;
    int64_t widest;    /**< features in or out of a linear, norm or router */
    int32_t num_heads; /**< of attention */
    int32_t head_dim;  /**< the larger of qk_dim and v_dim */
};

struct kt_device_ops {
    const char *name;

    kt_status (*alloc)(struct kt_device *dev, uint64_t bytes, const char *what, void **out);
    void (*free)(struct kt_device *dev, void *memory);
    /** Most bytes of scratch that the operations below take and keep in training within `extent`.
     */
    uint64_t (*scratch_bytes)(const struct kt_device *dev, const struct kt_extent *extent);

    /** y[t, rows] (+)= x[t, cols] * W^T */
    kt_status (*linear_forward)(struct kt_device *dev, const struct kt_weight *w,
                                kt_compute compute, int64_t tokens, const float *x, int64_t ldx,
                                int accumulate, float *y, int64_t ldy);
    /** dx[t, cols] (+)= dy[t, rows] * W */
    kt_status (*linear_backward)(struct kt_device *dev, const struct kt_weight *w,
                                 kt_compute compute, int64_t tokens, const float *dy, int64_t lddy,
                                 int accumulate, float *dx, int64_t lddx);
    kt_status (*gemm)(struct kt_device *dev, const struct kt_gemm *gemm);

    /** x[t, cols] = row ids[t] of the table */
    kt_status (*embedding)(struct kt_device *dev, const struct kt_weight *table, int64_t tokens,
                           const int32_t *ids, float *x, int64_t ldx);
    /** y = x / sqrt(mean(x^2) + eps) * weight, over the last `dim` features */
    kt_status (*rmsnorm_forward)(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                 const float *weight, const float *x, int64_t ldx, float *y,
                                 int64_t ldy);
    /** dx (+)= gradient of the above (1/rms is recomputed from x) */
    kt_status (*rmsnorm_backward)(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                  const float *weight, const float *x, int64_t ldx, const float *dy,
                                  int64_t lddy, int accumulate, float *dx, int64_t lddx);
    kt_status (*rope)(struct kt_device *dev, const struct kt_rope *rope, int64_t tokens);
    kt_status (*attention_forward)(struct kt_device *dev, const struct kt_attention *a);
    kt_status (*attention_backward)(struct kt_device *dev, const struct kt_attention *a,
                                    const struct kt_attention_grad *g);
    /** h = act(gate) * up, [tokens, dim]; h may be gate */
    kt_status (*glu_forward)(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                             int64_t dim, const float *gate, const float *up, float *h);
    /** dgate and dup from dh; they may be the same memory as gate and up */
    kt_status (*glu_backward)(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                              int64_t dim, const float *gate, const float *up, const float *dh,
                              float *dgate, float *dup);
    /** topk_ids [tokens, topk], topk_weights likewise, from logits [tokens, num_experts] */
    kt_status (*router_forward)(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                const float *logits, int32_t *topk_ids, float *topk_weights);
    /** dlogits from d(topk_weights); the choice itself has no gradient */
    kt_status (*router_backward)(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                 const float *logits, const int32_t *topk_ids,
                                 const float *dtopk_weights, float *dlogits);
    /** For rows of logits: logprob[t] = logits[t, target[t]] - logsumexp; 0 where target[t] < 0.
     * With dlogprobs not NULL, logits become d(loss)/d(logits) for d(loss)/d(logprob[t]) =
     * dlogprobs[t]. */
    kt_status (*cross_entropy)(struct kt_device *dev, int64_t tokens, int64_t vocab, float *logits,
                               int64_t ld, const int32_t *targets, const float *dlogprobs,
                               float *logprobs);
    /** y (+)= alpha * x over [tokens, dim]; ldx 0 takes the same row for every token */
    kt_status (*add)(struct kt_device *dev, int64_t tokens, int64_t dim, float alpha,
                     const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy);
    /** y (+)= x * mask / (1 - p); element (t, i) of the mask as kt_dropout_row (core/random.h)
     * draws it, tokens counted from 0. The same call applied to a gradient is the backward. */
    kt_status (*dropout)(struct kt_device *dev, float p, uint64_t key, int64_t tokens, int64_t dim,
                         const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy);
    /** Rounds to bfloat16 into packed storage and back (kept layer inputs in bf16 training). */
    kt_status (*pack_bf16)(struct kt_device *dev, int64_t n, const float *x, uint16_t *packed);
    kt_status (*unpack_bf16)(struct kt_device *dev, int64_t n, const uint16_t *packed, float *x);
};

/** A device embeds this as its first member. */
struct kt_device {
    const struct kt_device_ops *ops;
    kt_context *ctx;
};

/** Opens "cpu" or "cpu:0". Errors: NOT_FOUND for a device this build or machine lacks. */
kt_status kt_device_open(kt_context *ctx, const char *name, struct kt_device **out);
void kt_device_close(struct kt_device *dev);

#endif
