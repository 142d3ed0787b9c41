/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/device.h
 * What a device does: memory, copies, and the operations of a transformer's training step. The
 * executor calls them through the front (kt_run), which measures, checks and counts, and knows no
 * device by name.
 *
 * Operations are enqueued and cannot fail: their memory was reserved before. A device that breaks
 * remembers it and tells at kt_run_sync. Addresses of a device are followed by its own operations
 * alone, unless it has KT_DEVICE_HOST_MEMORY. Operations of one queue run in order; queues wait for
 * each other by marks.
 *
 * Activations are views: row-major [tokens, features] with a stride between rows. The residual
 * stream, its gradient and whatever becomes a probability are float32; other activations of a step
 * that trains are in the dtype which the device prefers. An operation reads and writes each view in
 * the view's own, and rounds but what it writes. Weights are read in their own dtype. `accumulate`
 * false overwrites the output (which may be uninitialised), true adds to it. All operations are
 * deterministic: the same inputs give the same bits. tokens = 0 is valid and does nothing. */
#ifndef KT_BACKEND_DEVICE_H
#define KT_BACKEND_DEVICE_H

#include "weights/weight.h"

struct kt_device;

enum { KT_BACKEND_ABI = 3 };

/** Activations [tokens, features] on a device. */
struct kt_view {
    void *data;
    int64_t ld; /**< elements between rows; 0 = the same row for every token */
    kt_dtype dtype;
};

/** Cumulative lengths of packed sequences, [num + 1], twice: where the front reads them (during
 * kt_run alone) and where the device does. */
struct kt_offsets {
    int32_t num;
    const int32_t *host, *device;
};

/** X(name, NAME, arguments) for each operation: KT_OP_NAME, kt_run_name, and in a backend what it
 * calls by that name. */
#define KT_EACH_OP(X)                                                                              \
    X(linear_forward, LINEAR_FORWARD, kt_linear_args)                                              \
    X(linear_backward, LINEAR_BACKWARD, kt_linear_args)                                            \
    X(gemm, GEMM, kt_gemm_args)                                                                    \
    X(embedding, EMBEDDING, kt_embedding_args)                                                     \
    X(norm_forward, NORM_FORWARD, kt_norm_args)                                                    \
    X(norm_backward, NORM_BACKWARD, kt_norm_args)                                                  \
    X(rope, ROPE, kt_rope_args)                                                                    \
    X(attention_forward, ATTENTION_FORWARD, kt_attention_args)                                     \
    X(attention_backward, ATTENTION_BACKWARD, kt_attention_args)                                   \
    X(glu_forward, GLU_FORWARD, kt_glu_args)                                                       \
    X(glu_backward, GLU_BACKWARD, kt_glu_args)                                                     \
    X(router_forward, ROUTER_FORWARD, kt_router_args)                                              \
    X(router_backward, ROUTER_BACKWARD, kt_router_args)                                            \
    X(cross_entropy, CROSS_ENTROPY, kt_cross_entropy_args)                                         \
    X(add, ADD, kt_rows_args)                                                                      \
    X(zero, ZERO, kt_rows_args)                                                                    \
    X(dropout, DROPOUT, kt_dropout_args)                                                           \
    X(convert, CONVERT, kt_rows_args)                                                              \
    X(gather, GATHER, kt_gather_args)                                                              \
    X(scatter_add, SCATTER_ADD, kt_gather_args)                                                    \
    X(weigh, WEIGH, kt_weigh_args)

#define KT_OP_OF(name, op, args) KT_OP_##op,
enum kt_op { KT_EACH_OP(KT_OP_OF) KT_OPS };
#undef KT_OP_OF

/** LINEAR_FORWARD: y[t, rows] (+)= x[t, cols] W^T. LINEAR_BACKWARD: y[t, cols] (+)= x[t, rows] W,
 * where x is the gradient of forward's output. */
