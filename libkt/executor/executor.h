/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/executor.h
 * The executor from inside. */
#ifndef KT_EXECUTOR_EXECUTOR_H
#define KT_EXECUTOR_EXECUTOR_H

#include <kt/executor.h>

#include "executor/head.h"
#include "executor/pass.h"

/** A block of device memory that only grows. */
struct kt_block {
    void *memory;
    uint64_t size;
    const char *what;
};

/** What backward needs of the latest forward. */
struct kt_step {
    const kt_batch *batch; /**< NULL = there is none to go back through */
    uint64_t batch_version;
    kt_forward_mode mode;
    struct kt_targets targets;
    int64_t num_targets;  /**< the divisor of the token mean */
    int32_t lowest;       /**< lowest layer with LoRA; num_hidden_layers = none */
    int fused;            /**< h holds d(h) of the token mean already */
    uint64_t number;      /**< keys dropout */
    float *logits;        /**< all tokens' logits are written here unless NULL */
    struct kt_kept *kept; /**< [num_hidden_layers] */
    int32_t first_kept;   /**< layers from here on are in `kept`; num_hidden_layers = none */
    struct kt_pass pass;  /**< its arena ends after x and h */
    void *inputs;         /**< layers lowest .. last, [tokens, hidden] each, float32 or bfloat16 */
    float *x;             /**< [tokens, hidden] output of the last layer */
    float *h;             /**< [rows, hidden] */
};

struct kt_executor {
    KT_HANDLE;
    kt_model *model; /**< held, as are lora and held_batch */
    kt_lora *lora;
    const kt_batch *held_batch; /**< of the latest forward */
    struct kt_device *device;
    struct kt_experts **experts; /**< [num_hidden_layers], NULL in dense layers */
    kt_compute compute;
    int64_t logits_chunk;
    uint64_t step_number;
    float *zeros;     /**< [hidden_size] */
    float *cos, *sin; /**< [rope_capacity, rope dim / 2], see kt_executor_rope_by_length */
    int64_t rope_capacity;
    int32_t *positions; /**< of the latest batch */
    int32_t *counting;  /**< [token_capacity] 0, 1, 2 ... */
    float *logprobs;    /**< [token_capacity] of the latest batch */
    size_t token_capacity;
    struct kt_block inputs, workspace;
    struct kt_step step;
};

/** Makes `block` at least `size` bytes; its contents are lost when it grows. */
kt_status kt_block_reserve(struct kt_executor *executor, struct kt_block *block, uint64_t size);

/** Whether frequencies depend on the length of a sequence. If not, kt_executor_reserve_rope makes
 * tables with a row for each position. If so, one of the other two fills a row for each token. */
int kt_executor_rope_by_length(const struct kt_executor *executor);
/** Rotary tables for positions 0 .. positions - 1. */
kt_status kt_executor_reserve_rope(struct kt_executor *executor, int64_t positions);
/** Rows for `count` tokens from position `first` on, when `length` tokens are there in all. */
kt_status kt_executor_rope_of_tokens(struct kt_executor *executor, int64_t length, int64_t first,
                                     int64_t count);
/** Rows for the batch's tokens, and for its padding unless `padding` is 0. The padding of a
 * sequence counts for its length in any case. */
kt_status kt_executor_rope_of_batch(struct kt_executor *executor, const kt_batch *batch,
                                    int64_t padding);

/** A pass over this executor's model; the caller adds tokens, positions and an arena. */
struct kt_pass kt_executor_pass(const struct kt_executor *executor, enum kt_pass_kind kind);

/** Whether a layer is the first of those that share a backend for routed experts. */
int kt_executor_opened_at(const struct kt_executor *executor, int32_t layer);

/** The lowest layer with LoRA, num_hidden_layers if there is none: backward ends above it. */
int32_t kt_executor_lowest_layer(const struct kt_executor *executor);

/** Whether the gradient of the token mean is taken during forward: not with LoRA on lm_head, whose
 * gradients belong to backward. */
int kt_executor_fuses_loss(const struct kt_executor *executor, kt_forward_mode mode);

/** Bytes of kept layer inputs. */
uint64_t kt_step_inputs_size(const struct kt_executor *executor, const struct kt_step *step,
                             int64_t tokens);
/** Chooses step->first_kept; peak of the arena over forward, with so many padding tokens, and,
 * unless EVAL, backward. */
kt_status kt_step_measure(const struct kt_executor *executor, struct kt_step *step, int64_t tokens,
                          int64_t padding, uint64_t *peak);
kt_status kt_step_forward(const struct kt_executor *executor, struct kt_step *step);
kt_status kt_step_backward(const struct kt_executor *executor, struct kt_step *step);

#endif
