/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/topology.h
 * The cores and NUMA nodes that this process may use, and which of them each thread of a pool gets.
 */
#ifndef KT_CORE_TOPOLOGY_H
#define KT_CORE_TOPOLOGY_H

#include <kt/types.h>

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
 * taken together. Where hwloc knows nothing, kt_topology_from_affinity.
 * Errors of all three: OUT_OF_MEMORY. The result is freed with kt_topology_free. */
kt_status kt_topology_detect(struct kt_topology *t);

struct hwloc_topology;

/** A loaded topology of hwloc's. A core belongs to the node, among those it is local to, that has
 * memory, then the fewest processors, then the lowest number (the operating system numbers nodes of
 * special memory last). INVALID_ARGUMENT when it has no processor. */
kt_status kt_topology_from_hwloc(struct kt_topology *t, struct hwloc_topology *hwloc,
                                 bool this_system);

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
