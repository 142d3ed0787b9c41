/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/pass.h
 * One walk of packed tokens through the layers: what every module of a layer needs to know. Modules
 * take activations [tokens, features], put their own on the arena and release them. They enqueue
 * operations, which cannot fail; those that wait for the host have a status. */
#ifndef KT_EXECUTOR_PASS_H
#define KT_EXECUTOR_PASS_H

#include "backend/experts.h"
#include "executor/arena.h"
#include "executor/feed.h"
#include "executor/site.h"
#include "placement/layout.h"

struct kt_executor;

enum kt_pass_kind {
    KT_PASS_MEASURE,  /**< sizes only: operations are counted, no callbacks */
    KT_PASS_QUIET,    /**< asks for cancellation, reports no progress */
    KT_PASS_REPORTING /**< both */
};

/** What a pass has on one device. */
struct kt_stage {
    const struct kt_site *site;
    struct kt_runner run;
    struct kt_tally tally;
    struct kt_arena arena;
    kt_dtype dtype;       /**< of activations between operations, see kt_take_activations */
    struct kt_feed feed;  /**< addresses of the device */
    kt_mark sent;         /**< on IN: the latest copy from the host's arena */
    struct kt_view x, dy; /**< [tokens, hidden_size] the residual stream, and its gradient */
};

/** Choices of experts that backward needs again, on the host. */
struct kt_routes {
    int32_t *ids;   /**< [slots, tokens, topk] */
    float *weights; /**< likewise */
    int64_t stride; /**< tokens * topk of the forward pass */
    int32_t lowest; /**< layers below it share slot 0 */
};

struct kt_pass {
    kt_context *ctx;
    enum kt_pass_kind kind;
    const struct kt_executor *executor;
    const struct kt_model *model;
    struct kt_lora *lora; /**< NULL = none */
    kt_compute compute;
    enum kt_walk walk;
    bool training;             /**< dropout on */
    int64_t dropout_row;       /**< first token of a call on part of the tokens: varies its mask */
    const int32_t *row_tokens; /**< on the device: tokens of the rows that linears see; NULL = the
                                    rows are all tokens */

    struct kt_stage stages[KT_MAX_DEVICES];
    int32_t num_stages;
    struct kt_stage *stage; /**< where the pass is */
    struct kt_stage host;   /**< the host's device, for experts and embeddings */
    struct kt_routes routes;
    double experts_seconds; /**< measured: what backends say of their experts */

    int32_t pieces;    /**< a layer's widest activations exist for so many parts of its heads, or of
                            its tokens, in turn */
    int32_t next_unit; /**< what will be entered next on the same device; -1 = unknown */
    int64_t tokens;
    int64_t padding; /**< the last so many of the tokens are padding: each sees its sequence, none
                          sees it, and it marks the experts it chooses; forward of training only */
    int32_t num_sequences;
    /* on the host */
    const int32_t *cu_seqlens;        /**< [num_sequences + 1] */
    const int32_t *cu_keys;           /**< the same of keys, where there is a cache */
    const int32_t *padding_offsets;   /**< [padding, 4] as kt_feed.padding */
    const int32_t *padding_sequences; /**< [padding] */
    const int32_t *positions;         /**< [tokens] in their sequences; read for padding */
};

static inline bool kt_pass_measures(const struct kt_pass *pass)
{
    return pass->kind == KT_PASS_MEASURE;
}

/** A pass over the executor's model without tokens; arenas measure. Activations are float32. */
void kt_pass_init(struct kt_pass *pass, const struct kt_executor *executor, enum kt_pass_kind kind);

/** Lets activations be in what each device prefers for the pass's compute mode: in steps, whose
 * memory and time they are. Caches of generation are float32. */
void kt_pass_prefer(struct kt_pass *pass);

/** Takes the residual stream on each stage, and room for the choices of experts of `route_slots`
 * layers: those from `lowest` on have one each, behind one that the others share. */
void kt_pass_begin(struct kt_pass *pass, int32_t lowest, int64_t route_slots);

/** x [tokens, hidden_size] = rows of the embedding: the host, which has the table, reads them and
 * sends them to the device. x is dense. Errors: IO (the table was truncated). */
kt_status kt_pass_embed(struct kt_pass *pass, const int32_t *ids, int64_t tokens, struct kt_view x);

