/* SPDX-License-Identifier: Apache-2.0 */
/** \file bench/device.h
 * Operations of a device whose memory is the host's, as the executor runs them. */
#ifndef KT_TESTS_BENCH_DEVICE_H
#define KT_TESTS_BENCH_DEVICE_H

#include <stdio.h>
#include <stdlib.h>

#include "backends/registry.h"
#include "core/context.h"

static inline void bench_check(const struct kt_device *dev, kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "%s\n", kt_last_error(dev->ctx));
    exit(1);
}

/** The scratch of an operation that will be timed. */
static inline void bench_reserve(struct kt_device *dev, enum kt_op op, const void *args)
{
    struct kt_tally tally = {0};
    kt_run(&(struct kt_runner){dev, &tally}, op, args);
    bench_check(dev, kt_device_reserve_scratch(dev, tally.scratch));
}

/** Runs an operation whose scratch is reserved, and waits for it. */
static inline void bench_run(struct kt_device *dev, enum kt_op op, const void *args)
{
    struct kt_runner runner = {dev, NULL};
    kt_run(&runner, op, args);
    bench_check(dev, kt_run_sync(&runner, kt_run_mark(&runner, KT_QUEUE_COMPUTE)));
}

#endif
