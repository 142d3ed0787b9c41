/* SPDX-License-Identifier: Apache-2.0 */
/* The thread pool: pieces, nodes, sleeping and waking, and where threads are bound. */
#include <numaif.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/bind.h"
#include "machine.h"
#include "main.h"

/* A pool whose nodes and cores are made up. */
static struct kt_pool *new_pool(const char *description, int32_t threads)
{
    struct kt_pool *pool;
    struct kt_topology t = machine(description);
    ck_assert_int_eq(kt_pool_create(&t, threads, true, &pool), KT_OK);
    kt_topology_free(&t);
    return pool;
}

/* -- pieces ------------------------------------------------------------------------------------ */

static void mark(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        ((int *)arg)[i]++;
}

static void check_marks(int *seen, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ck_assert_int_eq(seen[i], 1);
    ck_assert_int_eq(seen[n], 0);
    memset(seen, 0, (size_t)n * sizeof *seen);
}

static const char *const machines[] = {"core:5 pu:1", "numa:2 core:3 pu:1", "numa:5 core:1 pu:1"};

START_TEST(each_item_is_visited_once)
{
    static int seen[2000];
    for (int32_t threads = 1; threads <= 5; threads++) {
        struct kt_pool *pool = new_pool(machines[_i], threads);
        for (int64_t n = 0; n < 200; n += 13) {
            kt_parallel_for(pool, n, 7, mark, seen);
            check_marks(seen, n);
            kt_parallel_for_nodes(pool, n, 9, 7, mark, seen);
            check_marks(seen, n * 9);
        }
        kt_pool_free(pool);
    }
}
END_TEST

struct pieces {
    int64_t n, grain;
    _Atomic int wrong;
};

static void check_piece(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct pieces *p = arg;
    int64_t last = begin + p->grain < p->n ? begin + p->grain : p->n;
    if (begin % p->grain || end != last || thread < 0)
        p->wrong++;
}

START_TEST(pieces_do_not_depend_on_threads_or_nodes)
{
    for (int32_t threads = 1; threads <= 5; threads++) {
        struct kt_pool *pool = new_pool(machines[_i], threads);
        for (int64_t n = 1; n < 60; n++) {
            struct pieces p = {.n = n, .grain = 1 + n % 8};
            kt_parallel_for(pool, n, p.grain, check_piece, &p);
            ck_assert_int_eq(p.wrong, 0);
        }
        kt_pool_free(pool);
    }
}
END_TEST

/* -- nodes ------------------------------------------------------------------------------------- */

START_TEST(workers_belong_to_nodes)
{
    static const int32_t expected[] = {0, 1, 0, 1, 0, 1};
    struct kt_pool *pool = new_pool("numa:2(indexes=7,3) core:3 pu:1", 6);
    ck_assert_int_eq(kt_pool_num_nodes(pool), 2);
    for (int32_t i = 0; i < 6; i++)
        ck_assert_int_eq(kt_pool_node(pool, i), expected[i]);
    kt_pool_free(pool);
    pool = new_pool("numa:4 core:3 pu:1", 2); /* two nodes have no worker */
    ck_assert_int_eq(kt_pool_num_nodes(pool), 2);
    kt_pool_free(pool);
}
END_TEST

START_TEST(nodes_own_shares_of_their_workers_size)
{
    struct kt_pool *pool = new_pool("numa:2 core:3 pu:1", 5); /* three and two workers */
    for (int64_t n = 0; n < 100; n++) {
        ck_assert_int_eq(kt_pool_first(pool, 0, n), 0);
        ck_assert_int_eq(kt_pool_first(pool, 1, n), n * 3 / 5);
        ck_assert_int_eq(kt_pool_first(pool, 2, n), n);
    }
    ck_assert_int_eq(kt_pool_first(pool, 1, INT64_MAX), INT64_MAX / 5 * 3 + INT64_MAX % 5 * 3 / 5);
    kt_pool_free(pool);
}
END_TEST

/* Every worker takes one piece and waits until all have one: each must have begun at home. The
 * rest is helped with. */
struct homes {
    struct kt_pool *pool;
    int64_t parts, items;
    _Atomic int32_t arrived, away, crossing;
    _Atomic int first[8];
};

static int32_t owner(const struct homes *h, int64_t item)
{
    return kt_pool_owner(h->pool, h->parts, h->items, item);
}