/** Between layers: cancellation and progress. */
kt_status kt_pass_tick(const struct kt_pass *pass, const char *what, int64_t done);

/** Goes to where a unit (a layer, or num_hidden_layers = the head) is computed, brings its weights
 * there, and, where the device changes, the residual stream (or its gradient). `then` is the unit
 * after it, or -1. Errors: IO, and what devices remember. */
enum kt_stream { KT_STREAM_X, KT_STREAM_DY };
kt_status kt_pass_enter(struct kt_pass *pass, int32_t unit, int32_t then, enum kt_stream stream);

/** Waits for everything that is queued. Errors: what devices remember. */
kt_status kt_pass_finish(struct kt_pass *pass);

/** Memory of a device, float32, until the arena is released to an earlier mark. */
static inline struct kt_view kt_take_on(struct kt_stage *stage, int64_t rows, int64_t cols)
{
    return (struct kt_view){kt_arena_take(&stage->arena, rows, cols, 4), cols, KT_DTYPE_F32};
}

/** The same of the current device. */
static inline struct kt_view kt_take(struct kt_pass *pass, int64_t rows, int64_t cols)
{
    return kt_take_on(pass->stage, rows, cols);
}

/** The same in another dtype. */
static inline struct kt_view kt_take_as(struct kt_pass *pass, kt_dtype dtype, int64_t rows,
                                        int64_t cols)
{
    void *data = kt_arena_take(&pass->stage->arena, rows, cols, kt_view_element(dtype));
    return (struct kt_view){data, cols, dtype};
}

/** For what products round in any case where the device prefers bfloat16: normed inputs, queries,
 * keys and values, attention outputs, products of an MLP, and the gradients of these. Not for the
 * residual stream, its gradient and logits, which are float32. */
static inline struct kt_view kt_take_activations(struct kt_pass *pass, int64_t rows, int64_t cols)
{
    return kt_take_as(pass, pass->stage->dtype, rows, cols);
}

static inline int32_t *kt_take_ints(struct kt_pass *pass, int64_t rows, int64_t cols)
{
    return kt_arena_take(&pass->stage->arena, rows, cols, 4);
}

static inline uint64_t kt_pass_mark(const struct kt_pass *pass)
{
    return pass->stage->arena.used;
}

static inline void kt_pass_release(struct kt_pass *pass, uint64_t mark)
{
    pass->stage->arena.used = mark;
}

/** Where the current device has a vector of the model; NULL stays NULL. */
static inline const float *kt_pass_vector(const struct kt_pass *pass, const float *vector)
{
    return kt_site_vector(pass->stage->site, pass->model, vector);
}

/** Where the current device has a weight of the unit that it is at. */
static inline struct kt_weight kt_pass_weight(const struct kt_pass *pass,
                                              const struct kt_weight *weight)
{
    const struct kt_site *site = pass->stage->site;
    struct kt_weight there;
    if (kt_pass_measures(pass) || kt_device_is_host(site->device))
        return *weight;
    if (kt_expert_supply_find(site->experts, weight, &there))
        return there;
    return kt_supply_take(site->supply, weight);
}

/** The same of both arenas, the current device's and the host's. */
struct kt_marks {
    uint64_t stage, host;
};

static inline struct kt_marks kt_pass_marks(const struct kt_pass *pass)
{
    return (struct kt_marks){pass->stage->arena.used, pass->host.arena.used};
}

static inline void kt_pass_release_marks(struct kt_pass *pass, struct kt_marks marks)
{
    pass->stage->arena.used = marks.stage;
    pass->host.arena.used = marks.host;
}

/* host.c: activations that cross to the host's experts and back */

/** Memory of the host that devices copy from and to; released like the arena. */
struct kt_view kt_host_take(struct kt_pass *pass, int64_t rows, int64_t cols);
struct kt_arena *kt_host_arena(struct kt_pass *pass);

/** A dense float32 [tokens, dim] of the current device where the host can read it after
 * kt_host_wait: the same memory on a device with host memory, else a copy on the host's arena. */
