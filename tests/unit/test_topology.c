/* SPDX-License-Identifier: Apache-2.0 */
/* Topologies as hwloc and the kernel describe them, and the places of threads on them. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "main.h"

static int32_t node_of_core(const struct kt_topology *t, int32_t core)
{
    for (int32_t n = 0; n < t->num_nodes; n++)
        if (core >= t->nodes[n].first_core && core < t->nodes[n].first_core + t->nodes[n].num_cores)
            return n;
    return -1;
}

/* Nodes share out all cores in turn, cores all hardware threads, and no processor stands twice. */
static void check_topology(const struct kt_topology *t)
{
    int32_t cores = 0, pus = 0;
    ck_assert_int_ge(t->num_nodes, 1);
    for (int32_t n = 0; n < t->num_nodes; n++) {
        ck_assert_int_eq(t->nodes[n].first_core, cores);
        ck_assert_int_ge(t->nodes[n].num_cores, 1);
        ck_assert(n == 0 || t->nodes[n].os_index > t->nodes[n - 1].os_index);
        cores += t->nodes[n].num_cores;
    }
    ck_assert_int_eq(t->num_cores, cores);
    for (int32_t c = 0; c < cores; c++) {
        ck_assert_int_eq(t->cores[c].first_pu, pus);
        ck_assert_int_ge(t->cores[c].num_pus, 1);
        pus += t->cores[c].num_pus;
    }
    ck_assert_int_eq(t->num_pus, pus);
    for (int32_t i = 0; i < pus; i++)
        for (int32_t j = 0; j < i; j++)
            ck_assert_int_ne(t->pus[i], t->pus[j]);
}

static void check_shape(const struct kt_topology *t, int32_t nodes, int32_t cores, int32_t pus)
{
    check_topology(t);
    ck_assert_int_eq(t->num_nodes, nodes);
    ck_assert_int_eq(t->num_cores, cores);
    ck_assert_int_eq(t->num_pus, pus);
}

static const struct {
    const char *description;
    int32_t nodes, cores, pus;
} shapes[] = {
    {"core:4 pu:1", 1, 4, 4},
    {"pu:3", 1, 3, 3}, /* hardware threads without cores */
    {"numa:2 core:8 pu:2", 2, 16, 32},
    {"numa:1 core:1 pu:1", 1, 1, 1},
    {"pack:2 [numa] core:4 pu:1", 2, 8, 8},
    {"pack:2 [numa] l3:2 [numa] core:2 pu:2", 4, 8, 16}, /* the nearest of two nodes */
    {"pack:2 [numa(memory=64GB)] [numa(memory=16GB)] core:4 pu:2", 2, 8, 16},
    {"[numa] pack:2 core:3 pu:1", 1, 6, 6},
    {"pack:3 [numa] core:3 pu:1", 3, 9, 9},
};

START_TEST(synthetic_machines_have_their_shape)
{
    struct kt_topology t = machine(shapes[_i].description);
    check_shape(&t, shapes[_i].nodes, shapes[_i].cores, shapes[_i].pus);
    ck_assert(!t.this_system);
    kt_topology_free(&t);
}
END_TEST

START_TEST(a_second_memory_of_the_same_cores_owns_none)
{
    struct kt_topology t =
        machine("pack:2 [numa(memory=64GB)] [numa(memory=900GB)] core:4 pu:1"); /* 0, 1; 2, 3 */
    check_shape(&t, 2, 8, 8);
    ck_assert_int_eq(t.nodes[0].os_index, 0);
    ck_assert_int_eq(t.nodes[1].os_index, 2);
    kt_topology_free(&t);
}
END_TEST

START_TEST(nodes_have_any_numbers)
{
    struct kt_topology t =
        machine("numa:3(indexes=9,2,5) core:2 pu:2(indexes=11,3,7,1,0,2,4,5,6,8,9,10)");
    check_shape(&t, 3, 6, 12);
    ck_assert_int_eq(t.nodes[0].os_index, 2);
    ck_assert_int_eq(t.nodes[1].os_index, 5);
    ck_assert_int_eq(t.nodes[2].os_index, 9);
    /* hwloc orders siblings by their lowest processor; node 9 is the one of processors 11, 3, 7, 1
     */
    int found = 0;
    for (int32_t c = t.nodes[2].first_core; c < t.nodes[2].first_core + 2; c++)
        for (int32_t i = 0; i < t.cores[c].num_pus; i++)
            found |= 1 << t.pus[t.cores[c].first_pu + i];
    ck_assert_int_eq(found, 1 << 11 | 1 << 3 | 1 << 7 | 1 << 1);
    kt_topology_free(&t);
}
END_TEST

