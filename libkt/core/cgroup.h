/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/cgroup.h
 * What control groups allow this process, as containers and job schedulers set it. */
#ifndef KT_CORE_CGROUP_H
#define KT_CORE_CGROUP_H

#include <kt/types.h>

struct kt_cgroup_limits {
    uint64_t memory; /**< bytes; UINT64_MAX = no limit */
    int32_t cpus;    /**< processors' time, rounded up to whole ones; INT32_MAX = no limit */
};

/** The smallest limits of this process's groups and of those above them that are visible, of both
 * versions: memory.max and cpu.max, memory.limit_in_bytes and cpu.cfs_quota_us. What cannot be read
 * limits nothing. Files are looked for below `root`: "" is this system, tests give a folder. */
void kt_cgroup_read(const char *root, struct kt_cgroup_limits *limits);

#endif