struct kt_view kt_to_host(struct kt_pass *pass, struct kt_view x, int64_t tokens, int64_t dim);
/** The same for 4-byte words, into given memory of the host, which may be the device's. */
void kt_words_to_host(struct kt_pass *pass, void *to, const void *from, int64_t words);
/** Waits until what was taken to the host is there, and what was sent from it is away. */
kt_status kt_host_wait(struct kt_pass *pass);
/** Copies 4-byte words of the host to the current device, for what is queued from here on. */
void kt_host_send(struct kt_pass *pass, void *to, const void *from, int64_t words);
/** The other way round: on the arena, for what is queued from here on. The host must leave the
 * memory as it is until its next kt_host_wait. */
struct kt_view kt_to_device(struct kt_pass *pass, struct kt_view x, int64_t tokens, int64_t dim);
const void *kt_words_to_device(struct kt_pass *pass, const void *from, int64_t words);

/* elementwise */

/** y (+)= x over [tokens, dim] */
void kt_add(struct kt_pass *pass, int64_t tokens, int64_t dim, struct kt_view x, bool accumulate,
            struct kt_view y);
void kt_zero(struct kt_pass *pass, int64_t tokens, int64_t dim, struct kt_view x);
/** y = norm of x; `weight` as the model has it */
void kt_norm(struct kt_pass *pass, int64_t tokens, int64_t dim, float eps, const float *weight,
             struct kt_view x, struct kt_view y);
/** dx (+)= its gradient */
void kt_norm_backward(struct kt_pass *pass, int64_t tokens, int64_t dim, float eps,
                      const float *weight, struct kt_view x, struct kt_view dy, bool accumulate,
                      struct kt_view dx);

/* linear.c */

/** The pair attached to a linear, or NULL. */
const struct kt_lora_pair *kt_pass_lora(const struct kt_pass *pass, const struct kt_linear *linear);

/** Notes that a pair has a gradient. */
void kt_pass_mark_grad(const struct kt_pass *pass, const struct kt_lora_pair *pair);

/** y (+)= W x + bias + scale * B A dropout(x) */
void kt_linear_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                       struct kt_view x, bool accumulate, struct kt_view y);

/** The same for rows [begin, begin + count) of W alone: y [tokens, count]. */
void kt_linear_rows_forward(struct kt_pass *pass, const struct kt_linear *linear, int64_t begin,
                            int64_t count, int64_t tokens, struct kt_view x, bool accumulate,
                            struct kt_view y);

/** dA, dB += ; dx (+)= unless its data is NULL. x is the forward's input, read only where there is
 * LoRA; dx may be the same memory as x if it is overwritten. */
void kt_linear_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t tokens,
                        struct kt_view x, struct kt_view dy, bool accumulate, struct kt_view dx);

/** The same through rows [begin, begin + count) of W alone: dy [tokens, count]. */
void kt_linear_rows_backward(struct kt_pass *pass, const struct kt_linear *linear, int64_t begin,
                             int64_t count, int64_t tokens, struct kt_view x, struct kt_view dy,
                             bool accumulate, struct kt_view dx);

/** A linear on rows of its own. */
struct kt_linear_call {
    const struct kt_linear *linear;
    int64_t tokens;
    struct kt_view x, y, dx;   /**< y is its gradient in backward */
    const int32_t *row_tokens; /**< as the pass's */
};
enum { KT_LINEARS_TOGETHER = 16 };
/** kt_linear_forward and kt_linear_backward of at most KT_LINEARS_TOGETHER linears, none of which
 * reads or writes what another writes. */
void kt_linears_forward(struct kt_pass *pass, int32_t count, const struct kt_linear_call *calls);
void kt_linears_backward(struct kt_pass *pass, int32_t count, const struct kt_linear_call *calls,
                         bool accumulate);

/** Gate and up products of a layer's feed-forward half that forward keeps for backward; NULL =
 * backward recomputes them. Backward leaves other values in them. */
struct kt_products {
    struct kt_view gate, up; /**< [tokens, intermediate] each, of a dense MLP or of shared experts
                                  without a gate */
    float *shared; /**< [tokens, 2, intermediate] of shared experts with a gate; on the host */
    float *routed; /**< [tokens, topk, 2, moe_intermediate_size]; on the host, where all experts
                        are the host's */
};

/** y += MLP(n), dense or the shared experts. */
void kt_mlp_forward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                    const struct kt_products *products, struct kt_view y);
/** dn = */
void kt_mlp_backward(struct kt_pass *pass, const struct kt_mlp *mlp, struct kt_view n,
                     const struct kt_products *products, struct kt_view dy, struct kt_view dn);

