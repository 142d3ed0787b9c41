/* SPDX-License-Identifier: Apache-2.0 */
/** \file context.h
 * The context owns the thread pool, the callbacks and the last error. Every other handle is made
 * from one, directly or through another handle.
 *
 * Threads: a context and all handles made from it run one call at a time. A call from another
 * thread meanwhile, whether by mistake or not, is answered with KT_ERROR_STATE and changes nothing;
 * which thread makes the next call does not matter. Functions that only look (kt_x_num_...,
 * kt_x_get_...) are not guarded: do not call them while another thread changes what they look at.
 * From any thread, at any time while the context lives: kt_context_cancel, kt_last_error,
 * kt_status_string, kt_version, kt_free and all free functions. Two contexts share no mutable state
 * (but an atomic mark of who has bound threads to cores), so two threads with a context each need
 * no lock.
 *
 * Callbacks are called on the thread that called libkt, in the middle of that call. They may call
 * the functions just named, those that only look, and anything of another context; everything else
 * of this context answers KT_ERROR_STATE. They must return: neither throw through libkt nor
 * longjmp.
 *
 * The thread that calls libkt works too. libkt never changes its affinity, nor that of any thread
 * of the host. The other threads take no signals but those that they cause themselves (faults,
 * abort, SIGPROF), which the thread that makes the context must not block. With pin_threads they
 * are bound: a context that has a thread for every core binds each to its own; one with fewer
 * threads, or made while another context of the process holds the cores, binds them to the cores
 * of their NUMA node, which with one node leaves them free.
 *
 * Memory. What grows with model, adapter, step or data is counted, and memory_limit is for it:
 * weights that a GGUF file's are rebuilt to, the adapter with its gradients, the optimizer's
 * moments, activations, caches and work space, the tokens of datasets, what a conversion holds.
 * Not counted are
 *  - pages of mapped checkpoint files, which the system takes back when it needs them;
 *  - names, shapes and lists: less than 1 KiB for each tensor of a checkpoint or an adapter;
 *  - the events of a trace, see trace.h;
 *  - tokenizers, rules, and a dataset's entries while they are read. Reading a file may take as
 *    much as the limit leaves, or without one 64 MiB and 24 bytes for each byte of the file;
 *  - of the largest step, 36 bytes a token (the batch, its targets and log-probabilities), and
 *    tables of rotary embeddings of up to 6 bytes for each position and rotated dimension;
 *  - of a generator, 16 bytes an entry of the vocabulary and 6 bytes a token;
 *  - texts and arrays given to the host, stacks of threads, and 1 MiB or so in other libraries
 *    while a file is compressed.
 *
 * fork(): the child has none of the threads. It must neither use nor free what its parent made; it
 * may make contexts of its own. */
#ifndef KT_CONTEXT_H
#define KT_CONTEXT_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef enum kt_log_level {
    KT_LOG_ERROR = 0,
    KT_LOG_WARNING = 1,
    KT_LOG_INFO = 2,
    KT_LOG_DEBUG = 3
} kt_log_level;

/** Instruction sets that kt_context_options.isa_mask can switch off (for tests and bug reports). */
enum {
    KT_ISA_AVX2 = 1u << 0, /**< AVX2 + FMA + F16C */
    KT_ISA_AVX512 = 1u << 1,
    KT_ISA_AVX512_BF16 = 1u << 2,
    KT_ISA_AVX512_VNNI = 1u << 3,
    KT_ISA_AMX_BF16 = 1u << 4,
    KT_ISA_AMX_INT8 = 1u << 5,
    KT_ISA_AVX512_VBMI = 1u << 6 /**< and GFNI, with AVX-512-BF16 */
};

/** Receives one line of log text, UTF-8, no newline; `level` is a kt_log_level. */
typedef void (*kt_log_callback)(void *user, int32_t level, const char *message);

/** Receives progress of long work: `done` of `total` units of `what` ("loading", "layers" ...). */
typedef void (*kt_progress_callback)(void *user, const char *what, uint64_t done, uint64_t total);

/** Asked between layers and files; a non-zero answer makes the running call return
 * KT_ERROR_CANCELLED and leave the handle as it was before the call. */
typedef int32_t (*kt_cancel_callback)(void *user);

/** Gives `bytes` of memory at a multiple of `alignment` (64), or NULL. May be called by any of the
 * context's threads. */
