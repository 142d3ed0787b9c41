/* SPDX-License-Identifier: Apache-2.0 */
#include "core/cgroup.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Opens the file whose path is the parts one after another; NULL when it cannot be read. */
static FILE *open_parts(const char *root, const char *folder, const char *name)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s%s%s", root, folder, name);
    return length > 0 && (size_t)length < sizeof path ? fopen(path, "re") : NULL;
}

/* Up to two numbers of a file; returns how many there were. "max" and "-1" are none. */
static int read_numbers(const char *root, const char *folder, const char *name, uint64_t n[2])
{
    char text[128] = "";
    FILE *f = open_parts(root, folder, name);
    if (!f)
        return 0;
    bool got = fgets(text, sizeof text, f) != NULL;
    fclose(f);
    return got && *text >= '0' && *text <= '9' ? sscanf(text, "%" SCNu64 "%" SCNu64, &n[0], &n[1])
                                               : 0;
}

static void take_quota(struct kt_cgroup_limits *limits, uint64_t quota, uint64_t period)
{
    if (!quota || !period)
        return;
    uint64_t cpus = quota / period + (quota % period != 0);
    if (cpus < (uint64_t)limits->cpus)
        limits->cpus = (int32_t)cpus;
}

static void take_limits(const char *root, const char *folder, struct kt_cgroup_limits *limits)
{
    static const char *const memory[] = {"/memory.max", "/memory.limit_in_bytes"};
    uint64_t n[2], period[2];
    for (int version = 0; version < 2; version++)
        if (read_numbers(root, folder, memory[version], n) && n[0] < limits->memory)
            limits->memory = n[0];
    if (read_numbers(root, folder, "/cpu.max", n) == 2)
        take_quota(limits, n[0], n[1]);
    if (read_numbers(root, folder, "/cpu.cfs_quota_us", n) &&
        read_numbers(root, folder, "/cpu.cfs_period_us", period))
        take_quota(limits, n[0], period[0]);
}

/* A hierarchy is mounted with `mount_root` of it at `mount_point`; the process is in `group`. */
static void walk_up(const char *root, const char *mount_root, const char *mount_point,
                    const char *group, struct kt_cgroup_limits *limits)
{
    char folder[PATH_MAX];
    size_t above = strcmp(mount_root, "/") ? strlen(mount_root) : 0, top = strlen(mount_point);
    bool inside = !strncmp(group, mount_root, above) &&
                  strchr("/", group[above]) && /* or its end */
                  !strstr(group, "/..");
    int length = snprintf(folder, sizeof folder, "%s%s", mount_point, inside ? group + above : "");
    if (length < 0 || (size_t)length >= sizeof folder)
        return;
    for (;;) {
        take_limits(root, folder, limits);
        char *slash = strrchr(folder + top, '/');
        if (!slash)
            return;
        *slash = 0;
    }
}

/* Does a list with commas hold the word? */
static bool lists(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (!p[n] || p[n] == ','))
            return true;
    return false;
}

/* The process's group in the hierarchy of a controller of version 1, or of version 2 ("");
 * false when there is none. */
static bool find_group(const char *root, const char *controller, char group[PATH_MAX])
{
    char line[PATH_MAX + 256];
    bool found = false;
    FILE *f = open_parts(root, "/proc/self", "/cgroup");
    while (f && !found && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        found = *controller ? lists(controllers + 1, controller) : !controllers[1];
        if (found)
            snprintf(group, PATH_MAX, "%s", path);
    }
    if (f)
        fclose(f);
    return found;
}

static void take_mount(const char *root, char *line, struct kt_cgroup_limits *limits)
{
    static const char *const controllers[] = {"memory", "cpu"};
    char mount_root[PATH_MAX], mount_point[PATH_MAX], type[16], options[512], group[PATH_MAX];
    char *end = strstr(line, " - ");
    if (!end || sscanf(line, "%*s %*s %*s %4095s %4095s", mount_root, mount_point) != 2 ||
        sscanf(end, " - %15s %*s %511s", type, options) != 2)
        return;
    if (!strcmp(type, "cgroup2") && find_group(root, "", group))
        walk_up(root, mount_root, mount_point, group, limits);
    for (int i = 0; i < 2 && !strcmp(type, "cgroup"); i++)
        if (lists(options, controllers[i]) && find_group(root, controllers[i], group))
            walk_up(root, mount_root, mount_point, group, limits);
}

void kt_cgroup_read(const char *root, struct kt_cgroup_limits *limits)
{
    char *line = NULL;
    size_t size = 0;
    *limits = (struct kt_cgroup_limits){UINT64_MAX, INT32_MAX};
    FILE *f = open_parts(root, "/proc/self", "/mountinfo");
    while (f && getline(&line, &size, f) > 0)
        take_mount(root, line, limits);
    free(line);
    if (f)
        fclose(f);
}