static void take_home(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct homes *h = arg;
    if (owner(h, begin) != owner(h, end - 1))
        h->crossing++;
    if (h->first[thread]++)
        return;
    if (owner(h, begin) != kt_pool_node(h->pool, thread))
        h->away++;
    h->arrived++;
    while (h->arrived < kt_pool_num_threads(h->pool))
        sched_yield();
}

START_TEST(workers_begin_at_home)
{
    struct kt_pool *pool = new_pool("numa:3 core:2 pu:1", 6);
    for (int i = 0; i < 50; i++) {
        struct homes h = {.pool = pool, .parts = 6 + i, .items = 4};
        kt_parallel_for_nodes(pool, h.parts, h.items, 3, take_home, &h);
        ck_assert_int_eq(h.arrived, 6);
        ck_assert_int_eq(h.away, 0);
        ck_assert_int_eq(h.crossing, 0);
    }
    kt_pool_free(pool);
}
END_TEST

/* One worker never ends its piece before all the others are done: they must have helped. */
struct slow {
    int64_t items;
    _Atomic int64_t done;
};

static void be_slow(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct slow *s = arg;
    (void)begin, (void)end;
    while (thread == 0 && s->done < s->items - 1)
        sched_yield();
    s->done++;
}

START_TEST(others_help_a_node_that_is_behind)
{
    struct kt_pool *pool = new_pool("numa:2 core:1 pu:1", 2);
    struct slow s = {.items = 20};
    kt_parallel_for_nodes(pool, 10, 2, 1, be_slow, &s);
    ck_assert_int_eq(s.done, 20);
    kt_pool_free(pool);
}
END_TEST

/* -- sleeping and waking ----------------------------------------------------------------------- */

static void count(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)thread;
    atomic_fetch_add((_Atomic int64_t *)arg, end - begin);
}

static void wait_us(int64_t us)
{
    struct timespec t, now;
    clock_gettime(CLOCK_MONOTONIC, &t);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - t.tv_sec) * 1000000 + (now.tv_nsec - t.tv_nsec) / 1000 < us);
}

/* Jobs that follow each other at once, while workers still look for one, while they fall asleep
 * (50 us), and when they sleep. A wake-up that is lost or a job that is seen twice ends this test.
 */
START_TEST(no_job_is_lost_or_seen_twice)
{
    static const int64_t pauses[] = {0, 1, 20, 48, 49, 50, 51, 52, 60, 200};
    struct kt_pool *pool = new_pool(machines[_i], 5);
    for (int64_t job = 0; job < 20000; job++) {
        _Atomic int64_t counted = 0;
        if (job % 2)
            kt_parallel_for(pool, job % 9, 1, count, &counted);
        else
            kt_parallel_for_nodes(pool, job % 9, 1, 1, count, &counted);
        ck_assert_int_eq(counted, job % 9);
        wait_us(pauses[job % 10]);
    }
    kt_pool_free(pool);
}
END_TEST

/* Pools that come and go, and are used at most once. */
START_TEST(pools_stop_at_any_time)
{
    for (int64_t i = 0; i < 300; i++) {
        _Atomic int64_t counted = 0;
        struct kt_pool *pool = new_pool(machines[i % 3], 4);
        if (i % 2)
            kt_parallel_for(pool, 10, 1, count, &counted);
        wait_us(i % 4 * 30);
        kt_pool_free(pool);
        ck_assert_int_eq(counted, i % 2 * 10);
    }
}
END_TEST

static double process_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Eight threads that looked for work all the time would take 0.2 s of each processor. */
START_TEST(an_idle_pool_takes_no_time)
{
    _Atomic int64_t counted = 0;
    struct kt_pool *pool = new_pool("core:8 pu:1", 8);
    kt_parallel_for(pool, 1000, 1, count, &counted);
    double begin = process_seconds();
    usleep(200000);
    ck_assert_double_lt(process_seconds() - begin, 0.01);
    kt_pool_free(pool);
}
END_TEST

/* -- signals ----------------------------------------------------------------------------------- */

static _Atomic int32_t handled;

static void on_signal(int number)
{
    (void)number;
    handled++;
}

struct raised {
    int number;
    _Atomic int32_t arrived, wanted, blocked;
};

