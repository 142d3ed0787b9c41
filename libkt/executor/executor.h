/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/executor.h
 * The executor from inside. */
#ifndef KT_EXECUTOR_EXECUTOR_H
#define KT_EXECUTOR_EXECUTOR_H

#include <kt/executor.h>

#include "executor/head.h"
#include "executor/pass.h"
#include "executor/rotary.h"
#include "executor/workspace.h"

/** Inputs that a step keeps on one device. */
struct kt_step_inputs {
    int64_t pinned;         /**< of the device's first kept layers: in pinned memory of the host */
    struct kt_view staging; /**< an input on its way there or back, where the device has a limit */
    kt_mark copied;         /**< of the latest of those copies */
    int32_t fetched;        /**< the layer whose input `staging` has or gets; -1 = none */
};

/** What backward needs of the latest forward. Nothing else writes to it, and trial steps have one
 * of their own. */
struct kt_step {
    const kt_batch *batch; /**< NULL = there is none to go back through */
    uint64_t batch_version;
    kt_forward_mode mode;
    struct kt_targets targets;
    int64_t num_targets;  /**< the divisor of the token mean */
    int32_t lowest;       /**< lowest layer with LoRA; num_hidden_layers = none */
    bool fused;           /**< h holds d(h) of the token mean already */
    uint64_t number;      /**< keys dropout */
    float *logits;        /**< all tokens' logits are written here unless NULL */
    struct kt_kept *kept; /**< [num_hidden_layers] */
    int32_t first_kept;   /**< layers from here on are in `kept`; num_hidden_layers = none */
    struct kt_step_inputs inputs[KT_MAX_DEVICES];
    struct kt_pass pass; /**< its arenas end after x, what is kept, dy and h */
    struct kt_view h;    /**< [rows, hidden] on the head's device */
    uint64_t below_h;    /**< where h begins on its arena */
    uint64_t feed_bytes;
};

struct kt_sharing; /* sharing.h */
enum { KT_MOST_PIECES = 64 };

struct kt_executor {
    KT_HANDLE;
    kt_model *model; /**< held, as are lora and held_batch */
    kt_lora *lora;
    const kt_batch *held_batch; /**< of the latest forward */
    struct kt_layout layout;
    struct kt_site sites[KT_MAX_DEVICES]; /**< [layout.num_devices] */
    struct kt_site host;                  /**< the host's own device, without a supply of weights */
    struct kt_experts **experts;          /**< [num_hidden_layers], NULL in dense layers */
    enum kt_experts_where *where;         /**< [num_hidden_layers] of MoE layers */
    struct kt_experts *general;           /**< computes what those do not */
    struct kt_sharing *sharing;           /**< how host and devices divide them */
    kt_compute compute;
    int64_t logits_chunk;
    uint64_t kept_bytes;     /**< of activations that a step may keep instead of recomputing them */
    int64_t reserved_tokens; /**< steps of up to so many stay in what was reserved */
    uint64_t reserved_activations[KT_MAX_DEVICES], reserved_scratch[KT_MAX_DEVICES];
    int32_t least_pieces; /**< that a step is done in; 1 */
    uint64_t step_number;
    struct kt_rotary rotary;
    int32_t *positions; /**< of the latest batch */
    float *logprobs;    /**< [token_capacity] of the latest batch */
    size_t token_capacity;
    struct kt_workspace workspace;
    struct kt_block inputs[KT_MAX_DEVICES]; /**< layers' inputs that a step keeps, of each device */
    struct kt_block pinned_inputs[KT_MAX_DEVICES]; /**< those it has no room for, on the host */
    struct kt_step step;
};

/** Whether a layer is the first of those that share a backend for routed experts. */
bool kt_executor_opened_at(const struct kt_executor *executor, int32_t layer);

/** The lowest layer with LoRA, num_hidden_layers if there is none: backward ends above it. */
int32_t kt_executor_lowest_layer(const struct kt_executor *executor);

/** Whether the gradient of the token mean is taken during forward: not with LoRA on lm_head, whose
 * gradients belong to backward. */
bool kt_executor_fuses_loss(const struct kt_executor *executor, kt_forward_mode mode);

/** Room for the positions and log-probabilities of so many tokens, padding among them. Errors:
 * OUT_OF_MEMORY. */
kt_status kt_executor_reserve_tokens(struct kt_executor *executor, size_t tokens);

