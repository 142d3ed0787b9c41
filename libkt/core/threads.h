/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/threads.h
 * The context's thread pool. The calling thread is worker 0. A worker
 * without work looks for some for 50 microseconds, then sleeps. */
#ifndef KT_CORE_THREADS_H
#define KT_CORE_THREADS_H

#include <kt/types.h>

struct kt_pool;

/** Processes items [begin, end) as worker `thread` (0 .. num_threads - 1). Must not fail. */
typedef void (*kt_range_fn)(void *arg, int64_t begin, int64_t end, int32_t thread);

kt_status kt_pool_create(int32_t num_threads, struct kt_pool **out);
void kt_pool_free(struct kt_pool *pool);
int32_t kt_pool_num_threads(const struct kt_pool *pool);

/** Runs fn over [0, n) in pieces of at most `grain` (>= 1) consecutive items that workers take one
 * after another, and returns when all are done. Pieces are [i*grain, min(n,(i+1)*grain)), whatever
 * the number of threads, so that a result that depends on pieces alone is the same for any pool. Not
 * reentrant: fn must not call kt_parallel_for. */
void kt_parallel_for(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg);

#endif