/* Every thread takes one piece. */
static void raise_one(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct raised *r = arg;
    sigset_t mask;
    (void)begin, (void)end;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    if (sigismember(&mask, r->number))
        r->blocked++;
    else if (thread > 0)
        raise(r->number);
    r->arrived++;
    while (r->arrived < r->wanted)
        sched_yield();
}

static int32_t blocked_on(struct kt_pool *pool, int number)
{
    struct raised r = {.number = number, .wanted = 3};
    kt_parallel_for(pool, 3, 1, raise_one, &r);
    return r.blocked;
}

START_TEST(faults_of_workers_reach_the_hosts_handlers)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    static const int outside[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGALRM, SIGCHLD, SIGWINCH};
    struct kt_pool *pool = new_pool("core:3 pu:1", 3);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(own[i], &action, NULL);
        handled = 0;
        ck_assert_int_eq(blocked_on(pool, own[i]), 0);
        ck_assert_int_eq(handled, 2);
    }
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        ck_assert_int_eq(blocked_on(pool, outside[i]), 2);
    kt_pool_free(pool);
}
END_TEST

/* -- binding ----------------------------------------------------------------------------------- */

enum { MAX_WORKERS = 64 };

struct masks {
    _Atomic int32_t arrived, wanted;
    cpu_set_t sets[MAX_WORKERS];
};

static void read_mask(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct masks *m = arg;
    (void)begin, (void)end;
    sched_getaffinity(0, sizeof m->sets[thread], &m->sets[thread]);
    m->arrived++;
    while (m->arrived < m->wanted)
        sched_yield();
}

/* The affinity of every worker, each of which takes one piece. */
static struct masks *read_masks(struct kt_pool *pool)
{
    static struct masks m;
    m.arrived = 0;
    m.wanted = kt_pool_num_threads(pool);
    kt_parallel_for(pool, m.wanted, 1, read_mask, &m);
    return &m;
}

/* A context with a thread for each core, or so many less. */
static kt_context *context_with(int32_t fewer, int32_t pin)
{
    kt_context *ctx;
    kt_context_options options;
    struct kt_topology t;
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    kt_context_options_init(&options, sizeof options);
    ck_assert_int_eq(options.pin_threads, 1);
    options.pin_threads = pin;
    options.num_threads = t.num_cores - fewer;
    kt_topology_free(&t);
    ck_assert_int_eq(kt_context_create(&options, &ctx), KT_OK);
    return ctx;
}

static bool can_bind(void)
{
    struct kt_topology t;
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    bool can = t.this_system && t.num_cores > 1 && t.num_cores <= MAX_WORKERS;
    kt_topology_free(&t);
    return can;
}

START_TEST(a_full_pool_is_bound_to_cores_but_not_its_caller)
{
    cpu_set_t before, shared;
    if (!can_bind())
        return;
    ck_assert_int_eq(sched_getaffinity(0, sizeof before, &before), 0);
    kt_context *ctx = context_with(0, 1);
    int32_t n = kt_context_num_threads(ctx);
    ck_assert_int_eq(kt_pool_affinity(ctx->pool, NULL), KT_AFFINITY_CORES);
    ck_assert_ptr_nonnull(strstr(kt_context_cpu_description(ctx), "threads pinned to cores"));
    struct masks *m = read_masks(ctx->pool);
    ck_assert(CPU_EQUAL(&m->sets[0], &before));
    for (int32_t i = 1; i < n; i++) {
        ck_assert_int_lt(CPU_COUNT(&m->sets[i]), CPU_COUNT(&before));
        for (int32_t j = 1; j < i; j++) {
            CPU_AND(&shared, &m->sets[i], &m->sets[j]);
            ck_assert_int_eq(CPU_COUNT(&shared), 0);
        }
    }
    kt_context_free(ctx);
}
END_TEST

START_TEST(no_thread_is_bound_to_the_callers_core)
{
    struct kt_pool *pool;
    struct kt_topology t;
    cpu_set_t before, one;
    if (!can_bind())
        return;
    ck_assert_int_eq(sched_getaffinity(0, sizeof before, &before), 0);
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    for (int32_t core = 0; core < t.num_cores; core++) {
        CPU_ZERO(&one);
        CPU_SET(t.pus[t.cores[core].first_pu], &one);
        ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
        ck_assert_int_eq(kt_pool_create(&t, t.num_cores, true, &pool), KT_OK);
        ck_assert_int_eq(sched_setaffinity(0, sizeof before, &before), 0);
        struct masks *m = read_masks(pool);
        for (int32_t i = 1; i < m->wanted; i++)
            ck_assert(!CPU_ISSET(t.pus[t.cores[core].first_pu], &m->sets[i]));
        kt_pool_free(pool);
    }
    kt_topology_free(&t);
}
END_TEST

