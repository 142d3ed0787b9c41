/* SPDX-License-Identifier: Apache-2.0 */
#include "core/threads.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

struct worker {
    struct kt_pool *pool;
    pthread_t handle;
    int32_t index;
};

/* A job is open while its pieces are handed out. A worker counts itself busy before it looks whether
 * the job is open, and the caller closes the job before it looks whether a worker is busy: so a worker
 * that wakes late neither delays the caller nor sees a job that has ended. */
struct kt_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    struct worker *workers; /* [num_threads - 1] */
    int32_t num_threads, num_started;
    _Atomic uint64_t generation; /* counts jobs */
    _Atomic int32_t num_busy, num_asleep;
    _Atomic bool open, stop;

    kt_range_fn fn;
    void *arg;
    int64_t n, grain;
    _Atomic int64_t next; /* next piece to be taken */
};

/* Operations follow each other within microseconds; sleeping and waking takes longer than that. */
enum { SPIN_NANOSECONDS = 50000, SPINS_PER_LOOK = 64 };

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void run_pieces(struct kt_pool *pool, int32_t thread)
{
    int64_t pieces = (pool->n + pool->grain - 1) / pool->grain;
    for (;;) {
        int64_t piece = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (piece >= pieces)
            return;
        int64_t begin = piece * pool->grain, end = begin + pool->grain;
        pool->fn(pool->arg, begin, end < pool->n ? end : pool->n, thread);
    }
}

static bool job_came(struct kt_pool *pool, uint64_t seen)
{
    return pool->generation != seen || pool->stop;
}

static void wait_for_job(struct kt_pool *pool, uint64_t seen)
{
    int64_t end = now() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++, relax())
            if (job_came(pool, seen))
                return;
    } while (now() < end);
    pthread_mutex_lock(&pool->lock);
    pool->num_asleep++;
    while (!job_came(pool, seen))
        pthread_cond_wait(&pool->wake, &pool->lock);
    pool->num_asleep--;
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    struct kt_pool *pool = self->pool;
    uint64_t seen = 0;
    for (;;) {
        wait_for_job(pool, seen);
        if (pool->stop)
            return NULL;
        seen = pool->generation;
        pool->num_busy++;
        if (pool->open)
            run_pieces(pool, self->index);
        if (--pool->num_busy == 0) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->idle);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void wait_for_workers(struct kt_pool *pool)
{
    int64_t end = now() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++, relax())
            if (!pool->num_busy)
                return;
    } while (now() < end);
    pthread_mutex_lock(&pool->lock);
    while (pool->num_busy)
        pthread_cond_wait(&pool->idle, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

/* Workers leave every signal to the host's threads. */
static int start_worker(struct kt_pool *pool, struct worker *w, int32_t index)
{
    sigset_t all, old;
    w->pool = pool;
    w->index = index;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&w->handle, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error;
}

kt_status kt_pool_create(int32_t num_threads, struct kt_pool **out)
{
    struct kt_pool *pool = calloc(1, sizeof *pool);
    *out = NULL;
    if (!pool)
        return KT_ERROR_OUT_OF_MEMORY;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->idle, NULL);
    pool->num_threads = num_threads;
    pool->workers = calloc((size_t)num_threads, sizeof *pool->workers);
    for (; pool->workers && pool->num_started < num_threads - 1; pool->num_started++)
        if (start_worker(pool, &pool->workers[pool->num_started], pool->num_started + 1) != 0)
            break;
    if (!pool->workers || pool->num_started < num_threads - 1) {
        kt_pool_free(pool);
        return KT_ERROR_OUT_OF_MEMORY;
    }
    *out = pool;
    return KT_OK;
}

void kt_pool_free(struct kt_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i < pool->num_started; i++)
        pthread_join(pool->workers[i].handle, NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->idle);
    free(pool->workers);
    free(pool);
}

int32_t kt_pool_num_threads(const struct kt_pool *pool)
{
    return pool->num_threads;
}

void kt_parallel_for(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg)
{
    if (n <= 0)
        return;
    if (grain < 1)
        grain = 1;
    pool->fn = fn;
    pool->arg = arg;
    pool->n = n;
    pool->grain = grain;
    pool->next = 0;
    if (pool->num_threads == 1 || n <= grain) {
        run_pieces(pool, 0);
        return;
    }
    pool->open = true;
    pool->generation++;
    if (pool->num_asleep) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    run_pieces(pool, 0);
    pool->open = false;
    wait_for_workers(pool);
}
