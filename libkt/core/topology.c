/* SPDX-License-Identifier: Apache-2.0 */
#include "core/topology.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"

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

/* -- from processors --------------------------------------------------------------------------- */

void kt_processor_near(struct kt_processor *p, const struct kt_near_node *node)
{
    const struct kt_near_node *old = &p->node;
    bool better = node->memory != old->memory ? node->memory
                  : node->cpus != old->cpus   ? node->cpus < old->cpus
                                              : node->os_index < old->os_index;
    if (old->os_index < 0 || better)
        p->node = *node;
}

static int in_order(const void *a, const void *b)
{
    const struct kt_processor *x = a, *y = b;
    if (x->node.os_index != y->node.os_index)
        return x->node.os_index < y->node.os_index ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind > y->kind ? -1 : 1;
    if (x->core != y->core)
        return x->core < y->core ? -1 : 1;
    return (x->pu > y->pu) - (x->pu < y->pu);
}

kt_status kt_topology_build(struct kt_topology *t, struct kt_processor *p, int32_t num,
                            bool this_system)
{
    KT_TRY(allocate(t, (size_t)num, (size_t)num));
    qsort(p, (size_t)num, sizeof *p, in_order);
    for (int32_t i = 0; i < num; i++) {
        bool new_node = !i || p[i].node.os_index != p[i - 1].node.os_index;
        if (new_node)
            t->nodes[t->num_nodes++] = (struct kt_topology_node){
                p[i].node.os_index < 0 ? 0 : p[i].node.os_index, t->num_cores, 0, p[i].node.memory};
        if (new_node || p[i].core != p[i - 1].core) {
            t->cores[t->num_cores++] = (struct kt_topology_core){i, 0, p[i].kind};
            t->nodes[t->num_nodes - 1].num_cores++;
        }
        t->cores[t->num_cores - 1].num_pus++;
        t->pus[t->num_pus++] = p[i].pu;
    }
    t->this_system = this_system;
    return KT_OK;
}

/* -- from affinity alone ----------------------------------------------------------------------- */

/* The kernel refuses masks that are shorter than its own, whose length it does not tell. */
cpu_set_t *kt_affinity_read(int *length)
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
    cpu_set_t *set = kt_affinity_read(&length);
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
