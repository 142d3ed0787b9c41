/* SPDX-License-Identifier: Apache-2.0 */
/* What Linux tells of processors in files. hwloc knows far more, but crashes when one of its 400
 * allocations fails. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/context.h"
#include "core/topology.h"

enum { PAGE = 4096, MAX_NODES = 4096 }; /* no file of /sys is longer than a page */

/* A whole file, "" when there is none. */
static const char *read_text(char text[PAGE], const char *root, const char *format, int number,
                             const char *name)
{
    char path[PATH_MAX], folder[128];
    text[0] = 0;
    snprintf(folder, sizeof folder, format, number);
    if (snprintf(path, sizeof path, "%s/sys/devices/%s%s", root, folder, name) >= (int)sizeof path)
        return text;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, PAGE - 1);
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    return text;
}

/* The next range of a list such as "0-3,8"; false at its end. */
static bool next_range(const char **list, long *first, long *last)
{
    char *end;
    *first = *last = strtol(*list, &end, 10);
    if (end == *list)
        return false;
    if (*end == '-')
        *last = strtol(end + 1, &end, 10);
    *list = *end == ',' ? end + 1 : "";
    return *first >= 0 && *last >= *first;
}

static bool in_list(const char *list, int32_t number)
{
    for (long first, last; next_range(&list, &first, &last);)
        if (number >= first && number <= last)
            return true;
    return false;
}

/* Hardware threads of a core list each other; the lowest stands for the core. */
static int32_t core_of(const char *root, int pu)
{
    static const char *const names[] = {"core_cpus_list", "thread_siblings_list"};
    char text[PAGE];
    for (int i = 0; i < 2; i++) {
        const char *list = read_text(text, root, "system/cpu/cpu%d/topology/", pu, names[i]);
        long first, last;
        if (next_range(&list, &first, &last) && first <= INT32_MAX)
            return (int32_t)first;
    }
    return pu;
}

/* Intel has a list of each kind of cores, ARM a number for each processor. */
static int32_t kind_of(const char *root, int pu)
{
    char text[PAGE];
    if (in_list(read_text(text, root, "cpu_core/", 0, "cpus"), pu))
        return 1;
    return atoi(read_text(text, root, "system/cpu/cpu%d/", pu, "cpu_capacity"));
}

static void read_node(const char *root, int number, struct kt_processor *p, int32_t num)
{
    char text[PAGE];
    struct kt_near_node node = {.os_index = number};
    long long kib = 0;
    const char *total =
        strstr(read_text(text, root, "system/node/node%d/", number, "meminfo"), "MemTotal:");
    node.memory = total && sscanf(total, "MemTotal: %lld", &kib) == 1 && kib > 0;
    const char *list = read_text(text, root, "system/node/node%d/", number, "cpulist");
    for (int32_t i = 0; i < num; i++)
        node.cpus += in_list(list, p[i].pu);
    for (int32_t i = 0; node.cpus && i < num; i++)
        if (in_list(list, p[i].pu))
            kt_processor_near(&p[i], &node);
}

static void read_nodes(const char *root, struct kt_processor *p, int32_t num)
{
    char text[PAGE];
    const char *list = read_text(text, root, "system/node/", 0, "online");
    for (long first, last; next_range(&list, &first, &last);)
        for (long node = first; node <= last && node < MAX_NODES; node++)
            read_node(root, (int)node, p, num);
}

kt_status kt_topology_from_sysfs(struct kt_topology *t, const char *root, const cpu_set_t *set,
                                 size_t set_bytes)
{
    int32_t num = 0, count = CPU_COUNT_S(set_bytes, set);
    memset(t, 0, sizeof *t);
    struct kt_processor *p = calloc((size_t)count + 1, sizeof *p);
    if (!p)
        return KT_ERROR_OUT_OF_MEMORY;
    for (int pu = 0; num < count; pu++)
        if (CPU_ISSET_S((size_t)pu, set_bytes, set))
            p[num++] =
                (struct kt_processor){pu, core_of(root, pu), kind_of(root, pu), {-1, 0, false}};
    read_nodes(root, p, num);
    kt_status status = num ? kt_topology_build(t, p, num, true) : KT_ERROR_INVALID_ARGUMENT;
    free(p);
    return status;
}

/* Adds what other threads may run on. One that ends meanwhile adds nothing. */
static void add_threads(cpu_set_t *set, cpu_set_t *other, size_t bytes)
{
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks && (entry = readdir(tasks));)
        if (entry->d_name[0] != '.' &&
            sched_getaffinity((pid_t)atol(entry->d_name), bytes, other) == 0)
            CPU_OR_S(bytes, set, set, other);
    if (tasks)
        closedir(tasks);
}

kt_status kt_topology_detect(struct kt_topology *t)
{
    int length;
    cpu_set_t *set = kt_affinity_read(&length);
    if (!set)
        return kt_topology_from_affinity(t);
    size_t bytes = CPU_ALLOC_SIZE((size_t)length);
    cpu_set_t *other = CPU_ALLOC((size_t)length);
    kt_status status = KT_ERROR_OUT_OF_MEMORY;
    if (other) {
        add_threads(set, other, bytes);
        status = kt_topology_from_sysfs(t, "", set, bytes);
    }
    CPU_FREE(other);
    CPU_FREE(set);
    return status;
}