typedef void *(*kt_alloc_callback)(void *user, size_t bytes, size_t alignment);
/** Takes back what kt_alloc_callback gave. */
typedef void (*kt_free_callback)(void *user, void *memory, size_t bytes);

typedef struct kt_context_options {
    size_t size;         /**< sizeof(kt_context_options), set by the init function */
    int32_t num_threads; /**< worker threads, the calling one among them; 0 = one for each physical
                              core this process may use, as far as control groups grant time for
                              them; at most one for each hardware thread (more is logged as a
                              warning, and not obeyed) */
    uint32_t isa_mask;   /**< KT_ISA_* bits that must not be used; 0 = use what the CPU has */
    kt_log_callback log; /**< NULL = no log */
    kt_progress_callback progress; /**< NULL = none */
    kt_cancel_callback cancel;     /**< NULL = never cancel */
    void *user;                    /**< passed to these three; see kt_context_set_log */
    uint64_t memory_limit;   /**< bytes of host memory that libkt may allocate for what is counted;
                                see "Memory" above. 0 = no limit of its own */
    int32_t pin_threads;     /**< 1 (default) = bind threads to cores or NUMA nodes; 0 = leave them
                                where the system puts them */
    kt_alloc_callback alloc; /**< where the memory that memory_limit counts comes from; NULL = the C
                                library. Give both or neither */
    kt_free_callback free;
    void *alloc_user; /**< passed to alloc and free */
    uint64_t reserved[4];
} kt_context_options;

/** Fills `options` with the defaults above. `size` is sizeof(kt_context_options) of the caller. */
KT_API void kt_context_options_init(kt_context_options *options, size_t size);

/** Creates a context and starts its threads. `options` NULL = defaults. A failure's sentence is at
 * kt_last_error(NULL). Errors: INVALID_ARGUMENT (negative threads, alloc without free),
 * OUT_OF_MEMORY (also when threads cannot be started). */
KT_API kt_status kt_context_create(const kt_context_options *options, kt_context **out);

/** Lets go of a context. Its threads stop when every handle made from it is freed too. */
KT_API void kt_context_free(kt_context *ctx);

/** The sentence that explains the latest failed call on this context: what, where (file, key,
 * tensor) and what to do. "" if none failed. Valid until the next call on the context. After a call
 * that answered STATE because another was running, the refused thread gets that sentence. NULL: the
 * sentence of this thread's latest failed call that had no context. Never NULL. */
KT_API const char *kt_last_error(const kt_context *ctx);

/** Makes the running call return KT_ERROR_CANCELLED at the next place where it would ask the cancel
 * callback, and with no call running the next one that has such a place. The call that returns it
 * takes the request away, and so does kt_context_clear_cancel. Any thread, also a signal handler.
 * NULL does nothing. */
KT_API void kt_context_cancel(kt_context *ctx);

/** Takes back a request that no call has answered. */
KT_API void kt_context_clear_cancel(kt_context *ctx);

/** Replaces a callback (NULL = none) together with what is passed to it. */
KT_API kt_status kt_context_set_log(kt_context *ctx, kt_log_callback log, void *user);
KT_API kt_status kt_context_set_progress(kt_context *ctx, kt_progress_callback progress,
                                         void *user);
KT_API kt_status kt_context_set_cancel(kt_context *ctx, kt_cancel_callback cancel, void *user);

/** Number of worker threads in use (>= 1). */
KT_API int32_t kt_context_num_threads(const kt_context *ctx);

/** One line that describes the CPU: cores, NUMA nodes, instruction sets in use. Never NULL. */
KT_API const char *kt_context_cpu_description(const kt_context *ctx);

/** Bytes of host memory that count for memory_limit: allocated now, and the most there ever were.
 * Mapped checkpoint files do not count. */
KT_API uint64_t kt_context_memory_used(const kt_context *ctx);
KT_API uint64_t kt_context_memory_peak(const kt_context *ctx);

/** Bytes of host memory that this process may use, whoever allocates them: what is installed, or
 * the limit of its control groups (a container's, a job's) where that is smaller. */
KT_API uint64_t kt_context_host_memory(const kt_context *ctx);

/** Frees an array that a libkt call returned to the caller ("free with kt_free"). */
KT_API void kt_free(void *pointer);

KT_END_DECLS
#endif
