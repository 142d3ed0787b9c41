/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/node_spy.h
 * What each worker of a pool works on first in a phase. A worker that has said so waits for all
 * others, so that each of them begins with something. */
#ifndef KT_TESTS_UNIT_NODE_SPY_H
#define KT_TESTS_UNIT_NODE_SPY_H

#include <check.h>
#include <pthread.h>
#include <sched.h>

#include "core/threads.h"

enum { SPIED = 4, SPY_PHASES = 4 };

static struct {
    pthread_t workers[SPIED];
    _Atomic int32_t known, arrived[SPY_PHASES];
    bool came[SPY_PHASES][SPIED];
    int64_t feature[SPY_PHASES][SPIED];
} spy;

static inline void spy_wait(_Atomic int32_t *arrived)
{
    for (++*arrived; *arrived < SPIED; sched_yield())
        ;
}

static inline void spy_meet(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)arg, (void)begin, (void)end;
    spy.workers[thread] = pthread_self();
    spy_wait(&spy.known);
}

/** Learns who the SPIED workers of a pool are. */
static inline void spy_on(struct kt_pool *pool)
{
    ck_assert_int_eq(kt_pool_num_threads(pool), SPIED);
    kt_parallel_for(pool, SPIED, 1, spy_meet, NULL);
}

/** Called by a worker that begins to work on a feature. */
static inline void spy_note(int phase, int64_t feature)
{
    for (int i = 0; i < SPIED; i++) {
        if (!pthread_equal(spy.workers[i], pthread_self()) || spy.came[phase][i])
            continue;
        spy.came[phase][i] = true;
        spy.feature[phase][i] = feature;
        spy_wait(&spy.arrived[phase]);
    }
}

/** Each worker began with a feature that its node owns; two nodes own half of them each. */
static inline void spy_check_homes(const struct kt_pool *pool, int phase, int64_t features)
{
    for (int32_t i = 0; i < SPIED; i++) {
        ck_assert(spy.came[phase][i]);
        ck_assert_int_eq(spy.feature[phase][i] / (features / 2), kt_pool_node(pool, i));
    }
}

#endif
