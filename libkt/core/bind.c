/* SPDX-License-Identifier: Apache-2.0 */
#include "core/bind.h"

#include <numaif.h>
#include <sched.h>
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

bool kt_bind_pages(const void *memory, uint64_t bytes, int32_t os_node)
{
    enum { MAX_NODES = 1024, BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[MAX_NODES / BITS] = {0};
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), skip = -(uint64_t)(uintptr_t)memory % page;
    if (os_node < 0 || os_node >= MAX_NODES)
        return false;
    if (bytes < skip + page)
        return true;
    mask[(size_t)os_node / BITS] = 1ul << ((size_t)os_node % BITS);
    return mbind((char *)(uintptr_t)memory + skip, (bytes - skip) / page * page, MPOL_PREFERRED,
                 mask, MAX_NODES + 1, MPOL_MF_MOVE) == 0;
}