/* experts.c: the front of all experts backends */

/** The routed experts of a layer, or its one shared expert with a gate. */
struct kt_expert_layer kt_routed_layer(const struct kt_pass *pass, const struct kt_layer *layer);
struct kt_expert_layer kt_shared_layer(const struct kt_pass *pass, const struct kt_layer *layer);

/** Who computes the experts of a work. */
enum kt_experts_where {
    KT_EXPERTS_HOST,   /**< the layer's experts backend */
    KT_EXPERTS_DEVICE, /**< the layer's device */
    KT_EXPERTS_SHARED  /**< both, divided by the time that they would take */
};

enum kt_experts_where kt_experts_where(const struct kt_pass *pass, const struct kt_layer *layer);

/** The rows of a routing. */
struct kt_expert_work {
    const struct kt_layer *layer;
    enum kt_experts_where where;
    struct kt_expert_layer experts;
    struct kt_routing routing; /**< on the host, weights too */
    /* on the host, as kt_to_host gave them, where all is the host's; else brought there for a share
     */
    struct kt_view x, dy;
    float *kept;
    /* on the device; unless all is the host's */
    struct kt_view n, device_dy;
    const float *device_weights; /**< [tokens, topk] */
};
/** y += on the current device. Errors: what devices remember, where the host waits for a share. */
kt_status kt_experts_forward(struct kt_pass *pass, struct kt_expert_work *work, struct kt_view y);
/** dx += on the current device; *dweights is d(weights) [tokens, topk], on the device. Marks the
 * gradients. */
kt_status kt_experts_backward(struct kt_pass *pass, struct kt_expert_work *work, struct kt_view dx,
                              const float **dweights);

/* experts_device.c */

/** sum += the rows of a share of the work's routing, computed on the current device. */
void kt_device_experts_forward(struct kt_pass *pass, const struct kt_expert_work *work,
                               const struct kt_routing *share, struct kt_view sum);
/** The same of d(x); d(weights) of the share's slots. */
void kt_device_experts_backward(struct kt_pass *pass, const struct kt_expert_work *work,
                                const struct kt_routing *share, struct kt_view sum,
                                float *dweights);

/* shared_expert.c, moe.c */

/** y += the shared experts of n, weighed by their gate where there is one; nothing without them. */
kt_status kt_shared_forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                            const struct kt_products *products, struct kt_view y);
/** dn becomes the gradient, zero without shared experts. */
kt_status kt_shared_backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                             const struct kt_products *products, struct kt_view dy,
                             struct kt_view dn);

/** y += shared experts + routed experts of n. */
kt_status kt_moe_forward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                         const struct kt_products *products, struct kt_view y);
/** dn = , through the shared experts, the experts and the router weights. */
kt_status kt_moe_backward(struct kt_pass *pass, const struct kt_layer *layer, struct kt_view n,
                          const struct kt_products *products, struct kt_view dy, struct kt_view dn);

/* layer.c */

struct kt_kept; /* attention.h */

/** Keys and values of one layer that generation keeps, on the layer's device. */
struct kt_cache_slice {
    struct kt_view rows; /**< [past + tokens, cache width]; forward appends the new tokens' rows */
    int64_t past;        /**< rows that are there already */
};

/** x becomes the layer's output. `cache` NULL: the pass's sequences are whole; else its tokens
 * continue one sequence whose past is in the cache. */
kt_status kt_layer_forward(struct kt_pass *pass, const struct kt_layer *layer,
                           const struct kt_cache_slice *cache, struct kt_view x);
/** The same, for whole sequences; what backward needs stays on the arena. */
kt_status kt_layer_forward_keeping(struct kt_pass *pass, const struct kt_layer *layer,
                                   struct kt_kept *kept, struct kt_view x);
/** dy becomes d(input) of the layer; with need_dx false the layer is the lowest with LoRA and dy is
 * left undefined. x is the layer's input. `kept` is what forward kept, NULL = recompute it. */
kt_status kt_layer_backward(struct kt_pass *pass, const struct kt_layer *layer,
                            struct kt_kept *kept, struct kt_view x, struct kt_view dy,
                            bool need_dx);

#endif
