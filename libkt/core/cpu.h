/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/cpu.h
 * Instruction sets and topology of this machine. */
#ifndef KT_CORE_CPU_H
#define KT_CORE_CPU_H

#include <stddef.h>
#include <stdint.h>

struct kt_cpu {
    uint32_t isa;      /**< KT_ISA_* bits usable here: CPU, operating system and mask agree */
    int32_t num_cores; /**< physical cores this process may run on (affinity honoured), >= 1 */
    int32_t num_pus;   /**< hardware threads likewise */
    int32_t num_numa_nodes; /**< >= 1 */
};

void kt_cpu_detect(struct kt_cpu *cpu, uint32_t isa_mask);
void kt_cpu_describe(const struct kt_cpu *cpu, int32_t num_threads, char *text, size_t size);

#endif
