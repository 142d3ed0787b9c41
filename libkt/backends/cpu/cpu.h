/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/cpu.h
 * The CPU device from inside, and its operations, each in the file of its name. */
#ifndef KT_BACKENDS_CPU_CPU_H
#define KT_BACKENDS_CPU_CPU_H

#include "backend/device.h"
#include "backends/cpu/kernels.h"
#include "core/context.h"

struct kt_cpu_device {
    struct kt_device base;
    struct kt_device_ops ops; /**< with this device's name */
    char name[16];
    struct kt_pool *pool;
    struct kt_kernels kernels;
};

/** A device of the context's threads, or of another pool, which the device borrows. Names longer
 * than 15 characters are cut. */
kt_status kt_cpu_open(kt_context *ctx, const char *name, struct kt_device **out);
kt_status kt_cpu_open_on(kt_context *ctx, struct kt_pool *pool, const char *name,
                         struct kt_device **out);

static inline struct kt_cpu_device *kt_cpu(struct kt_device *dev)
{
    return (struct kt_cpu_device *)dev;
}

#define KT_CPU_OP(name, op, type)                                                                  \
    void kt_cpu_##name(struct kt_device *dev, const void *args, void *scratch);
KT_EACH_OP(KT_CPU_OP)
#undef KT_CPU_OP

/** Scratch of those that take some. */
uint64_t kt_cpu_linear_forward_scratch(const struct kt_cpu_device *cpu,
                                       const struct kt_linear_args *a);
uint64_t kt_cpu_linear_backward_scratch(const struct kt_cpu_device *cpu,
                                        const struct kt_linear_args *a);
uint64_t kt_cpu_gemm_scratch(const struct kt_cpu_device *cpu, const struct kt_gemm_args *a);
uint64_t kt_cpu_attention_forward_scratch(const struct kt_cpu_device *cpu,
                                          const struct kt_attention_args *a);
uint64_t kt_cpu_attention_backward_scratch(const struct kt_cpu_device *cpu,
                                           const struct kt_attention_args *a);
uint64_t kt_cpu_router_scratch(const struct kt_cpu_device *cpu, const struct kt_router_args *a);

/** Memory whose parts kt_bind_thread_scratch put on their threads' nodes; {0} = none. */
struct kt_bound_scratch {
    const void *memory;
    uint64_t thread_bytes;
};

/** Asks for the part of each thread of the pool, `thread_bytes` (a multiple of 64) from `threads`
 * on, to be in memory of the thread's node, unless `state` says that it is. */
void kt_bind_thread_scratch(struct kt_pool *pool, struct kt_bound_scratch *state, char *threads,
                            uint64_t thread_bytes);

#endif