struct kt_linear_args {
    struct kt_weight weight; /**< its data and scale are addresses of the device */
    kt_compute compute;
    int64_t tokens;
    struct kt_view x, y;
    bool accumulate;
};

/** GEMM, float32: C[m,n] (+)= alpha op(A) op(B). op(A) is [m,k]: A is [m,k], or [k,m] if trans_a.
 */
struct kt_gemm_args {
    bool trans_a, trans_b;
    int64_t m, n, k;
    float alpha;
    struct kt_view a, b, c;
    bool accumulate;
};

/** EMBEDDING: x[t, cols] = row ids[t] of the table. */
struct kt_embedding_args {
    struct kt_weight table;
    int64_t tokens;
    const int32_t *ids;
    struct kt_view x;
};

/** NORM_FORWARD: y = x / sqrt(mean(x^2) + eps) * weight, over `dim` features (arXiv 1910.07467).
 * NORM_BACKWARD: y (+)= its gradient from dy; 1/rms is recomputed from x. */
struct kt_norm_args {
    int64_t tokens, dim;
    float eps;
    const float *weight; /**< [dim] */
    struct kt_view x, dy, y;
    bool accumulate; /**< backward alone */
};

/** ROPE: rotary embedding (arXiv 2104.09864) of `rope_dim` features of `num_heads` heads in place;
 * x begins at the first rotated feature of head 0. cos/sin are [rows, rope_dim / 2]. interleaved:
 * pairs (2i, 2i+1) rotate (DeepSeek); else (i, i + dim/2). inverse rotates back, which is also the
 * backward. */
struct kt_rope_args {
    int64_t tokens;
    struct kt_view x;
    int64_t head_stride;
    int32_t num_heads, rope_dim;
    bool interleaved, inverse;
    const float *cos, *sin;
    const int32_t *rows; /**< [tokens] the row of cos and sin for each */
};

/** Scaled dot-product attention over packed sequences, causal, aligned at the ends: query i of a
 * sequence with nq queries and nk >= nq keys sees keys 0 .. nk - nq + i (FlashAttention-2,
 * arXiv 2307.08691). A key is the concatenation of a per-head part k [.., qk_dim - shared_dim] and
 * a part k_shared [.., shared_dim] that all heads share (MLA's rotary key; shared_dim 0 = none).
 * Element (token t, head h, i) of q is q[t * q.ld + h * q_head_stride + i]; likewise k, v, o.
 * Head h uses key/value head h / (num_heads / num_kv_heads).
 * ATTENTION_BACKWARD overwrites dq, dk, dk_shared (summed over heads) and dv, which have the
 * strides of q, k, k_shared and v, from d_o, which has those of o, and forward's o and lse. */
struct kt_attention_args {
    int32_t num_heads, num_kv_heads;
    int32_t qk_dim, shared_dim, v_dim;
    int32_t window; /**< keys a query sees, itself included; 0 = all */
    float scale;
    kt_compute compute;
    struct kt_offsets queries, keys;
    struct kt_view q, k, k_shared, v, o;
    int64_t q_head_stride, k_head_stride, v_head_stride, o_head_stride;
    float *lse; /**< [num_heads, total queries]: log-sum-exp of the scaled scores; forward writes it
                     unless NULL */
    struct kt_view d_o, dq, dk, dk_shared, dv;
};

enum kt_activation { KT_ACTIVATION_SILU };

/** GLU_FORWARD: h = act(gate) * up, [tokens, dim]; h may be gate. GLU_BACKWARD: dgate and dup from
 * dh; they may be the memory of gate and up. */
