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

static inline struct kt_processor machine_processor(hwloc_topology_t hwloc, hwloc_obj_t pu)
{
    hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_CORE, pu), node = NULL;
    core = core ? core : pu;
    int kind = hwloc_cpukinds_get_by_cpuset(hwloc, core->cpuset, 0);
    struct kt_processor p = {
        (int32_t)pu->os_index, (int32_t)core->logical_index, kind > 0 ? kind : 0, {.os_index = -1}};
    while ((node = hwloc_get_next_obj_by_type(hwloc, HWLOC_OBJ_NUMANODE, node))) {
        struct kt_near_node near = {(int32_t)node->os_index, hwloc_bitmap_weight(node->cpuset),
                                    node->attr->numanode.local_memory > 0};
        if (hwloc_bitmap_intersects(node->cpuset, core->cpuset))
            kt_processor_near(&p, &near);
    }
    return p;
}

static inline struct kt_topology machine_topology(hwloc_topology_t hwloc)
{
    struct kt_topology t;
    struct kt_processor p[1024];
    int32_t num = 0;
    hwloc_obj_t pu = NULL;
    while ((pu = hwloc_get_next_obj_by_type(hwloc, HWLOC_OBJ_PU, pu))) {
        ck_assert_int_lt(num, 1024);
        p[num++] = machine_processor(hwloc, pu);
    }
    ck_assert_int_eq(kt_topology_build(&t, p, num, false), KT_OK);
    return t;
}

/** Freed with kt_topology_free, or by a context. */
static inline struct kt_topology machine(const char *description)
{
    hwloc_topology_t hwloc = machine_load(description);
    struct kt_topology t = machine_topology(hwloc);
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
