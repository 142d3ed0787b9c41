/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/topology.h
 * The cores and NUMA nodes that this process may use, and which of them each thread of a pool gets.
 */
#ifndef KT_CORE_TOPOLOGY_H
#define KT_CORE_TOPOLOGY_H

#include <kt/types.h>
#include <sched.h>

/** A NUMA node with cores. Nodes of memory alone, and nodes none of whose cores this process may
 * use, are left out. */
struct kt_topology_node {
    int32_t os_index; /**< the operating system's number; any, not necessarily consecutive */
    int32_t first_core, num_cores;
    bool has_memory;
};

/** A core, with those of its hardware threads that this process may use, at least one. */
struct kt_topology_core {
    int32_t first_pu, num_pus;
    int32_t kind; /**< efficient to fast, where a processor has several kinds of cores; else 0 */
};

struct kt_topology {
    struct kt_topology_node *nodes; /**< [num_nodes] */
    struct kt_topology_core *cores; /**< [num_cores], node by node, fast ones first in each */
    int32_t *pus;                   /**< [num_pus], the operating system's numbers, core by core */
    int32_t num_nodes, num_cores, num_pus; /**< each >= 1 */
    bool this_system; /**< threads and memory can be bound to it; false for one that a test made up
                       */
};

/** The topology of this process: affinity and control groups are honoured, the threads' affinities
 * taken together. Where /sys tells nothing, kt_topology_from_affinity.
 * Errors of all: OUT_OF_MEMORY. The result is freed with kt_topology_free. */
kt_status kt_topology_detect(struct kt_topology *t);

/** The same of the processors in `set` [set_bytes], of the machine whose /sys is root/sys. */
kt_status kt_topology_from_sysfs(struct kt_topology *t, const char *root, const cpu_set_t *set,
                                 size_t set_bytes);

struct kt_processor {
    int32_t pu;   /**< the operating system's number */
    int32_t core; /**< any number that the core's hardware threads share */
    int32_t kind; /**< see struct kt_topology_core */
    struct kt_near_node {
        int32_t os_index; /**< -1 = none yet */
        int32_t cpus;     /**< how many processors are near it */
        bool memory;
    } node;
};

/** A processor belongs to the node, among those that are near, that has memory, then the fewest
 * processors, then the lowest number (the operating system numbers nodes of special memory last).
 */
void kt_processor_near(struct kt_processor *processor, const struct kt_near_node *node);

/** Of one or more processors, which are sorted in place. */
kt_status kt_topology_build(struct kt_topology *t, struct kt_processor *processors, int32_t num,
                            bool this_system);

/** This thread's mask, for *length processors; CPU_FREE it. NULL when it cannot be read. */
cpu_set_t *kt_affinity_read(int *length);

/** One node, with a core for each processor of this thread's affinity mask. */
kt_status kt_topology_from_affinity(struct kt_topology *t);

void kt_topology_free(struct kt_topology *t);

/** Where a thread of a pool belongs; indices into the topology's arrays. */
struct kt_place {
    int32_t node, core, pu;
};

/** Places [num_threads]: first one on each core, then on second hardware threads, and so on; each
 * round spread over the nodes in proportion to their cores. With at least as many threads as nodes
 * each node has one. More threads than hardware threads begin again. Errors: OUT_OF_MEMORY. */
kt_status kt_topology_place(const struct kt_topology *t, int32_t num_threads,
                            struct kt_place *places);

#endif
