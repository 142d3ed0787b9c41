/* SPDX-License-Identifier: Apache-2.0 */
#include "core/bind.h"

#include <numaif.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

bool kt_bind_thread(pthread_t thread, const int32_t *pus, int32_t num)
{
    int32_t last = 0;
    for (int32_t i = 0; i < num; i++)
        last = pus[i] > last ? pus[i] : last;
    size_t bytes = CPU_ALLOC_SIZE((size_t)last + 1);
    cpu_set_t *set = CPU_ALLOC((size_t)last + 1);
    if (!set)
        return false;
    CPU_ZERO_S(bytes, set);
    for (int32_t i = 0; i < num; i++)
        CPU_SET_S((size_t)pus[i], bytes, set);
    int error = pthread_setaffinity_np(thread, bytes, set);
    CPU_FREE(set);
    return error == 0;
}

/* The pages that lie wholly in [memory, memory + bytes). */
static uint64_t whole_pages(const void *memory, uint64_t bytes, char **first)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), skip = -(uint64_t)(uintptr_t)memory % page;
    *first = (char *)(uintptr_t)memory + skip;
    return bytes < skip ? 0 : (bytes - skip) / page * page;
}

bool kt_bind_pages(const void *memory, uint64_t bytes, int32_t os_node)
{
    enum { MAX_NODES = 1024, BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[MAX_NODES / BITS] = {0};
    char *first;
    if (os_node < 0 || os_node >= MAX_NODES)
        return false;
    bytes = whole_pages(memory, bytes, &first);
    if (!bytes)
        return true;
    mask[(size_t)os_node / BITS] = 1ul << ((size_t)os_node % BITS);
    return mbind(first, bytes, MPOL_PREFERRED, mask, MAX_NODES + 1, MPOL_MF_MOVE) == 0;
}

void kt_use_huge_pages(const void *memory, uint64_t bytes)
{
#if defined(MADV_HUGEPAGE)
    char *first;
    bytes = whole_pages(memory, bytes, &first);
    if (bytes)
        madvise(first, bytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}