struct kt_glu_args {
    enum kt_activation activation;
    int64_t tokens, dim;
    struct kt_view gate, up, h; /**< all views of this operation are dense: ld = dim */
    struct kt_view dh, dgate, dup;
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

/** ROUTER_FORWARD: ids and weights [tokens, topk] from logits [tokens, num_experts], dense.
 * ROUTER_BACKWARD: dlogits from dweights = d(weights) and forward's ids; the choice has no
 * gradient. */
struct kt_router_args {
    struct kt_router router;
    int64_t tokens;
    const float *logits;
    int32_t *ids;
    float *weights;
    const float *dweights;
    float *dlogits;
};

/** CROSS_ENTROPY, for rows of logits: logprobs[t] = logits[t, targets[t]] - logsumexp; 0 where
 * targets[t] < 0. With dlogprobs not NULL, logits become d(loss)/d(logits) for
 * d(loss)/d(logprob[t]) = dlogprobs[t]. */
struct kt_cross_entropy_args {
    int64_t tokens, vocab;
    struct kt_view logits;
    const int32_t *targets;
    const float *dlogprobs;
    float *logprobs;
};

/** ADD: y (+)= alpha * x. ZERO: y = 0. CONVERT: y = x in y's dtype, rounded to nearest even;
 * between F32 and BF16. All over [tokens, dim]. */
struct kt_rows_args {
    int64_t tokens, dim;
    float alpha;
    struct kt_view x, y;
    bool accumulate;
};

/** DROPOUT: y (+)= x * mask / (1 - p); element (t, i) of the mask as kt_dropout_row (core/random.h)
 * draws it for token index[t]. The same call applied to a gradient is the backward. */
struct kt_dropout_args {
    int64_t tokens, dim;
    float p;
    uint64_t key;
    const int32_t *index; /**< [tokens]; NULL = tokens counted from 0 */
    struct kt_view x, y;
    bool accumulate;
};

/** Rows of experts. GATHER: y[r] = w(r) x[index[r]], r < rows. SCATTER_ADD: y[t] += w(r) x[r] for
 * the rows r of each token t, in their order. w(r) = weights[slots[r]], or 1 without weights. */
struct kt_gather_args {
    int64_t rows, dim;
    int64_t tokens;       /**< rows of the side that tokens have */
    const int32_t *index; /**< GATHER: [rows] token of each; NULL = 0, 1 ... */
    int32_t topk;
    const int32_t *token_rows; /**< SCATTER_ADD: [tokens, topk] rows of each, counted from
                                    -first_row; those that are not among the `rows` are left out */
    int64_t first_row;
    int64_t num_slots;
    const int32_t *slots; /**< [rows] */
    const float *weights; /**< [num_slots] or NULL */
    struct kt_view x, y;
};

/** WEIGH: the gradient of rows h that were weighed: dweights[slots[r]] = <dh[r], h[r]>, then
 * dh[r] *= weights[slots[r]]. */
struct kt_weigh_args {
    int64_t rows, dim, num_slots;
    const int32_t *slots; /**< [rows], distinct */
    const float *weights; /**< [num_slots] */
    float *dweights;      /**< [num_slots] */
    struct kt_view h, dh;
};

/** A point on a queue of one device; 0 = long passed. */
typedef uint64_t kt_mark;

/** Operations run on COMPUTE; copies on any. SUPPLY is for weights, which travel far ahead of what
 * uses them: whatever else goes to the device must not queue up behind them. */
enum kt_queue { KT_QUEUE_COMPUTE, KT_QUEUE_IN, KT_QUEUE_OUT, KT_QUEUE_SUPPLY, KT_QUEUES };

enum kt_memory {
    KT_MEMORY_DEVICE,
    KT_MEMORY_SCRATCH, /**< of the device, for the operations of one queue to work in */
    KT_MEMORY_PINNED   /**< the host's, which the device copies from and to at full speed */
};

enum {
    KT_DEVICE_HOST_MEMORY =
        1u << 0, /**< its memory is the host's, and it is done when it returns */
};

/** What a device does in a second; rough. */
struct kt_rates {
    double flops; /**< of products */
    double bytes; /**< of its memory, read or written */
    double link;  /**< of copies between it and the host */
};

/** Runs one operation; `args` is the struct that belongs to it and may be gone after the call. */
typedef void (*kt_op_fn)(struct kt_device *dev, const void *args, void *scratch);

struct kt_device_ops {
    uint32_t abi, traits;
    const char *name;
    /** At least 64-byte aligned, contents undefined. Errors: OUT_OF_MEMORY, recorded. */
    kt_status (*alloc)(struct kt_device *dev, enum kt_memory kind, uint64_t bytes, const char *what,
                       void **out);
    /** NULL is allowed. Nothing that is queued may still use it. */
    void (*free)(struct kt_device *dev, enum kt_memory kind, void *memory);
    /** Bytes of scratch that an operation with these arguments takes; with more tokens, or more
     * sequences, no less. Views' addresses are not looked at. */
    uint64_t (*scratch_bytes)(const struct kt_device *dev, enum kt_op op, const void *args);
    /** Whether the device does the operation on views of these dtypes. */
    bool (*supports)(const struct kt_device *dev, enum kt_op op, const void *args);
    /** What a step's activations should be in: F32, or BF16. A device that prefers BF16 takes
     * either in each view of linears, GEMM, norms, ROPE, ADD and dropout, and in all views of an
     * attention or a GLU alike; float32 alone where nobody asks it (passes that generate). */
    kt_dtype (*prefers)(const struct kt_device *dev, kt_compute compute);
    /** For plans, and for cutting work between devices: the same whenever it is asked. */
    struct kt_rates (*rates)(const struct kt_device *dev, kt_compute compute);
    /** Between memory of the device and of the host, which leaves it alone until the copy is done.
     * Pinned memory is the fastest, but any will do. */
    void (*copy)(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes);
    /** Optional: bytes of its memory that nobody has taken. */
    uint64_t (*available)(const struct kt_device *dev);
    /** Optional, for memory of the host that is copied from again and again: makes such copies run
     * at full speed, beside the host. False = it could not; then copies are as they were. */
    bool (*pin)(struct kt_device *dev, const void *memory, uint64_t bytes);
    void (*unpin)(struct kt_device *dev, const void *memory, uint64_t bytes);
    kt_mark (*mark)(struct kt_device *dev, enum kt_queue queue);
    /** What is queued from here on waits for `mark`, which is of a queue of the same device. */
    void (*wait)(struct kt_device *dev, enum kt_queue queue, kt_mark mark);
    /** Optional, for traces: stores (core/clock.h) when the queue came to this point, some time
     * after it did. Times of a queue never go back. Not asked of a device with host memory. */
    void (*stamp)(struct kt_device *dev, enum kt_queue queue, double *seconds);
    /** Optional: stores the times of all points that queues have come to; NULL = it has. */
    void (*stamped)(struct kt_device *dev);
    /** The host waits. Errors: the first failure since the device was opened, recorded. */
    kt_status (*sync)(struct kt_device *dev, kt_mark mark);
    void (*close)(struct kt_device *dev);
    kt_op_fn run[KT_OPS];
    /** Optional: enqueues the first of `count` operations that kt_run_all has, as many as it has a
     * faster way for than one after another, and returns how many; 0 = `run` the first. `scratch`
     * is all that the device has, as much as any of them takes or more. What one gives must not
     * depend on how many there are. */
    int32_t (*run_first)(struct kt_device *dev, enum kt_op op, int32_t count, const void *args,
                         void *scratch);
};

/** A device embeds this as its first member. */
struct kt_device {
    const struct kt_device_ops *ops;
    kt_context *ctx;
    void *scratch; /**< see kt_device_reserve_scratch */
    uint64_t scratch_bytes;
    const char *refused; /**< what the front did not let through, told at sync; NULL = nothing */
    uint64_t allocated;  /**< bytes of its memory and scratch, by kt_device_alloc */
    uint64_t limit;      /**< at most so many; 0 = as many as there are */
    /** Frees what can be done without, about so many bytes; whether it freed any. NULL = nothing.
     */
    bool (*reclaim)(void *owner, uint64_t bytes);
    void *owner;
};

/** What operations would take, instead of running them. */
struct kt_tally {
    double flops, bytes;         /**< of all; bytes read and written, each operand once */
    double seconds;              /**< of operations: products or memory, whichever takes longer */
    double copy_seconds;         /**< of copies, which run beside them */
    uint64_t scratch;            /**< of the operation that needs most */
    uint64_t operations[KT_OPS]; /**< how many */
};

/** Where the executor sends operations. */
struct kt_runner {
    struct kt_device *device;
    struct kt_tally *tally; /**< not NULL: they are measured, addresses are followed by nobody */
};

/** Enqueues an operation, or measures it. Use the typed calls below. */
void kt_run(const struct kt_runner *runner, enum kt_op op, const void *args);
/** The same for `count` operations of a kind that may be done at one time: none reads or writes
 * what another writes. `args` is the array of their arguments. */
void kt_run_all(const struct kt_runner *runner, enum kt_op op, int32_t count, const void *args);
void kt_run_copy(const struct kt_runner *runner, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes);
/** All queued on `after` so far is done before what is queued on `queue` from here on. */
void kt_run_order(const struct kt_runner *runner, enum kt_queue queue, enum kt_queue after);
kt_mark kt_run_mark(const struct kt_runner *runner, enum kt_queue queue);
void kt_run_wait(const struct kt_runner *runner, enum kt_queue queue, kt_mark mark);
/** Waits until `mark` is passed. Errors: what the device remembers. */
kt_status kt_run_sync(const struct kt_runner *runner, kt_mark mark);

/** alloc within the device's limit, for which `reclaim` may be asked. Nothing is queued that uses
 * what that would free. Errors: OUT_OF_MEMORY. */
kt_status kt_device_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                          const char *what, void **out);
/** free of what kt_device_alloc gave, of so many bytes. NULL is allowed. */
void kt_device_free(struct kt_device *dev, enum kt_memory kind, void *memory, uint64_t bytes);

