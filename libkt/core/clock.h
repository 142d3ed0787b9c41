/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/clock.h
 * The clock of what is measured while it runs, and times that another thread may be waiting for. */
#ifndef KT_CORE_CLOCK_H
#define KT_CORE_CLOCK_H

#include <time.h>

/** Seconds; 0 is long passed. */
static inline double kt_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void kt_time_store(double *to, double seconds)
{
    __atomic_store(to, &seconds, __ATOMIC_RELEASE);
}

static inline double kt_time_load(const double *from)
{
    double seconds;
    __atomic_load(from, &seconds, __ATOMIC_ACQUIRE);
    return seconds;
}

#endif
