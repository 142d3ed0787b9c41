/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu_far/far.h
 * A device for tests: it computes on the CPU and behaves like a GPU.
 *
 * Its addresses are reserved, not mapped: whoever follows one but its own operations faults at
 * once. Operations translate them, and remember an operand that is not memory of the device. What
 * is queued runs late, as far as possible only when somebody waits for it, and at random earlier,
 * so that a wait that is missing gives wrong numbers. Fresh memory is all NaN. Results are the bits
 * of "cpu". */
#ifndef KT_BACKENDS_CPU_FAR_FAR_H
#define KT_BACKENDS_CPU_FAR_FAR_H

#include <pthread.h>

#include "backend/device.h"
#include "core/threads.h"

/** Opens the device. Errors: OUT_OF_MEMORY (also when threads or addresses are refused). */
kt_status kt_cpu_far_open(kt_context *ctx, const char *name, struct kt_device **out);

/** From now on it prefers and takes activations in bfloat16 where it computes in bfloat16, as a GPU
 * does. A new device does not. */
void kt_cpu_far_prefer_bf16(struct kt_device *dev);

/** What work runs early is drawn from this seed from now on; 0 = none does, so that everything
 * happens when it is waited for, never before. A new device has 1. */
void kt_cpu_far_seed(struct kt_device *dev, uint64_t seed);

/* -- from inside ------------------------------------------------------------------------------- */

enum { KT_FAR_JOBS = 128 }; /* a queue holds; a host that queues more waits */

struct kt_far_device;

/** Memory that is allocated now. */
struct kt_far_allocation {
    uint64_t address, bytes; /**< as the host sees it */
    char *real;              /**< where the bytes are; of pinned memory the address itself */
    enum kt_memory kind;
    char what[48];
    uint64_t last_use[KT_QUEUES]; /**< number of the last job of each queue that works on it */
};

/** Everything in here is touched by the host's thread alone. */
struct kt_far_addresses {
    char *region; /**< reserved; addresses of device memory and scratch are in here */
    uint64_t next;
    struct kt_far_allocation *live; /**< sorted by address */
    size_t num_live, room;
};

/** An operation's arguments, whichever it is. */
union kt_far_args {
    struct kt_linear_args linear;
    struct kt_gemm_args gemm;
    struct kt_embedding_args embedding;
    struct kt_norm_args norm;
    struct kt_rope_args rope;
    struct kt_attention_args attention;
    struct kt_glu_args glu;
    struct kt_router_args router;
    struct kt_cross_entropy_args cross_entropy;
    struct kt_rows_args rows;
    struct kt_dropout_args dropout;
    struct kt_gather_args gather;
    struct kt_weigh_args weigh;
};

struct kt_far_job {
    enum { KT_FAR_OPERATION, KT_FAR_COPY, KT_FAR_WAIT, KT_FAR_STAMP } kind;
    enum kt_op op; /**< OPERATION; addresses in args are real ones */
    union kt_far_args args;
    void *scratch;
    void *to; /**< COPY */
    const void *from;
    uint64_t bytes;
    kt_mark mark;    /**< WAIT */
    double *seconds; /**< STAMP */
};

/** Jobs are numbered from 1. Those up to `done` have run, up to `wanted` may run, up to `queued`
 * exist. */
struct kt_far_queue {
    struct kt_far_device *far;
    pthread_t thread;
    bool started;
    uint64_t done, wanted, queued;
    struct kt_far_job jobs[KT_FAR_JOBS]; /**< job n is jobs[n % KT_FAR_JOBS] */
};

struct kt_far_device {
    struct kt_device base;
    struct kt_device_ops ops; /**< with this device's name */
    char name[16];
    struct kt_pool *pool;    /**< of one thread: the context's belongs to the host's thread */
    struct kt_device *inner; /**< the CPU */
    char failure[256];       /**< the first; host's thread alone */
    uint64_t seed, drawn;
    bool bf16; /**< see kt_cpu_far_prefer_bf16 */
    struct kt_far_addresses addresses;