/** Grows the device's scratch to at least `bytes`; waits for what is queued if it has to. */
kt_status kt_device_reserve_scratch(struct kt_device *dev, uint64_t bytes);
/** Gives it up; nothing is queued. */
void kt_device_free_scratch(struct kt_device *dev);
/** Waits for everything that is queued. Errors: what the device remembers. */
kt_status kt_device_drain(struct kt_device *dev);
/** Waits for everything queued, frees the scratch and closes the device. NULL is allowed. */
void kt_device_close(struct kt_device *dev);
static inline bool kt_device_is_host(const struct kt_device *dev)
{
    return dev->ops->traits & KT_DEVICE_HOST_MEMORY;
}

const char *kt_op_name(enum kt_op op);
size_t kt_op_args_size(enum kt_op op);

/** kt_run_NAME(runner, args) with the arguments of its operation. */
#define KT_RUN(name, op, type)                                                                     \
    static inline void kt_run_##name(const struct kt_runner *runner, const struct type *args)      \
    {                                                                                              \
        kt_run(runner, KT_OP_##op, args);                                                          \
    }
KT_EACH_OP(KT_RUN)
#undef KT_RUN

/** Bytes of an element of a view. */
static inline int64_t kt_view_element(kt_dtype dtype)
{
    return dtype == KT_DTYPE_BF16 ? 2 : 4;
}

/** The view that begins at (row, col) of another. */
static inline struct kt_view kt_view_at(struct kt_view view, int64_t row, int64_t col)
{
    view.data = (char *)view.data + (row * view.ld + col) * kt_view_element(view.dtype);
    return view;
}

/** A view of float32; for const data that is only read. */
static inline struct kt_view kt_view_f32(const float *data, int64_t ld)
{
    return (struct kt_view){.data = (void *)(uintptr_t)data, .ld = ld, .dtype = KT_DTYPE_F32};
}

#endif
