/* SPDX-License-Identifier: Apache-2.0 */
#include "core/topology.h"

#include <errno.h>
#include <hwloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

void kt_topology_free(struct kt_topology *t)
{
    free(t->nodes);
    free(t->cores);
    free(t->pus);
    memset(t, 0, sizeof *t);
}

/* Arrays for at most so many. */
static kt_status allocate(struct kt_topology *t, size_t nodes, size_t pus)
{
    memset(t, 0, sizeof *t);
    t->nodes = calloc(nodes, sizeof *t->nodes);
    t->cores = calloc(pus, sizeof *t->cores);
    t->pus = calloc(pus, sizeof *t->pus);
    if (t->nodes && t->cores && t->pus)
        return KT_OK;
    kt_topology_free(t);
    return KT_ERROR_OUT_OF_MEMORY;
}

/* -- from hwloc -------------------------------------------------------------------------------- */

/* A core of hwloc's with its node; hardware threads without a core are cores themselves. */
struct found {
    hwloc_obj_t object, node;
    int32_t kind, order;
};

static int better_node(hwloc_obj_t a, hwloc_obj_t b)
{
    bool a_memory = a->attr->numanode.local_memory > 0,
         b_memory = b->attr->numanode.local_memory > 0;
    int a_weight = hwloc_bitmap_weight(a->cpuset), b_weight = hwloc_bitmap_weight(b->cpuset);
    if (a_memory != b_memory)
        return a_memory;
    if (a_weight != b_weight)
        return a_weight < b_weight;
    return a->os_index < b->os_index;
}

/* NULL when no node says that it is near. */
static hwloc_obj_t node_of(hwloc_topology_t hwloc, hwloc_obj_t core)
{
    hwloc_obj_t best = NULL, node = NULL;
    while ((node = hwloc_get_next_obj_by_type(hwloc, HWLOC_OBJ_NUMANODE, node)))
        if (hwloc_bitmap_intersects(node->cpuset, core->cpuset) &&
            (!best || better_node(node, best)))
            best = node;
    return best;
}

static int node_then_kind(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    int64_t x_node = x->node ? (int64_t)x->node->os_index : -1;
    int64_t y_node = y->node ? (int64_t)y->node->os_index : -1;
    if (x_node != y_node)
        return x_node < y_node ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind > y->kind ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static int32_t find_cores(hwloc_topology_t hwloc, struct found *cores)
{
    int32_t num = 0;
    hwloc_obj_t pu = NULL;
    while ((pu = hwloc_get_next_obj_by_type(hwloc, HWLOC_OBJ_PU, pu))) {
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_CORE, pu);
        core = core ? core : pu;
        if (num && cores[num - 1].object == core)
            continue;
        int kind = hwloc_cpukinds_get_by_cpuset(hwloc, core->cpuset, 0);
        cores[num] = (struct found){core, node_of(hwloc, core), kind > 0 ? kind : 0, num};
        num++;
    }
    qsort(cores, (size_t)num, sizeof *cores, node_then_kind);
    return num;
}

static void add_core(struct kt_topology *t, const struct found *f)
{
    struct kt_topology_core *core = &t->cores[t->num_cores++];
    core->kind = f->kind;
    core->first_pu = t->num_pus;
    for (int pu = hwloc_bitmap_first(f->object->cpuset); pu >= 0;
         pu = hwloc_bitmap_next(f->object->cpuset, pu))
        t->pus[t->num_pus++] = pu;
    core->num_pus = t->num_pus - core->first_pu;
}

kt_status kt_topology_from_hwloc(struct kt_topology *t, struct hwloc_topology *hwloc,
                                 bool this_system)
{
    int pus = hwloc_get_nbobjs_by_type(hwloc, HWLOC_OBJ_PU);
    memset(t, 0, sizeof *t);
    if (pus < 1)
        return KT_ERROR_INVALID_ARGUMENT;
    struct found *cores = calloc((size_t)pus, sizeof *cores);
    if (!cores || allocate(t, (size_t)pus, (size_t)pus) != KT_OK) {
        free(cores);
        return KT_ERROR_OUT_OF_MEMORY;
    }
    int32_t num = find_cores(hwloc, cores);
    for (int32_t i = 0; i < num; i++) {
        hwloc_obj_t node = cores[i].node;
        if (!i || node != cores[i - 1].node)
            t->nodes[t->num_nodes++] =
                (struct kt_topology_node){node ? (int32_t)node->os_index : 0, i, 0,
                                          node && node->attr->numanode.local_memory > 0};
        t->nodes[t->num_nodes - 1].num_cores++;
        add_core(t, &cores[i]);
    }
    t->this_system = this_system;
    free(cores);
    return KT_OK;
}

