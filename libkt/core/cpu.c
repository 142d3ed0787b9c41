/* SPDX-License-Identifier: Apache-2.0 */
#include "core/cpu.h"

#include <hwloc.h>
#include <kt/context.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives a process the tiles' registers when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM,
 * XTILEDATA). */
static int may_use_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

/* What __builtin_cpu_supports does not know in every compiler: bits of leaf 1's ecx and leaf 7's
 * edx. */
enum { F16C = 1 << 29, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };

static int has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & F16C);
}

static uint32_t detect_amx(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & AMX_TILE))
        return 0;
    return (edx & AMX_BF16 ? KT_ISA_AMX_BF16 : 0) | (edx & AMX_INT8 ? KT_ISA_AMX_INT8 : 0);
}

static uint32_t detect_isa(void)
{
    uint32_t isa = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        isa |= KT_ISA_AVX2;
    if ((isa & KT_ISA_AVX2) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        isa |= KT_ISA_AVX512;
    if ((isa & KT_ISA_AVX512) && __builtin_cpu_supports("avx512bf16"))
        isa |= KT_ISA_AVX512_BF16;
    if ((isa & KT_ISA_AVX512) && __builtin_cpu_supports("avx512vnni"))
        isa |= KT_ISA_AVX512_VNNI;
    if (isa & KT_ISA_AVX512_BF16)
        isa |= detect_amx();
    return isa;
}
#else
static int may_use_tiles(void)
{
    return 0;
}

static uint32_t detect_isa(void)
{
    return 0;
}
#endif

enum { ISA_AMX = KT_ISA_AMX_BF16 | KT_ISA_AMX_INT8 };

/* Masking an instruction set masks those that build on it. */
static uint32_t apply_mask(uint32_t isa, uint32_t mask)
{
    if (mask & KT_ISA_AVX2)
        mask |= KT_ISA_AVX512;
    if (mask & KT_ISA_AVX512)
        mask |= KT_ISA_AVX512_BF16 | KT_ISA_AVX512_VNNI;
    if (mask & KT_ISA_AVX512_BF16)
        mask |= ISA_AMX;
    return isa & ~mask;
}

static int32_t at_least_one(int n)
{
    return n < 1 ? 1 : n;
}

void kt_cpu_detect(struct kt_cpu *cpu, uint32_t isa_mask)
{
    hwloc_topology_t topology;
    memset(cpu, 0, sizeof *cpu);
    cpu->isa = apply_mask(detect_isa(), isa_mask);
    if ((cpu->isa & ISA_AMX) && !may_use_tiles())
        cpu->isa &= ~(uint32_t)ISA_AMX;
    cpu->num_cores = cpu->num_pus = cpu->num_numa_nodes = 1;
    if (hwloc_topology_init(&topology) != 0)
        return;
    hwloc_topology_set_flags(topology, HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING |
                                           HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM);
    if (hwloc_topology_load(topology) == 0) {
        cpu->num_cores = at_least_one(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE));
        cpu->num_pus = at_least_one(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU));
        cpu->num_numa_nodes = at_least_one(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE));
    }
    hwloc_topology_destroy(topology);
}

void kt_cpu_describe(const struct kt_cpu *cpu, int32_t num_threads, char *text, size_t size)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } sets[] = {{KT_ISA_AVX2, " AVX2"},
                {KT_ISA_AVX512, " AVX-512"},
                {KT_ISA_AVX512_BF16, " AVX-512-BF16"},
                {KT_ISA_AVX512_VNNI, " AVX-512-VNNI"},
                {KT_ISA_AMX_BF16, " AMX-BF16"},
                {KT_ISA_AMX_INT8, " AMX-INT8"}};
    int n = snprintf(text, size, "cpu: %d cores, %d NUMA node%s, %d threads,", cpu->num_cores,
                     cpu->num_numa_nodes, cpu->num_numa_nodes == 1 ? "" : "s", num_threads);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if ((cpu->isa & sets[i].bit) && n > 0 && (size_t)n < size)
            n += snprintf(text + n, size - (size_t)n, "%s", sets[i].name);
    if (!cpu->isa && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, " plain C");
}