START_TEST(one_pool_of_a_process_has_the_cores)
{
    if (!can_bind())
        return;
    kt_context *first = context_with(0, 1), *second = context_with(0, 1);
    ck_assert_int_eq(kt_pool_affinity(first->pool, NULL), KT_AFFINITY_CORES);
    ck_assert_int_eq(kt_pool_affinity(second->pool, NULL), KT_AFFINITY_NODES);
    kt_context_free(first);
    kt_context *third = context_with(0, 1); /* the cores are free again */
    ck_assert_int_eq(kt_pool_affinity(third->pool, NULL), KT_AFFINITY_CORES);
    kt_context_free(second);
    kt_context_free(third);
}
END_TEST

START_TEST(pinning_can_be_turned_off)
{
    cpu_set_t before;
    if (!can_bind())
        return;
    ck_assert_int_eq(sched_getaffinity(0, sizeof before, &before), 0);
    kt_context *ctx = context_with(0, 0);
    ck_assert_int_eq(kt_pool_affinity(ctx->pool, NULL), KT_AFFINITY_NONE);
    ck_assert_int_eq(kt_pool_num_nodes(ctx->pool), 1);
    ck_assert_ptr_null(strstr(kt_context_cpu_description(ctx), "pinned"));
    struct masks *m = read_masks(ctx->pool);
    for (int32_t i = 0; i < m->wanted; i++)
        ck_assert(CPU_EQUAL(&m->sets[i], &before));
    kt_context_free(ctx);
}
END_TEST

/* Cores that do not exist stand for those that a container takes away after the start. */
START_TEST(a_refused_binding_is_no_error)
{
    int32_t refused;
    struct kt_pool *pool;
    _Atomic int64_t counted = 0;
    struct kt_topology t = machine("core:3 pu:1");
    for (int32_t i = 0; i < 3; i++)
        t.pus[i] = 100000 + i;
    t.this_system = true;
    ck_assert_int_eq(kt_pool_create(&t, 3, true, &pool), KT_OK);
    ck_assert_int_eq(kt_pool_affinity(pool, &refused), KT_AFFINITY_NONE);
    ck_assert_int_eq(refused, 2);
    kt_parallel_for(pool, 100, 1, count, &counted);
    ck_assert_int_eq(counted, 100);
    kt_pool_free(pool);
    kt_topology_free(&t);
}
END_TEST

static char log_text[1024];
static int log_level = -1;

static void keep_log(void *user, int32_t level, const char *message)
{
    (void)user;
    log_level = (int)level;
    snprintf(log_text, sizeof log_text, "%s", message);
}

START_TEST(more_threads_than_hardware_threads_is_said)
{
    kt_context *ctx;
    kt_context_options options;
    struct kt_topology t = machine("numa:2 core:2 pu:2");
    kt_context_options_init(&options, sizeof options);
    options.log = keep_log;
    options.num_threads = 8; /* second hardware threads are asked for: that is obeyed */
    ck_assert_int_eq(kt_context_create_on(&options, &t, &ctx), KT_OK);
    ck_assert_int_eq(kt_context_num_threads(ctx), 8);
    ck_assert_int_eq(log_level, -1);
    kt_context_free(ctx);
    t = machine("numa:2 core:2 pu:2");
    options.num_threads = INT32_MAX;
    ck_assert_int_eq(kt_context_create_on(&options, &t, &ctx), KT_OK);
    ck_assert_int_eq(kt_context_num_threads(ctx), 8);
    ck_assert_int_eq(log_level, KT_LOG_WARNING);
    ck_assert_ptr_nonnull(
        strstr(log_text, "2147483647 threads are more than the 8 hardware threads"));
    ck_assert_ptr_nonnull(strstr(kt_context_cpu_description(ctx),
                                 "cpu: 4 cores of 8 hardware threads, 2 NUMA nodes, 8 threads,"));
    kt_context_free(ctx);
    t = machine("numa:2 core:2 pu:2");
    options.num_threads = 0;
    ck_assert_int_eq(kt_context_create_on(&options, &t, &ctx), KT_OK);
    ck_assert_int_eq(kt_context_num_threads(ctx), 4);
    kt_context_free(ctx);
}
END_TEST

