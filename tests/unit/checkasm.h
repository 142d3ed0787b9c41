/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/checkasm.h
 * For tests of kernels against their plain C twins: the instruction sets, and memory that ends at a
 * page that cannot be touched. */
#ifndef KT_TESTS_UNIT_CHECKASM_H
#define KT_TESTS_UNIT_CHECKASM_H

#include <check.h>
#include <kt/context.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/cpu/kernels.h"
#include "core/cpu.h"

static const uint32_t levels[] = {
    KT_ISA_AVX2,
    KT_ISA_AVX2 | KT_ISA_AVX512,
    KT_ISA_AVX2 | KT_ISA_AVX512 | KT_ISA_AVX512_BF16,
    KT_ISA_AVX2 | KT_ISA_AVX512 | KT_ISA_AVX512_BF16 | KT_ISA_AVX512_VBMI,
    KT_ISA_AVX2 | KT_ISA_AVX512 | KT_ISA_AVX512_BF16 | KT_ISA_AMX_BF16,
};

enum { LEVELS = sizeof levels / sizeof *levels };

/** False when the CPU lacks the level. */
static bool init_level(struct kt_kernels *kernels, uint32_t level)
{
    struct kt_cpu cpu;
    kt_cpu_detect(&cpu, 0);
    if ((cpu.isa & level) != level)
        return false;
    kt_kernels_init(kernels, level);
    return true;
}

enum { REGIONS = 8, REGION_BYTES = 1 << 17 };

static struct {
    char *pages;
    bool taken;
} regions[REGIONS];

struct guarded {
    int region;
    void *data;
};

/** `bytes` bytes of 0xa5, the next one out of reach. */
static struct guarded guard(size_t bytes)
{
    struct guarded g = {0};
    while (regions[g.region].taken)
        g.region++;
    ck_assert_int_lt(g.region, REGIONS);
    ck_assert_uint_le(bytes, REGION_BYTES);
    char *pages = regions[g.region].pages;
    if (!pages) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        pages = mmap(NULL, REGION_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
        ck_assert_ptr_ne(pages, MAP_FAILED);
        ck_assert_int_eq(mprotect(pages + REGION_BYTES, page, PROT_NONE), 0);
        regions[g.region].pages = pages;
    }
    regions[g.region].taken = true;
    g.data = pages + REGION_BYTES - bytes;
    memset(g.data, 0xa5, bytes);
    return g;
}

static void release(struct guarded *g)
{
    regions[g->region].taken = false;
}

#endif