START_TEST(a_node_without_memory_keeps_its_cores)
{
    struct kt_topology t = machine("pack:2 [numa] core:2 pu:1");
    check_shape(&t, 2, 4, 4);
    ck_assert(!t.nodes[0].has_memory);
    kt_topology_free(&t);
    t = machine("[numa(memory=8GB)] pack:2 [numa] core:2 pu:1");
    check_shape(&t, 1, 4, 4); /* the one with memory is further, and taken */
    ck_assert(t.nodes[0].has_memory);
    kt_topology_free(&t);
}
END_TEST

/* As a cpuset, taskset or a container leaves a machine: "processors that may be used". */
static struct kt_topology restricted(const char *description, const char *processors)
{
    struct kt_topology t;
    hwloc_topology_t hwloc = machine_load(description);
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    hwloc_bitmap_list_sscanf(set, processors);
    ck_assert_int_eq(hwloc_topology_restrict(hwloc, set, 0), 0);
    t = machine_topology(hwloc);
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(hwloc);
    return t;
}

START_TEST(restricted_sets_are_honoured)
{
    struct kt_topology t = restricted("numa:2 core:4 pu:2", "0,2-3,9");
    check_shape(&t, 2, 3, 4); /* cores 0 (half), 1 and 4 (half) */
    ck_assert_int_eq(t.nodes[0].num_cores, 2);
    ck_assert_int_eq(t.cores[2].num_pus, 1);
    ck_assert_int_eq(t.pus[3], 9);
    kt_topology_free(&t);
    t = restricted("numa:4 core:2 pu:1", "6-7"); /* three nodes lose all their cores */
    check_shape(&t, 1, 2, 2);
    ck_assert_int_eq(t.nodes[0].os_index, 3);
    kt_topology_free(&t);
}
END_TEST

/* Memory alone, such as a CXL card: a node to which no core is near. */
#define SETS(processors, nodes)                                                                    \
    "cpuset=\"" processors "\" complete_cpuset=\"" processors "\" allowed_cpuset=\"" processors    \
    "\" nodeset=\"" nodes "\" complete_nodeset=\"" nodes "\" allowed_nodeset=\"" nodes "\""

START_TEST(a_node_of_memory_alone_is_left_out)
{
    static const char xml[] =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n"
        "<topology version=\"2.0\">\n"
        "<object type=\"Machine\" os_index=\"0\" " SETS(
            "0x3",
            "0x5") " gp_index=\"1\">\n"
                   "<object type=\"NUMANode\" os_index=\"0\" " SETS(
                       "0x3",
                       "0x1") " gp_index=\"2\" "
                              "local_memory=\"1000\"/>\n"
                              "<object type=\"NUMANode\" os_index=\"2\" " SETS(
                                  "0x0",
                                  "0x4") " gp_index=\"3\" "
                                         "local_memory=\"9000\"/>\n"
                                         "<object type=\"PU\" os_index=\"0\" " SETS(
                                             "0x1",
                                             "0x5") " gp_index=\"4\"/>\n"
                                                    "<object type=\"PU\" os_index=\"1\" " SETS(
                                                        "0x2", "0x5") " gp_index=\"5\"/>\n"
                                                                      "</object>\n</topology>\n";
    struct kt_topology t;
    hwloc_topology_t hwloc;
    ck_assert_int_eq(hwloc_topology_init(&hwloc), 0);
    ck_assert_int_eq(hwloc_topology_set_xmlbuffer(hwloc, xml, sizeof xml), 0);
    ck_assert_int_eq(hwloc_topology_load(hwloc), 0);
    ck_assert_int_eq(hwloc_get_nbobjs_by_type(hwloc, HWLOC_OBJ_NUMANODE), 2);
    t = machine_topology(hwloc);
    check_shape(&t, 1, 2, 2);
    ck_assert_int_eq(t.nodes[0].os_index, 0);
    kt_topology_free(&t);
    hwloc_topology_destroy(hwloc);
}
END_TEST

