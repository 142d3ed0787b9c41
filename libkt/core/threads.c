/* SPDX-License-Identifier: Apache-2.0 */
#include "core/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/bind.h"

struct worker {
    struct kt_pool *pool;
    pthread_t handle; /* of all but the first, which is the caller */
    int32_t index, node;
};

/* What a node owns of the running job. */
struct queue {
    alignas(64) _Atomic int64_t next; /* next piece to be taken */
    int64_t begin, end;               /* items */
    int32_t os_node, first_worker;    /* the workers of lower nodes */
};

/* A job is open while its pieces are handed out. A worker counts itself busy before it looks
 * whether the job is open, and the caller closes the job before it looks whether a worker is busy:
 * so a worker that wakes late neither delays the caller nor sees a job that has ended. */
struct kt_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    struct worker *workers; /* [num_threads] */
    struct queue *queues;   /* [num_nodes] */
    int32_t num_threads, num_started, num_nodes;
    enum kt_affinity affinity;
    int32_t num_refused;
    bool binds_memory;
    _Atomic uint64_t generation; /* counts jobs */
    _Atomic int32_t num_busy, num_asleep;
    _Atomic bool open, stop;

    kt_range_fn fn;
    void *arg;
    int64_t grain;
};

/* Does a pool of this process bind its threads to cores? */
static _Atomic bool cores_are_taken;

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

static void run_queue(struct kt_pool *pool, struct queue *q, int32_t thread)
{
    for (;;) {
        int64_t piece = atomic_fetch_add_explicit(&q->next, 1, memory_order_relaxed);
        int64_t begin = q->begin + piece * pool->grain, end = begin + pool->grain;
        if (begin >= q->end)
            return;
        pool->fn(pool->arg, begin, end < q->end ? end : q->end, thread);
    }
}

static void run_pieces(struct kt_pool *pool, int32_t thread)
{
    int32_t node = pool->workers[thread].node;
    for (int32_t i = 0; i < pool->num_nodes; i++)
        run_queue(pool, &pool->queues[(node + i) % pool->num_nodes], thread);
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

/* -- making a pool ----------------------------------------------------------------------------- */

static void bind_worker(struct kt_pool *pool, const struct kt_topology *t,
                        const struct kt_place *place, pthread_t thread)
{
    const struct kt_topology_core *core = &t->cores[place->core];
    const struct kt_topology_node *node = &t->nodes[place->node];
    const struct kt_topology_core *last = &t->cores[node->first_core + node->num_cores - 1];
    const int32_t *pus = &t->pus[t->cores[node->first_core].first_pu];
    int32_t num = (int32_t)(&t->pus[last->first_pu + last->num_pus] - pus);
    if (pool->affinity == KT_AFFINITY_CORES) {
        bool alone = pool->num_threads <= t->num_cores;
        pus = &t->pus[alone ? core->first_pu : place->pu];
        num = alone ? core->num_pus : 1;
    }
    if (!kt_bind_thread(thread, pus, num))
        pool->num_refused++;
}

int kt_thread_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    sigset_t outside, old;
    sigfillset(&outside);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&outside, own[i]);
    pthread_sigmask(SIG_BLOCK, &outside, &old);
    int error = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error;
}

/* Counts the nodes that have workers, and makes their numbers consecutive. */
static kt_status make_queues(struct kt_pool *pool, const struct kt_topology *t,
                             const struct kt_place *places, bool pin)
{
    size_t bytes = (size_t)(pin ? t->num_nodes : 1) * sizeof *pool->queues;
    pool->queues = aligned_alloc(alignof(struct queue), bytes);
    if (!pool->queues)
        return KT_ERROR_OUT_OF_MEMORY;
    memset(pool->queues, 0, bytes);
    pool->num_nodes = pin ? 0 : 1;
    for (int32_t node = 0, before = 0; pin && node < t->num_nodes; node++) {
        int32_t here = 0;
        for (int32_t i = 0; i < pool->num_threads; i++) {
            if (places[i].node != node)
                continue;
            pool->workers[i].node = pool->num_nodes;
            here++;
        }
        struct queue *q = &pool->queues[pool->num_nodes];
        q->os_node = t->nodes[node].has_memory ? t->nodes[node].os_index : -1;
        q->first_worker = before;
        before += here;
        pool->num_nodes += here > 0;
    }
    pool->binds_memory = t->this_system && pool->num_nodes > 1;
    return KT_OK;
}

static void choose_affinity(struct kt_pool *pool, const struct kt_topology *t, bool pin)
{
    bool binds = pin && t->this_system && pool->num_threads > 1;
    pool->affinity = binds ? KT_AFFINITY_NODES : KT_AFFINITY_NONE;
    if (pool->affinity == KT_AFFINITY_NODES && pool->num_threads >= t->num_cores &&
        !atomic_exchange(&cores_are_taken, true))
        pool->affinity = KT_AFFINITY_CORES;
}

/* The caller keeps the core on which it runs, so that no worker is bound to that one. */
static void place_caller(const struct kt_topology *t, struct kt_place *places, int32_t num)
{
    int32_t here = sched_getcpu();
    for (int32_t i = 0; i < num; i++) {
        const struct kt_topology_core *core = &t->cores[places[i].core];
        for (int32_t p = core->first_pu; p < core->first_pu + core->num_pus; p++) {
            if (t->pus[p] != here)
                continue;
            struct kt_place first = places[0];
            places[0] = places[i];
            places[i] = first;
            return;
        }
    }
}

