/* SPDX-License-Identifier: Apache-2.0 */
/** \file memory_group.h
 * A control group with a limit on memory, for a child process: of version 2 or of version 1,
 * wherever this process may make one. */
#ifndef KT_TESTS_MEMORY_GROUP_H
#define KT_TESTS_MEMORY_GROUP_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct memory_group {
    char folder[256];
    int version;
};

/** Writes a text to folder/name, which must be there. */
static inline bool memory_group_write(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return written;
}

static inline bool memory_group_try(struct memory_group *group, const char *parent, int version,
                                    uint64_t bytes)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, bytes);
    snprintf(group->folder, sizeof group->folder, "%s/kt-test-%d", parent, (int)getpid());
    group->version = version;
    if (version == 2)
        (void)memory_group_write(parent, "cgroup.subtree_control", "+memory");
    if (mkdir(group->folder, 0755) != 0)
        return false;
    if (version == 2)
        (void)memory_group_write(group->folder, "memory.swap.max", "0");
    if (memory_group_write(group->folder, version == 2 ? "memory.max" : "memory.limit_in_bytes",
                           text))
        return true;
    rmdir(group->folder);
    return false;
}

/** False where this process may not. */
static inline bool memory_group_open(struct memory_group *group, uint64_t bytes)
{
    return memory_group_try(group, "/sys/fs/cgroup", 2, bytes) ||
           memory_group_try(group, "/sys/fs/cgroup/unified", 2, bytes) ||
           memory_group_try(group, "/sys/fs/cgroup/memory", 1, bytes);
}

/** Moves this process into it. */
static inline bool memory_group_join(const struct memory_group *group)
{
    return memory_group_write(group->folder, "cgroup.procs", "0");
}

/** The most memory that its processes had, page cache included; 0 = not told. */
static inline uint64_t memory_group_peak(const struct memory_group *group)
{
    char path[512];
    uint64_t bytes = 0;
    snprintf(path, sizeof path, "%s/%s", group->folder,
             group->version == 2 ? "memory.peak" : "memory.max_usage_in_bytes");
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%" SCNu64, &bytes) != 1)
        bytes = 0;
    if (f)
        fclose(f);
    return bytes;
}

/** Its processes have ended. */
static inline void memory_group_close(const struct memory_group *group)
{
    rmdir(group->folder);
}

#endif
