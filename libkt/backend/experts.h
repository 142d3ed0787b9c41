/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/experts.h
 * Forward and backward of the routed experts of one MoE layer over a packed batch.
 *
 *   y[t]  = sum_j topk_weights[t,j] * E_{topk_ids[t,j]}(x[t]),   E(x) = W_down (act(W_gate x) * W_up x)
 *
 * Backward takes the gate and up products that forward kept, or recomputes them from x. With dh' = W_down^T dy[t] (not yet weighted)
 * and h the activated product, d(topk_weights[t,j]) = <dh', h> = <dy[t], E(x[t])>, exactly, without
 * forming E(x[t]). */
#ifndef KT_BACKEND_EXPERTS_H
#define KT_BACKEND_EXPERTS_H

#include "backend/device.h"

/** LoRA of one linear; A [rank, in], B [out, rank], float32. NULL a = the linear has none. */
struct kt_lora_pair {
    int32_t rank;
    float scale;
    float dropout;
    uint64_t dropout_key; /**< of this linear and step */
    const float *a, *b;
    float *da, *db;     /**< accumulated */
    uint8_t *has_grad;  /**< set to 1 when da, db were added to */
};

enum { KT_EXPERT_GATE, KT_EXPERT_UP, KT_EXPERT_DOWN, KT_EXPERT_LINEARS };

struct kt_expert_layer {
    int32_t num_experts;
    int64_t hidden_size, intermediate_size;
    enum kt_activation activation;
    /** [num_experts] each: gate, up [intermediate, hidden], down [hidden, intermediate] */
    const struct kt_weight *weights[KT_EXPERT_LINEARS];
    /** [num_experts] each, or NULL when no expert has LoRA */
    const struct kt_lora_pair *lora[KT_EXPERT_LINEARS];
};

struct kt_expert_batch {
    kt_compute compute;
    int training; /**< dropout of LoRA inputs on; masks keyed by (token, column) */
    int64_t tokens;
    int32_t topk;
    const int32_t *topk_ids;   /**< [tokens, topk]; the same expert may stand twice in a row */
    const float *topk_weights; /**< [tokens, topk] */
    const float *x;            /**< [tokens, hidden_size] */
    /** [tokens, topk, 2, intermediate_size]: the gate and up products of each slot, LoRA included.
     * Forward writes them and backward reads them instead of computing them again; NULL = neither.
     */
    float *kept;
};

struct kt_experts;

struct kt_experts_ops {
    const char *name;
    /** y [tokens, hidden] += the experts' sum */
    kt_status (*forward)(struct kt_experts *e, const struct kt_expert_layer *layer,
                         const struct kt_expert_batch *batch, float *y);
    /** dx [tokens, hidden] += ; dtopk_weights [tokens, topk] = ; LoRA gradients += */
    kt_status (*backward)(struct kt_experts *e, const struct kt_expert_layer *layer,
                          const struct kt_expert_batch *batch, const float *dy, float *dx,
                          float *dtopk_weights);
    /** Bytes of scratch a call over this many tokens may take, at most. */
    uint64_t (*scratch_bytes)(const struct kt_experts *e, const struct kt_expert_layer *layer,
                              int64_t tokens, int32_t topk);
    void (*close)(struct kt_experts *e);
};

/** A backend embeds this as its first member. */
struct kt_experts {
    const struct kt_experts_ops *ops;
    kt_context *ctx;
};

/** Opens "reference", "llamafile", "amx", "amx-int8" (amx that multiplies INT8 weights in INT8), for
 * tests "amx-emulated" and "amx-int8-emulated", or "auto": amx where it can run, else llamafile.
 * Errors: NOT_FOUND (the sentence says what is missing, or what there is). */
kt_status kt_experts_open(kt_context *ctx, const char *name, struct kt_experts **out);
void kt_experts_close(struct kt_experts *e);

#endif
