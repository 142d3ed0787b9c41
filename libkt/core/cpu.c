/* SPDX-License-Identifier: Apache-2.0 */
#include "core/cpu.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/context.h"

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
    if ((isa & KT_ISA_AVX512_BF16) && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("gfni"))
        isa |= KT_ISA_AVX512_VBMI;
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
        mask |= KT_ISA_AVX512_VBMI | ISA_AMX;
    return isa & ~mask;
}

void kt_cpu_detect(struct kt_cpu *cpu, uint32_t isa_mask)
{
    cpu->isa = apply_mask(detect_isa(), isa_mask);
    if ((cpu->isa & ISA_AMX) && !may_use_tiles())
        cpu->isa &= ~(uint32_t)ISA_AMX;
}

static KT_PRINTF(3, 4) void append(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, size - used, format, args);
    va_end(args);
}

void kt_cpu_describe(const struct kt_cpu *cpu, const struct kt_topology *t,
                     const struct kt_pool *pool, char *text, size_t size)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } sets[] = {{KT_ISA_AVX2, " AVX2"},
                {KT_ISA_AVX512, " AVX-512"},
                {KT_ISA_AVX512_BF16, " AVX-512-BF16"},
                {KT_ISA_AVX512_VBMI, " AVX-512-VBMI"},
                {KT_ISA_AVX512_VNNI, " AVX-512-VNNI"},
                {KT_ISA_AMX_BF16, " AMX-BF16"},
                {KT_ISA_AMX_INT8, " AMX-INT8"}};
    static const char *const affinities[] = {[KT_AFFINITY_NONE] = "",
                                             [KT_AFFINITY_NODES] = " in their nodes",
                                             [KT_AFFINITY_CORES] = " pinned to cores"};
    int32_t threads = kt_pool_num_threads(pool);
    enum kt_affinity affinity = kt_pool_affinity(pool, NULL);
    if (affinity == KT_AFFINITY_NODES && t->num_nodes == 1)
        affinity = KT_AFFINITY_NONE;
    *text = 0;
    append(text, size, "cpu: %d core%s", t->num_cores, t->num_cores == 1 ? "" : "s");
    if (t->num_pus > t->num_cores)
        append(text, size, " of %d hardware threads", t->num_pus);
    append(text, size, ", %d NUMA node%s", t->num_nodes, t->num_nodes == 1 ? "" : "s");
    append(text, size, ", %d thread%s%s,", threads, threads == 1 ? "" : "s", affinities[affinity]);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (cpu->isa & sets[i].bit)
            append(text, size, "%s", sets[i].name);
    if (!cpu->isa)
        append(text, size, " plain C");
}