/* -- memory ------------------------------------------------------------------------------------ */

static int policy_of(void *page)
{
    int mode = -1;
    ck_assert_int_eq(get_mempolicy(&mode, NULL, 0, page, MPOL_F_ADDR), 0);
    return mode;
}

START_TEST(whole_pages_are_bound)
{
    struct kt_topology t;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = aligned_alloc(page, 5 * page);
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    memset(memory, 1, 5 * page);
    if (!kt_bind_pages(memory, 1, t.nodes[0].os_index) ||
        !kt_bind_pages(memory + page + 1, 3 * page - 2, t.nodes[0].os_index)) {
        fprintf(stderr, "memory cannot be bound here\n"); /* in some containers */
    } else {
        for (size_t i = 0; i < 5; i++)
            ck_assert_int_eq(policy_of(memory + i * page), i == 2 ? MPOL_PREFERRED : MPOL_DEFAULT);
    }
    ck_assert(!kt_bind_pages(memory, 5 * page, 777)); /* no such node */
    ck_assert(!kt_bind_pages(memory, 5 * page, -1));
    ck_assert_int_eq(memory[0] + memory[5 * page - 1], 2);
    free(memory);
    kt_topology_free(&t);
}
END_TEST

START_TEST(one_node_binds_no_memory)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = aligned_alloc(page, page);
    memset(memory, 1, page);
    kt_context *ctx = context_with(0, 1);
    if (kt_pool_num_nodes(ctx->pool) == 1) {
        kt_pool_bind_memory(ctx->pool, memory, page, 0);
        ck_assert_int_eq(policy_of(memory), MPOL_DEFAULT);
    }
    kt_context_free(ctx);
    struct kt_pool *pool = new_pool("numa:2 core:1 pu:1", 2); /* nodes that are made up */
    kt_pool_bind_memory(pool, memory, page, 1);
    ck_assert_int_eq(policy_of(memory), MPOL_DEFAULT);
    kt_pool_free(pool);
    free(memory);
}
END_TEST

#ifndef __SANITIZE_THREAD__ /* which supports no threads after fork() */
/* A child of fork() leaves the parent's context alone and makes its own. */
START_TEST(a_forked_child_makes_its_own_context)
{
    int status;
    kt_context *parent = context_with(0, 1);
    _Atomic int64_t before = 0;
    kt_parallel_for(parent->pool, 100, 1, count, &before);
    usleep(20000); /* workers sleep: AddressSanitizer's allocator may hang after a fork() amid a
                      call */
    pid_t child = fork();
    if (child == 0) {
        kt_context *own;
        _Atomic int64_t counted = 0;
        if (kt_context_create(NULL, &own) != KT_OK)
            _exit(2);
        kt_parallel_for(own->pool, 100, 1, count, &counted);
        kt_context_free(own);
        _exit(counted == 100 ? 0 : 3);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    kt_context_free(parent);
}
END_TEST
#endif

int main(void)
{
    enum { MACHINES = sizeof machines / sizeof *machines };
    const struct test tests[] = {
        GROUP("threads", .timeout = 60),
        LOOP(each_item_is_visited_once, MACHINES),
        LOOP(pieces_do_not_depend_on_threads_or_nodes, MACHINES),
        TEST(workers_belong_to_nodes),
        TEST(nodes_own_shares_of_their_workers_size),
        TEST(workers_begin_at_home),
        TEST(others_help_a_node_that_is_behind),
        LOOP(no_job_is_lost_or_seen_twice, MACHINES),
        TEST(pools_stop_at_any_time),
        TEST(an_idle_pool_takes_no_time),
        TEST(faults_of_workers_reach_the_hosts_handlers),
        TEST(a_full_pool_is_bound_to_cores_but_not_its_caller),
        TEST(no_thread_is_bound_to_the_callers_core),
        TEST(one_pool_of_a_process_has_the_cores),
        TEST(pinning_can_be_turned_off),
        TEST(a_refused_binding_is_no_error),
        TEST(more_threads_than_hardware_threads_is_said),
        TEST(whole_pages_are_bound),
        TEST(one_node_binds_no_memory),
#ifndef __SANITIZE_THREAD__
        TEST(a_forked_child_makes_its_own_context),
#endif
    };
    return RUN_TESTS("threads", tests);
}
