/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/threads.h
 * The context's thread pool. The calling thread is worker 0: it belongs to the host, and its
 * affinity is never changed. A worker without work looks for some for 50 microseconds, then sleeps.
 *
 * Where the other workers run (kt_affinity): a pool with a thread for every core binds each to its
 * own, and leaves the one on which it was made to the caller; one with fewer would only keep others
 * off those cores, so it binds each to the cores of its node. Only one pool of a process binds to
 * cores at a time; those made while it lives bind to nodes. A thread that the system refuses to
 * bind runs unbound.
 *
 * After fork() the child has no workers: it must neither use nor free a pool of its parent. */
#ifndef KT_CORE_THREADS_H
#define KT_CORE_THREADS_H

#include <pthread.h>

#include "core/topology.h"

struct kt_pool;

/** pthread_create of a thread that leaves signals from outside to the host's threads. What a thread
 * causes itself, a fault or a tick of a profiler, would skip the host's handler if it were blocked.
 */
int kt_thread_start(pthread_t *thread, void *(*run)(void *), void *arg);

enum kt_affinity { KT_AFFINITY_NONE, KT_AFFINITY_NODES, KT_AFFINITY_CORES };

/** Processes items [begin, end) as worker `thread` (0 .. num_threads - 1). Must not fail. */
typedef void (*kt_range_fn)(void *arg, int64_t begin, int64_t end, int32_t thread);

/** The topology is only read here. With `pin` false no thread is bound, and there is one node.
 * Errors: OUT_OF_MEMORY (also when threads cannot be started). */
kt_status kt_pool_create(const struct kt_topology *topology, int32_t num_threads, bool pin,
                         struct kt_pool **out);
void kt_pool_free(struct kt_pool *pool);
int32_t kt_pool_num_threads(const struct kt_pool *pool);

/** How threads are bound; NONE when the system refused one, which `refused` (may be NULL) counts.
 */
enum kt_affinity kt_pool_affinity(const struct kt_pool *pool, int32_t *refused);

/** Nodes that have a worker, >= 1, and that of a worker, 0 .. num_nodes - 1. */
int32_t kt_pool_num_nodes(const struct kt_pool *pool);
int32_t kt_pool_node(const struct kt_pool *pool, int32_t thread);

/** Node k owns [kt_pool_first(pool, k, n), kt_pool_first(pool, k + 1, n)) of n things: a share that
 * is in proportion to its workers. 0 <= node <= num_nodes. */
int64_t kt_pool_first(const struct kt_pool *pool, int32_t node, int64_t n);

/** The node that owns an item of kt_parallel_for_nodes. */
int32_t kt_pool_owner(const struct kt_pool *pool, int64_t parts, int64_t items_a_part,
                      int64_t item);

/** Asks for memory to be on a node of the pool (see kt_bind_pages). Nothing happens with one node.
 */
void kt_pool_bind_memory(const struct kt_pool *pool, const void *memory, uint64_t bytes,
                         int32_t node);

/** Runs fn over [0, n) in pieces of at most `grain` (>= 1) consecutive items that workers take one
 * after another, and returns when all are done. Pieces are [i*grain, min(n,(i+1)*grain)), whatever
 * the number of threads, so that a result that depends on pieces alone is the same for any pool.
 * Not reentrant: fn must not call kt_parallel_for. */
void kt_parallel_for(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg);

/** The same over parts * items_a_part items of which nodes own parts: node k's items are those of
 * the parts that kt_pool_first gives it. Workers take pieces of their own node first, then help
 * others. Pieces do not cross nodes, so they depend on the number of nodes: an item must own its
 * result. */
void kt_parallel_for_nodes(struct kt_pool *pool, int64_t parts, int64_t items_a_part, int64_t grain,
                           kt_range_fn fn, void *arg);

#endif
