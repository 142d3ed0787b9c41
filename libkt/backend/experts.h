/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/experts.h
 * Forward and backward of the routed experts of one MoE layer over a packed batch.
 *
 *   y[t]  = sum_j weights[t,j] * E_{ids[t,j]}(x[t]),   E(x) = W_down (act(W_gate x) * W_up x)
 *
 * Backward takes the gate and up products that forward kept, or recomputes them from x. With
 * dh' = W_down^T dy[t] (not yet weighted) and h the activated product,
 * d(weights[t,j]) = <dh', h> = <dy[t], E(x[t])>, exactly, without forming E(x[t]).
 *
 * A backend computes the rows of a routing, which may be a share of a larger one. A token's rows
 * are summed in ascending order of experts, whatever a call is cut into. Calls cannot fail: scratch
 * is given, and what a backend cannot do it says in `supports`. */
#ifndef KT_BACKEND_EXPERTS_H
#define KT_BACKEND_EXPERTS_H

#include "backend/device.h"
#include "backend/routing.h"

/** LoRA of one linear; A [rank, in], B [out, rank], float32. NULL a = the linear has none. */
struct kt_lora_pair {
    int32_t rank;
    float scale;
    float dropout;
    uint64_t dropout_key; /**< of this linear and step */
    const float *a, *b;
    float *da, *db;    /**< accumulated */
    uint8_t *has_grad; /**< 1 = da, db were added to; written by the executor, not by backends */
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

struct kt_expert_call {
    const struct kt_expert_layer *layer;
    const struct kt_routing *routing; /**< the rows to compute */
    kt_compute compute;
    bool training;    /**< dropout of LoRA inputs on; masks keyed by (token, column) */
    struct kt_view x; /**< [tokens, hidden_size], dense float32 */
    /** [tokens, topk, 2, intermediate_size] float32: the gate and up products of each slot, LoRA
     * included. Forward writes them and backward reads them instead of computing them again; NULL =
     * neither. */
    float *kept;
    void *scratch; /**< of at least scratch_bytes bytes, 64-byte aligned */
};

struct kt_experts;

struct kt_experts_ops {
    uint32_t abi, traits;
    const char *name;
    /** Whether the backend computes such calls; another one is asked where it does not. */
    bool (*supports)(const struct kt_experts *e, const struct kt_expert_layer *layer,
                     kt_compute compute, int64_t tokens, bool training);
    /** Scratch of a call over a routing of so many tokens, all of its slots at most. */
    uint64_t (*scratch_bytes)(const struct kt_experts *e, const struct kt_expert_layer *layer,
                              kt_compute compute, int64_t tokens, int32_t topk, bool backward);
    /** y [tokens, hidden_size] dense float32, += */
    void (*forward)(struct kt_experts *e, const struct kt_expert_call *call, struct kt_view y);
    /** dx [tokens, hidden_size] += ; dweights [tokens, topk] = for the slots of the routing's rows;
     * LoRA gradients += */
    void (*backward)(struct kt_experts *e, const struct kt_expert_call *call, struct kt_view dy,
                     struct kt_view dx, float *dweights);
    /** About how long one expert takes over so many rows; grows with them, 0 for none. For cutting
     * work between backends: backward is one that reads what forward kept. */
    double (*seconds)(const struct kt_experts *e, const struct kt_expert_layer *layer, int64_t rows,
                      bool backward);
    void (*close)(struct kt_experts *e);
};

/** A backend embeds this as its first member. */
struct kt_experts {
    const struct kt_experts_ops *ops;
    kt_context *ctx;
};

/** What one thread does in a second, for kt_experts_seconds. */
struct kt_experts_rate {
    double bytes, flops;
};

/** Bytes of so many experts' weights and of all `rows` routed to them. */
double kt_experts_bytes(const struct kt_expert_layer *layer, int64_t rows, int64_t num_experts);

/** `seconds` of a backend whose threads share the work: the slower of reading the weights and the
 * rows, and of three products. */
double kt_experts_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                          int64_t rows, struct kt_experts_rate rate);

#endif
