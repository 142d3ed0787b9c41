/* SPDX-License-Identifier: Apache-2.0 */
/* Limits of control groups, read from folders that look like /proc and /sys. */
#include <check.h>
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cgroup.h"
#include "main.h"

static char root[64];

/* Writes a file below root, with its folders. */
static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *p = whole + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(whole, 0700);
        *p = '/';
    }
    FILE *f = fopen(whole, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void setup(void)
{
    strcpy(root, "/tmp/kt-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    ck_assert_int_eq(system(command), 0);
}

static void check_limits(uint64_t memory, int32_t cpus)
{
    struct kt_cgroup_limits limits;
    kt_cgroup_read(root, &limits);
    ck_assert_uint_eq(limits.memory, memory);
    ck_assert_int_eq(limits.cpus, cpus);
}

/* What stands before and after the mount that matters. */
#define MOUNTS(line)                                                                               \
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" line                                 \
    "\n40 22 0:40 / /tmp rw - tmpfs tmpfs rw,size=1k\n"

#define V2 MOUNTS("30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate")

START_TEST(the_smallest_limit_on_the_way_up_counts)
{
    put("/proc/self/cgroup", "0::/user.slice/job 1/inner\n");
    put("/proc/self/mountinfo", V2);
    check_limits(UINT64_MAX, INT32_MAX);
    put("/sys/fs/cgroup/user.slice/job 1/inner/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/job 1/inner/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/user.slice/job 1/memory.max", "4294967296\n");
    put("/sys/fs/cgroup/user.slice/job 1/cpu.max", "350000 100000\n");
    put("/sys/fs/cgroup/user.slice/memory.max", "8589934592\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "800000 100000\n");
    put("/sys/fs/cgroup/user.slice/other/memory.max", "1\n");
    check_limits(4294967296, 4);
    put("/sys/fs/cgroup/user.slice/memory.max", "1024\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "1000 100000\n");
    check_limits(1024, 1);
}
END_TEST

START_TEST(a_container_sees_its_group_at_the_top)
{
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", V2);
    put("/sys/fs/cgroup/memory.max", "123456\n");
    put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    check_limits(123456, 2);
    /* a process that was moved there from elsewhere: its path leads out of what is mounted */
    put("/proc/self/cgroup", "0::/../../elsewhere\n");
    check_limits(123456, 2);
}
END_TEST

START_TEST(version_1_has_a_hierarchy_for_each_controller)
{
    put("/proc/self/cgroup",
        "9:name=systemd:/\n4:memory:/docker/abc/sub\n2:cpu,cpuacct:/docker/abc\n0::/\n");
    put("/proc/self/mountinfo",
        MOUNTS("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
               "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
               "37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"));
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n");
    check_limits(2147483648, INT32_MAX);
    put("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "150000\n");
    check_limits(2147483648, 2);
}
END_TEST

START_TEST(a_mount_may_be_a_part_of_the_hierarchy)
{
    put("/proc/self/cgroup", "4:memory:/docker/abc\n");
    put("/proc/self/mountinfo",
        MOUNTS("35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"));
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "77\n");
    put("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1\n"); /* another's */
    check_limits(77, INT32_MAX);
    put("/proc/self/cgroup", "4:memory:/docker/abcdef\n"); /* not below what is mounted */
    put("/sys/fs/cgroup/memorydef/memory.limit_in_bytes", "2\n");
    check_limits(77, INT32_MAX);
}
END_TEST

START_TEST(what_makes_no_sense_limits_nothing)
{
    check_limits(UINT64_MAX, INT32_MAX);
    put("/proc/self/cgroup", "0::/a\nnonsense\n\n:\n");
    put("/proc/self/mountinfo", "\n- \n 1 2 3\n" V2);
    put("/sys/fs/cgroup/a/memory.max", "");
    put("/sys/fs/cgroup/a/cpu.max", "100000\n");
    put("/sys/fs/cgroup/memory.max", "lots\n");
    put("/sys/fs/cgroup/cpu.max", "100000 0\n");
    check_limits(UINT64_MAX, INT32_MAX);
}
END_TEST

START_TEST(this_process_has_memory)
{
    kt_context *ctx;
    struct kt_cgroup_limits limits;
    kt_cgroup_read("", &limits);
    ck_assert_uint_gt(limits.memory, 1 << 20);
    ck_assert_int_ge(limits.cpus, 1);
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
    uint64_t host = kt_context_host_memory(ctx);
    ck_assert_uint_gt(host, 1 << 20);
    ck_assert_uint_le(host, limits.memory);
    ck_assert_uint_le(host, (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
    ck_assert_int_le(kt_context_num_threads(ctx), limits.cpus);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("cgroup", .setup = setup, .teardown = teardown),
        TEST(the_smallest_limit_on_the_way_up_counts),
        TEST(a_container_sees_its_group_at_the_top),
        TEST(version_1_has_a_hierarchy_for_each_controller),
        TEST(a_mount_may_be_a_part_of_the_hierarchy),
        TEST(what_makes_no_sense_limits_nothing),
        TEST(this_process_has_memory),
    };
    return RUN_TESTS("cgroup", tests);
}