    pthread_mutex_t lock; /**< of everything below */
    pthread_cond_t changed;
    pthread_mutex_t running; /**< held while a job runs: one at a time */
    bool stop;
    struct kt_far_queue queues[KT_QUEUES];
};

static inline struct kt_far_device *kt_far(struct kt_device *dev)
{
    return (struct kt_far_device *)dev;
}

/** Keeps the sentence for sync, if it is the first. */
void kt_far_remember(struct kt_far_device *far, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* addresses.c */
kt_status kt_far_reserve(kt_context *ctx, struct kt_far_addresses *a);
void kt_far_unreserve(struct kt_far_addresses *a);
/** Names `bytes` bytes at `real` by an address of their own, or pinned memory by `real`. Errors:
 * OUT_OF_MEMORY, recorded. */
kt_status kt_far_add(kt_context *ctx, struct kt_far_addresses *a, enum kt_memory kind,
                     uint64_t bytes, const char *what, char *real, void **out);
void kt_far_remove(struct kt_far_addresses *a, struct kt_far_allocation *allocation);
/** The allocation that holds the address, or NULL. */
struct kt_far_allocation *kt_far_find(const struct kt_far_addresses *a, const void *address);
/** Whether the address is one that only the device may follow, allocated or not. */
bool kt_far_is_reserved(const struct kt_far_addresses *a, const void *address);

/* operands.c */
enum { KT_FAR_OPERANDS = 14 };

/** Where an operand's elements are, from its address on. */
struct kt_far_extent {
    int64_t rows, ld;      /**< rows, and elements between two */
    int64_t parts, stride; /**< pieces of a row, and elements between two */
    int64_t cols;          /**< elements of a piece */
    int64_t element;       /**< bytes of one */
};

/** Bytes from the first element to behind the last; 0 = the operand is not used. */
uint64_t kt_far_extent_bytes(const struct kt_far_extent *extent);

struct kt_far_operand {
    const char *name; /**< NULL ends a list */
    size_t offset;    /**< of its address in the arguments */
    struct kt_far_extent (*extent)(const void *args);
    enum { KT_FAR_ARRAY, KT_FAR_READ, KT_FAR_WRITTEN } kind; /**< the last two are views */
};

extern const struct kt_far_operand kt_far_operands[KT_OPS][KT_FAR_OPERANDS];

/* widen.c: operations on views in bfloat16. Their operands are widened into scratch behind that of
 * the CPU, which computes, and what it wrote is rounded. */

/** Whether a view of the operation is bfloat16 and the CPU takes none. */
bool kt_far_widens(enum kt_op op, const void *args);
/** Makes all views float32. */
void kt_far_widen_types(enum kt_op op, void *args);
/** What the CPU takes, and the widened operands. */
uint64_t kt_far_scratch_bytes(const struct kt_far_device *far, enum kt_op op, const void *args);
/** Runs an operation whose addresses are real. */
void kt_far_compute(const struct kt_far_device *far, const struct kt_far_job *job);

/* operations.c */
extern const kt_op_fn kt_far_run[KT_OPS];
void kt_far_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes);

/* queue.c */
kt_status kt_far_start(struct kt_far_device *far);
/** Runs what is queued and ends the threads. */
void kt_far_stop(struct kt_far_device *far);
/** Queues a copy of `job`. */
void kt_far_push(struct kt_far_device *far, enum kt_queue queue, const struct kt_far_job *job);
kt_mark kt_far_mark(struct kt_device *dev, enum kt_queue queue);
void kt_far_wait(struct kt_device *dev, enum kt_queue queue, kt_mark mark);
void kt_far_stamp(struct kt_device *dev, enum kt_queue queue, double *seconds);
/** The host waits until job `number` has run. Returns whether it had to. */
bool kt_far_finish(struct kt_far_device *far, enum kt_queue queue, uint64_t number);
kt_status kt_far_sync(struct kt_device *dev, kt_mark mark);

#endif
