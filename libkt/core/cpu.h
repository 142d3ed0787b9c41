/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/cpu.h
 * Instruction sets of this machine, and a line that describes it. */
#ifndef KT_CORE_CPU_H
#define KT_CORE_CPU_H

#include <stddef.h>
#include <stdint.h>

struct kt_cpu {
    uint32_t isa; /**< KT_ISA_* bits usable here: CPU, operating system and mask agree */
};

struct kt_pool;
struct kt_topology;

void kt_cpu_detect(struct kt_cpu *cpu, uint32_t isa_mask);

/** One line: cores, nodes, threads and how they are bound, instruction sets. */
void kt_cpu_describe(const struct kt_cpu *cpu, const struct kt_topology *t,
                     const struct kt_pool *pool, char *text, size_t size);

#endif