/** Gives back what steps take and keep between them, but for what kt_executor_reserve promised:
 * after a lack of memory, when nothing is queued. */
void kt_executor_let_go(struct kt_executor *executor);

/** Whether padding that a batch names runs in a step that trains: it matters to routed experts with
 * LoRA, and to nothing else. */
bool kt_executor_runs_padding(const struct kt_executor *executor);

/** Sizes of the feed of a step. `tokens` with padding; `longest` is the most positions that a
 * sequence has. */
struct kt_feed_sizes kt_step_feed_sizes(const struct kt_executor *executor, int64_t tokens,
                                        int64_t longest, int64_t sequences, int64_t targets,
                                        int64_t padding);

/** Fills the pass's feed from the batch; `padding` of its padding tokens run. Host memory alone.
 * Errors: OUT_OF_MEMORY. */
kt_status kt_step_feed(struct kt_executor *executor, struct kt_step *step, const kt_batch *batch,
                       int64_t padding);

/** Chooses the pass's pieces and step->first_kept, and leaves in step->pass what its arenas and
 * tallies have come to over forward and, unless EVAL, backward. The pass has tokens and offsets. */
kt_status kt_step_measure(const struct kt_executor *executor, struct kt_step *step);

/** Memory and scratch of a measured step that keeps the inputs of so many tokens. Errors:
 * OUT_OF_MEMORY. */
kt_status kt_step_reserve(struct kt_executor *executor, struct kt_step *step, int64_t tokens);

static inline bool kt_step_goes_back(const struct kt_step *step)
{
    return step->mode != KT_FORWARD_EVAL;
}

kt_status kt_step_forward(const struct kt_executor *executor, struct kt_step *step);
kt_status kt_step_backward(const struct kt_executor *executor, struct kt_step *step);

/* room.c: what the limits of devices leave for a measured step */

/** Memory of a device that is neither inputs' nor weights', once the step has its own. */
uint64_t kt_room_others(const struct kt_executor *executor, const struct kt_step *step,
                        int32_t device);

/** Bytes of other weights than experts without which a device runs no step. */
uint64_t kt_room_weights(const struct kt_site *site);

/** What routed experts get there before inputs and other weights do: their share, or, where it does
 * not leave enough, what they cannot do without. */
uint64_t kt_room_experts(const struct kt_site *site, uint64_t others);

/** Whether each device has room for the step; with `for_experts` beside the share of routed
 * experts. A step within what was reserved has to stay there. */
bool kt_room_suffices(const struct kt_executor *executor, const struct kt_step *step,
                      bool for_experts);

/** Errors: OUT_OF_MEMORY, with the smallest limit that would do. */
kt_status kt_room_check(const struct kt_executor *executor, const struct kt_step *step);

/** Gives up memory of larger steps where a step needs the room. */
void kt_room_make(struct kt_executor *executor, const struct kt_step *step);

/* inputs.c: the layers' inputs that backward needs, on their device as far as its limit allows */

/** Bytes of kept inputs of `layers` layers; UINT64_MAX on overflow. */
uint64_t kt_inputs_size(const struct kt_executor *executor, int64_t tokens, int64_t layers);

/** Layers of a device whose inputs a step keeps. */
int64_t kt_inputs_layers(const struct kt_executor *executor, const struct kt_step *step,
                         int32_t device);

/** How many of these stay on the device where it has `others` bytes of other memory than inputs
 * and weights. */
int64_t kt_inputs_here(const struct kt_executor *executor, const struct kt_step *step,
                       int32_t device, int64_t tokens, uint64_t others);

/** Decides where the inputs of a measured step over so many tokens are, and makes room. Errors:
 * OUT_OF_MEMORY. */
kt_status kt_inputs_reserve(struct kt_executor *executor, struct kt_step *step, int32_t device,
                            int64_t tokens);

/** Takes what a step needs of the arenas for them. */
void kt_inputs_begin(struct kt_step *step);

/** Keeps x as the input of a layer where backward will need it. In bfloat16 x goes on as rounded,
 * so that backward recomputes from what forward used; where nothing is kept it is rounded too, so
 * that log-probabilities depend neither on the mode nor on where LoRA is. */
void kt_inputs_keep(struct kt_step *step, int32_t layer);

/** The kept input of a layer, float32; in bfloat16, or from the host, it is copied into the stage's
 * x. Layers are asked for from the last one down. */
struct kt_view kt_inputs_get(struct kt_step *step, int32_t layer);

#endif
