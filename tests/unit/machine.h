/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/machine.h
 * Machines that are made up: topologies from hwloc's synthetic descriptions, and contexts on them
 * with as many threads as a test wants. Nothing is bound to them. */
#ifndef KT_TESTS_UNIT_MACHINE_H
#define KT_TESTS_UNIT_MACHINE_H

#include <check.h>
#include <hwloc.h>
#include <kt/kt.h>
#include <stdio.h>

#include "core/context.h"

static inline hwloc_topology_t machine_load(const char *description)
{
    hwloc_topology_t hwloc;
    ck_assert_int_eq(hwloc_topology_init(&hwloc), 0);
    ck_assert_int_eq(hwloc_topology_set_synthetic(hwloc, description), 0);
    ck_assert_int_eq(hwloc_topology_load(hwloc), 0);
    return hwloc;
}

/** Freed with kt_topology_free, or by a context. */
static inline struct kt_topology machine(const char *description)
{
    struct kt_topology t;
    hwloc_topology_t hwloc = machine_load(description);
    ck_assert_int_eq(kt_topology_from_hwloc(&t, hwloc, false), KT_OK);
    hwloc_topology_destroy(hwloc);
    return t;
}

/** options.num_threads threads spread over `nodes` nodes, whatever this machine has. */
static inline kt_context *machine_context(const kt_context_options *options, int32_t nodes)
{
    char description[64];
    kt_context *ctx;
    int32_t threads = options->num_threads > 1 ? options->num_threads : 1;
    snprintf(description, sizeof description, "numa:%d core:%d pu:1", nodes,
             (threads + nodes - 1) / nodes);
    struct kt_topology t = machine(description);
    ck_assert_int_eq(kt_context_create_on(options, &t, &ctx), KT_OK);
    ck_assert_int_eq(kt_context_num_threads(ctx), threads);
    return ctx;
}

#endif