/* A hybrid processor: cores 0 and 1 are slow ones. */
START_TEST(fast_cores_come_first)
{
    struct kt_topology t;
    struct kt_place places[6];
    hwloc_topology_t hwloc = machine_load("numa:1 core:6 pu:1");
    hwloc_bitmap_t slow = hwloc_bitmap_alloc(), fast = hwloc_bitmap_alloc();
    hwloc_bitmap_set_range(slow, 0, 1);
    hwloc_bitmap_set_range(fast, 2, 5);
    ck_assert_int_eq(hwloc_cpukinds_register(hwloc, slow, 0, 0, NULL, 0), 0);
    ck_assert_int_eq(hwloc_cpukinds_register(hwloc, fast, 1, 0, NULL, 0), 0);
    t = machine_topology(hwloc);
    check_shape(&t, 1, 6, 6);
    ck_assert_int_eq(kt_topology_place(&t, 6, places), KT_OK);
    for (int32_t i = 0; i < 6; i++)
        ck_assert_int_eq(t.pus[places[i].pu], (i + 2) % 6);
    kt_topology_free(&t);
    hwloc_bitmap_free(slow);
    hwloc_bitmap_free(fast);
    hwloc_topology_destroy(hwloc);
}
END_TEST

/* -- places ------------------------------------------------------------------------------------ */

/* Each prefix of the places is spread: rounds are complete before the next begins, and in each a
 * node's share is within one thread of its share of the cores. */
START_TEST(places_are_spread_over_cores_then_hardware_threads)
{
    struct kt_topology t = machine(shapes[_i].description);
    int32_t num = 2 * t.num_pus, *used = calloc((size_t)t.num_pus, sizeof *used);
    struct kt_place *places = calloc((size_t)num, sizeof *places);
    ck_assert_int_eq(kt_topology_place(&t, num, places), KT_OK);
    for (int32_t i = 0; i < num; i++) {
        const struct kt_topology_core *core = &t.cores[places[i].core];
        ck_assert_int_eq(node_of_core(&t, places[i].core), places[i].node);
        ck_assert_int_ge(places[i].pu, core->first_pu);
        ck_assert_int_lt(places[i].pu, core->first_pu + core->num_pus);
        ck_assert_int_eq(used[places[i].pu]++, i / t.num_pus);
        ck_assert_int_eq(places[i].pu - core->first_pu, i % t.num_pus / t.num_cores);
    }
    for (int32_t threads = 1; threads <= t.num_cores; threads++) {
        for (int32_t n = 0; n < t.num_nodes; n++) {
            int32_t here = 0;
            for (int32_t i = 0; i < threads; i++)
                here += places[i].node == n;
            double share = (double)threads * t.nodes[n].num_cores / t.num_cores;
            ck_assert_double_le(here, share + 1);
            ck_assert_double_ge(here, share - 1);
        }
    }
    free(used);
    free(places);
    kt_topology_free(&t);
}
END_TEST

START_TEST(uneven_nodes_get_uneven_shares)
{
    struct kt_topology t = restricted("numa:2 core:8 pu:2", "0-15,16-17");
    struct kt_place places[9];
    check_shape(&t, 2, 9, 18);
    ck_assert_int_eq(kt_topology_place(&t, 9, places), KT_OK);
    ck_assert_int_eq(places[0].node, 0);
    ck_assert_int_eq(places[1].node, 1); /* no node is left out */
    for (int32_t i = 2; i < 9; i++)
        ck_assert_int_eq(places[i].node, 0);
    kt_topology_free(&t);
}
END_TEST

/* -- this machine ------------------------------------------------------------------------------ */