kt_status kt_topology_detect(struct kt_topology *t)
{
    hwloc_topology_t hwloc;
    kt_status status = KT_ERROR_INVALID_ARGUMENT;
    if (hwloc_topology_init(&hwloc) == 0) {
        hwloc_topology_set_flags(hwloc, HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING |
                                            HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM);
        if (hwloc_topology_load(hwloc) == 0)
            status = kt_topology_from_hwloc(t, hwloc, true);
        hwloc_topology_destroy(hwloc);
    }
    return status == KT_ERROR_INVALID_ARGUMENT ? kt_topology_from_affinity(t) : status;
}

/* -- without hwloc ----------------------------------------------------------------------------- */

/* The kernel refuses masks that are shorter than its own, whose length it does not tell. */
static cpu_set_t *read_affinity(int *length)
{
    for (*length = 1024; *length <= 1 << 20; *length *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)*length);
        if (!set || sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)*length), set) == 0)
            return set;
        CPU_FREE(set);
        if (errno != EINVAL)
            break;
    }
    return NULL;
}

kt_status kt_topology_from_affinity(struct kt_topology *t)
{
    int length;
    cpu_set_t *set = read_affinity(&length);
    size_t bytes = CPU_ALLOC_SIZE((size_t)length);
    int num = set ? CPU_COUNT_S(bytes, set) : 0;
    kt_status status = allocate(t, 1, num ? (size_t)num : 1);
    for (int pu = 0; status == KT_OK && num && pu < length; pu++) {
        if (!CPU_ISSET_S((size_t)pu, bytes, set))
            continue;
        t->cores[t->num_pus] = (struct kt_topology_core){t->num_pus, 1, 0};
        t->pus[t->num_pus++] = pu;
    }
    if (set)
        CPU_FREE(set);
    if (status != KT_OK)
        return status;
    if (!num)
        t->cores[t->num_pus++].num_pus = 1;
    t->num_nodes = 1;
    t->num_cores = t->num_pus;
    t->nodes[0] = (struct kt_topology_node){0, 0, t->num_cores, false};
    t->this_system = num > 0;
    return KT_OK;
}

/* -- places ------------------------------------------------------------------------------------ */

/* The nth core of a node that has more than `round` hardware threads; -1 when it has fewer. */
static int32_t nth_core(const struct kt_topology *t, int32_t node, int32_t round, int32_t nth)
{
    const struct kt_topology_node *n = &t->nodes[node];
    for (int32_t core = n->first_core; core < n->first_core + n->num_cores; core++)
        if (t->cores[core].num_pus > round && nth-- == 0)
            return core;
    return -1;
}

/* The node with the smallest share of its cores taken that has one left; -1 when none has. */
static int32_t next_node(const struct kt_topology *t, int32_t round, const int32_t *taken)
{
    int32_t best = -1;
    for (int32_t node = 0; node < t->num_nodes; node++) {
        if (nth_core(t, node, round, taken[node]) < 0)
            continue;
        if (best < 0 || (int64_t)taken[node] * t->nodes[best].num_cores <
                            (int64_t)taken[best] * t->nodes[node].num_cores)
            best = node;
    }
    return best;
}

kt_status kt_topology_place(const struct kt_topology *t, int32_t num_threads,
                            struct kt_place *places)
{
    int32_t *taken = calloc((size_t)t->num_nodes, sizeof *taken); /* cores, in this round */
    if (!taken)
        return KT_ERROR_OUT_OF_MEMORY;
    for (int32_t i = 0, round = 0; i < num_threads; i++) {
        int32_t node = next_node(t, round, taken);
        if (node < 0) {
            memset(taken, 0, (size_t)t->num_nodes * sizeof *taken);
            round++;
            if ((node = next_node(t, round, taken)) < 0)
                node = next_node(t, round = 0, taken);
        }
        int32_t core = nth_core(t, node, round, taken[node]++);
        places[i] = (struct kt_place){node, core, t->cores[core].first_pu + round};
    }
    free(taken);
    return KT_OK;
}
