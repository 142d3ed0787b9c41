/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/pass.h
 * One walk of packed tokens through the layers: what every module of a layer needs to know. Modules
 * take activations [tokens, features] dense unless a stride is given, put their own on the arena
 * and release them, and record errors in the context. */
#ifndef KT_EXECUTOR_PASS_H
#define KT_EXECUTOR_PASS_H

#include "backend/experts.h"
#include "executor/arena.h"
#include "model/adapter.h"
#include "model/model.h"

enum kt_pass_kind {
    KT_PASS_MEASURE,  /**< sizes only: a device that does nothing, no callbacks */
    KT_PASS_QUIET,    /**< asks for cancellation, reports no progress */
    KT_PASS_REPORTING /**< both */
};

struct kt_pass {
    kt_context *ctx;
    enum kt_pass_kind kind;
    const struct kt_model *model;
    struct kt_lora *lora; /**< NULL = none */
    struct kt_device *device;
    struct kt_experts **experts; /**< [num_hidden_layers] */
    const float *zeros;          /**< [hidden_size] */
    kt_compute compute;
    int training;        /**< dropout on */
    int64_t dropout_row; /**< first token of a call on part of the tokens: varies its mask */
    struct kt_arena arena;

    int64_t tokens;
    int32_t num_sequences;
    const int32_t *cu_seqlens; /**< [num_sequences + 1] */
    const int32_t *positions;  /**< [tokens] */
    const int32_t *rope_rows;  /**< [tokens] the row of cos and sin for each */
    int64_t padding; /**< the last so many of the tokens are padding: each sees its sequence, none
                          sees it, and it marks the experts it chooses; forward of training only */
    const int32_t *padding_sequences; /**< [padding] */
    const float *cos, *sin;           /**< [rows, rope dim / 2] */
};

/** Between layers: cancellation and progress. */
kt_status kt_pass_tick(const struct kt_pass *pass, const char *what, int64_t done);

/** Device and experts whose operations do nothing, for KT_PASS_MEASURE. */
extern struct kt_device kt_null_device;
extern struct kt_experts kt_null_experts;

/** x [tokens, dim] = 0, for dim <= hidden_size. */
kt_status kt_zero(const struct kt_pass *pass, int64_t tokens, int64_t dim, float *x);

/** The pair attached to a linear, or NULL. */
const struct kt_lora_pair *kt_pass_lora(const struct kt_pass *pass, const struct kt_linear *linear);

/** y (+)= W x + bias + scale * B A dropout(x) */
kt_status kt_linear_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                            const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy);

/** The same for rows [begin, begin + count) of W alone: y [tokens, count]. */
kt_status kt_linear_rows_forward(struct kt_pass *pass, const struct kt_linear *linear,
                                 int64_t begin, int64_t count, int64_t tokens, const float *x,
                                 int64_t ldx, int accumulate, float *y, int64_t ldy);

/** dA, dB += ; dx (+)= unless NULL. x is the forward's input, read only where there is LoRA; dx may
 * be the same memory as x if it is overwritten. */
kt_status kt_linear_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                             const float *x, int64_t ldx, const float *dy, int64_t lddy,
                             int accumulate, float *dx, int64_t lddx);

/** Gate and up products of a layer's feed-forward half that forward keeps for backward; NULL =
 * backward recomputes them. Backward leaves other values in them. */
struct kt_products {
    float *gate, *up; /**< [tokens, intermediate] each, of a dense MLP or of shared experts without
                           a gate */
    float *shared;    /**< [tokens, 2, intermediate] of shared experts with a gate */
    float *routed;    /**< [tokens, topk, 2, moe_intermediate_size] */
};

/** y += MLP(n), dense or the shared experts. */
kt_status kt_mlp_forward(struct kt_pass *pass, const struct kt_mlp *mlp, const float *n,
                         const struct kt_products *products, float *y);
/** dn = */
kt_status kt_mlp_backward(struct kt_pass *pass, const struct kt_mlp *mlp, const float *n,
                          const struct kt_products *products, const float *dy, float *dn);

/** y += the shared experts of n, weighed by their gate where there is one; nothing without them. */
kt_status kt_shared_forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                            const struct kt_products *products, float *y);
/** dn = , zero without shared experts. */
kt_status kt_shared_backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                             const struct kt_products *products, const float *dy, float *dn);
/** The experts backend of a layer. */
struct kt_experts *kt_pass_experts(const struct kt_pass *pass, const struct kt_layer *layer);
/** The shared experts as the one expert of a layer of their own. */
struct kt_expert_layer kt_shared_expert_layer(const struct kt_pass *pass,
                                              const struct kt_layer *layer);

/** y += routed experts + shared experts of n. */
kt_status kt_moe_forward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                         const struct kt_products *products, float *y);
/** dn = , through the experts, the shared experts and the router weights. */
kt_status kt_moe_backward(struct kt_pass *pass, const struct kt_layer *layer, const float *n,
                          const struct kt_products *products, const float *dy, float *dn);

/** Whether any linear of the layer has LoRA. */
int kt_layer_has_lora(const struct kt_pass *pass, const struct kt_layer *layer);

struct kt_kept; /* attention.h */

/** Keys and values of one layer that generation keeps. */
struct kt_cache_slice {
    float *rows;  /**< [past + tokens, cache width]; forward appends the new tokens' rows */
    int64_t past; /**< rows that are there already */
};

/** x becomes the layer's output. `cache` NULL: the pass's sequences are whole; else its tokens
 * continue one sequence whose past is in the cache. */
kt_status kt_layer_forward(struct kt_pass *pass, const struct kt_layer *layer,
                           const struct kt_cache_slice *cache, float *x);
/** The same, for whole sequences; what backward needs stays on the arena. */
kt_status kt_layer_forward_keeping(struct kt_pass *pass, const struct kt_layer *layer,
                                   struct kt_kept *kept, float *x);
/** dy becomes d(input) of the layer; with need_dx 0 the layer is the lowest with LoRA and dy is
 * left undefined. x is the layer's input. `kept` is what
 * forward kept, NULL = recompute it. */
kt_status kt_layer_backward(struct kt_pass *pass, const struct kt_layer *layer,
                            struct kt_kept *kept, const float *x, float *dy, int need_dx);

#endif