static kt_status start_workers(struct kt_pool *pool, const struct kt_topology *t,
                               const struct kt_place *places)
{
    for (; pool->num_started < pool->num_threads - 1; pool->num_started++) {
        struct worker *w = &pool->workers[pool->num_started + 1];
        w->pool = pool;
        w->index = pool->num_started + 1;
        if (kt_thread_start(&w->handle, worker_main, w) != 0)
            return KT_ERROR_OUT_OF_MEMORY;
        if (pool->affinity != KT_AFFINITY_NONE)
            bind_worker(pool, t, &places[w->index], w->handle);
    }
    return KT_OK;
}

kt_status kt_pool_create(const struct kt_topology *topology, int32_t num_threads, bool pin,
                         struct kt_pool **out)
{
    struct kt_pool *pool = calloc(1, sizeof *pool);
    struct kt_place *places = calloc((size_t)num_threads, sizeof *places);
    kt_status status = KT_ERROR_OUT_OF_MEMORY;
    *out = NULL;
    if (pool) {
        pthread_mutex_init(&pool->lock, NULL);
        pthread_cond_init(&pool->wake, NULL);
        pthread_cond_init(&pool->idle, NULL);
        pool->num_threads = num_threads;
        pool->workers = calloc((size_t)num_threads, sizeof *pool->workers);
    }
    if (pool && pool->workers && places)
        status = kt_topology_place(topology, num_threads, places);
    if (status == KT_OK && topology->this_system)
        place_caller(topology, places, num_threads);
    if (status == KT_OK)
        status = make_queues(pool, topology, places, pin);
    if (status == KT_OK) {
        choose_affinity(pool, topology, pin);
        status = start_workers(pool, topology, places);
    }
    free(places);
    if (status != KT_OK)
        kt_pool_free(pool);
    else
        *out = pool;
    return status;
}

void kt_pool_free(struct kt_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 1; i <= pool->num_started; i++)
        pthread_join(pool->workers[i].handle, NULL);
    if (pool->affinity == KT_AFFINITY_CORES)
        cores_are_taken = false;
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->idle);
    free(pool->workers);
    free(pool->queues);
    free(pool);
}

/* -- what a pool is ---------------------------------------------------------------------------- */

int32_t kt_pool_num_threads(const struct kt_pool *pool)
{
    return pool->num_threads;
}

enum kt_affinity kt_pool_affinity(const struct kt_pool *pool, int32_t *refused)
{
    if (refused)
        *refused = pool->num_refused;
    return pool->num_refused ? KT_AFFINITY_NONE : pool->affinity;
}

int32_t kt_pool_num_nodes(const struct kt_pool *pool)
{
    return pool->num_nodes;
}

int32_t kt_pool_node(const struct kt_pool *pool, int32_t thread)
{
    return pool->workers[thread].node;
}

int64_t kt_pool_first(const struct kt_pool *pool, int32_t node, int64_t n)
{
    int64_t threads = pool->num_threads;
    int64_t before = node < pool->num_nodes ? pool->queues[node].first_worker : threads;
    return n / threads * before + n % threads * before / threads;
}

int32_t kt_pool_owner(const struct kt_pool *pool, int64_t parts, int64_t items_a_part, int64_t item)
{
    int32_t node = 0;
    while (item / items_a_part >= kt_pool_first(pool, node + 1, parts))
        node++;
    return node;
}

void kt_pool_bind_memory(const struct kt_pool *pool, const void *memory, uint64_t bytes,
                         int32_t node)
{
    if (pool->binds_memory && pool->queues[node].os_node >= 0)
        kt_bind_pages(memory, bytes, pool->queues[node].os_node);
}

/* -- jobs -------------------------------------------------------------------------------------- */

/* The queues are filled. */
static void run_job(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg)
{
    pool->fn = fn;
    pool->arg = arg;
    pool->grain = grain;
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

static void fill_queue(struct queue *q, int64_t begin, int64_t end)
{
    q->begin = begin;
    q->end = end;
    q->next = 0;
}

void kt_parallel_for(struct kt_pool *pool, int64_t n, int64_t grain, kt_range_fn fn, void *arg)
{
    if (n <= 0)
        return;
    fill_queue(&pool->queues[0], 0, n);
    for (int32_t node = 1; node < pool->num_nodes; node++)
        fill_queue(&pool->queues[node], 0, 0);
    run_job(pool, n, grain < 1 ? 1 : grain, fn, arg);
}

void kt_parallel_for_nodes(struct kt_pool *pool, int64_t parts, int64_t items_a_part, int64_t grain,
                           kt_range_fn fn, void *arg)
{
    if (parts <= 0 || items_a_part <= 0)
        return;
    for (int32_t node = 0; node < pool->num_nodes; node++)
        fill_queue(&pool->queues[node], kt_pool_first(pool, node, parts) * items_a_part,
                   kt_pool_first(pool, node + 1, parts) * items_a_part);
    run_job(pool, parts * items_a_part, grain < 1 ? 1 : grain, fn, arg);
}