/* Two packages, hardware threads far apart, a node of slow memory alone, one without memory. */
START_TEST(files_of_the_kernel_are_read)
{
    struct kt_topology t;
    cpu_set_t set;
    char root[] = "/tmp/kt-topology-XXXXXX", command[2048];
    ck_assert_ptr_nonnull(mkdtemp(root));
    snprintf(
        command, sizeof command,
        "cd %s && mkdir -p sys/devices/cpu_core && cd sys/devices && echo 0-1,4-5 >cpu_core/cpus\n"
        "for i in 0 1 2 3 4 5 6 7; do d=system/cpu/cpu$i/topology; mkdir -p $d\n"
        "echo $((i %% 4)),$((i %% 4 + 4)) >$d/core_cpus_list; done\n"
        "for n in 0 1 2 3; do mkdir -p system/node/node$n\n"
        "echo \"Node $n MemTotal: $((n == 3 ? 0 : 1000)) kB\" >system/node/node$n/meminfo; done\n"
        "echo 0-3 >system/node/online; echo 2-3,6-7 >system/node/node0/cpulist\n"
        "echo 0-1,4-5 >system/node/node1/cpulist; echo >system/node/node2/cpulist\n"
        "echo 1,5 >system/node/node3/cpulist",
        root);
    ck_assert_int_eq(system(command), 0);
    CPU_ZERO(&set);
    for (int pu = 0; pu < 7; pu++)
        CPU_SET(pu, &set);
    ck_assert_int_eq(kt_topology_from_sysfs(&t, root, &set, sizeof set), KT_OK);
    check_shape(&t, 2, 4, 7);
    static const int32_t pus[] = {2, 6, 3, 0, 4, 1, 5};
    ck_assert_int_eq(memcmp(t.pus, pus, sizeof pus), 0);
    ck_assert_int_eq(t.nodes[1].os_index, 1);
    ck_assert(t.nodes[1].has_memory);
    ck_assert_int_gt(t.cores[2].kind, t.cores[0].kind);
    kt_topology_free(&t);
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

/* hwloc says the same of this machine. */
START_TEST(hwloc_agrees)
{
    struct kt_topology t, other;
    hwloc_topology_t hwloc;
    ck_assert_int_eq(hwloc_topology_init(&hwloc), 0);
    ck_assert_int_eq(hwloc_topology_set_flags(hwloc, HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING |
                                                         HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM),
                     0);
    ck_assert_int_eq(hwloc_topology_load(hwloc), 0);
    other = machine_topology(hwloc);
    hwloc_topology_destroy(hwloc);
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    check_shape(&t, other.num_nodes, other.num_cores, other.num_pus);
    for (int32_t i = 0; i < t.num_nodes; i++) {
        ck_assert_int_eq(t.nodes[i].os_index, other.nodes[i].os_index);
        ck_assert_int_eq(t.nodes[i].num_cores, other.nodes[i].num_cores);
        ck_assert_int_eq(t.nodes[i].has_memory, other.nodes[i].has_memory);
    }
    kt_topology_free(&t);
    kt_topology_free(&other);
}
END_TEST

START_TEST(this_process_is_described)
{
    struct kt_topology t, plain;
    ck_assert_int_eq(kt_topology_detect(&t), KT_OK);
    check_topology(&t);
    ck_assert(t.this_system);
    ck_assert_int_eq(kt_topology_from_affinity(&plain), KT_OK);
    check_shape(&plain, 1, plain.num_pus, plain.num_pus);
    ck_assert_int_eq(plain.num_pus, t.num_pus); /* nothing of this test is bound */
    kt_topology_free(&t);
    kt_topology_free(&plain);
}
END_TEST

START_TEST(a_narrow_affinity_is_one_core)
{
    struct kt_topology t;
    cpu_set_t all, one;
    ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &all))
        last--;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
    for (int plain = 0; plain < 2; plain++) {
        ck_assert_int_eq(plain ? kt_topology_from_affinity(&t) : kt_topology_detect(&t), KT_OK);
        check_shape(&t, 1, 1, 1);
        ck_assert_int_eq(t.pus[0], last);
        kt_topology_free(&t);
    }
    ck_assert_int_eq(sched_setaffinity(0, sizeof all, &all), 0);
}
END_TEST

int main(void)
{
    enum { SHAPES = sizeof shapes / sizeof *shapes };
    const struct test tests[] = {
        LOOP(synthetic_machines_have_their_shape, SHAPES),
        TEST(a_second_memory_of_the_same_cores_owns_none),
        TEST(nodes_have_any_numbers),
        TEST(a_node_without_memory_keeps_its_cores),
        TEST(restricted_sets_are_honoured),
        TEST(a_node_of_memory_alone_is_left_out),
        TEST(fast_cores_come_first),
        LOOP(places_are_spread_over_cores_then_hardware_threads, SHAPES),
        TEST(uneven_nodes_get_uneven_shares),
        TEST(files_of_the_kernel_are_read),
        TEST(hwloc_agrees),
        TEST(this_process_is_described),
        TEST(a_narrow_affinity_is_one_core),
    };
    return RUN_TESTS("topology", tests);
}
