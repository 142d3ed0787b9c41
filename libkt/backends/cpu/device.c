/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/gemm.h"

#include <stdlib.h>

#include "core/bind.h"
#include "core/memory.h"

kt_status kt_scratch_get(struct kt_scratch *scratch, uint64_t bytes, const char *what, void **out)
{
    if (bytes > scratch->bytes) {
        kt_scratch_free(scratch);
        KT_TRY(kt_buffer_alloc(scratch->ctx, bytes, 1, what, &scratch->memory));
        kt_use_huge_pages(scratch->memory, bytes);
        scratch->bytes = bytes;
    }
    *out = scratch->memory;
    return KT_OK;
}

/* Asking the system takes microseconds for each thread, so it is done once, not in every call. */
kt_status kt_scratch_get_threads(struct kt_scratch *scratch, uint64_t thread_bytes, uint64_t bytes,
                                 const char *what, char **threads, char **rest)
{
    const struct kt_pool *pool = scratch->ctx->pool;
    int32_t num = kt_pool_num_threads(pool);
    void *memory;
    KT_TRY(kt_scratch_get(scratch, (uint64_t)num * thread_bytes + bytes, what, &memory));
    *threads = memory;
    *rest = *threads + (uint64_t)num * thread_bytes;
    for (int32_t i = 0; scratch->thread_bytes != thread_bytes && i < num; i++)
        kt_pool_bind_memory(pool, *threads + (uint64_t)i * thread_bytes, thread_bytes,
                            kt_pool_node(pool, i));
    scratch->thread_bytes = thread_bytes;
    return KT_OK;
}

void kt_scratch_free(struct kt_scratch *scratch)
{
    kt_buffer_free(scratch->ctx, scratch->memory);
    scratch->memory = NULL;
    scratch->bytes = scratch->thread_bytes = 0;
}

static kt_status cpu_alloc(struct kt_device *dev, uint64_t bytes, const char *what, void **out)
{
    return kt_buffer_alloc(dev->ctx, bytes, 1, what, out);
}

static void cpu_free(struct kt_device *dev, void *memory)
{
    kt_buffer_free(dev->ctx, memory);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t cpu_scratch_bytes(const struct kt_device *dev, const struct kt_extent *e)
{
    const struct kt_cpu_device *cpu = (const struct kt_cpu_device *)dev;
    uint64_t most = 0;
    for (int compute = 0; compute < 2; compute++) {
        const struct kt_gemm_kernel *kernel =
            kt_gemm_kernel_for(&cpu->kernels, (kt_compute)compute);
        most = larger(most, kt_gemm_scratch_bytes(dev->ctx, kernel, e->tokens, e->widest));
        most = larger(most, kt_gemm_scratch_bytes(dev->ctx, kernel, e->widest, e->tokens));
        most = larger(most, kt_cpu_attention_scratch_bytes(dev, (kt_compute)compute, e));
    }
    return larger(most, kt_cpu_router_scratch_bytes(dev->ctx, e->widest));
}

static const struct kt_device_ops cpu_ops = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .free = cpu_free,
    .scratch_bytes = cpu_scratch_bytes,
    .linear_forward = kt_cpu_linear_forward,
    .linear_backward = kt_cpu_linear_backward,
    .gemm = kt_cpu_gemm,
    .embedding = kt_cpu_embedding,
    .rmsnorm_forward = kt_cpu_rmsnorm_forward,
    .rmsnorm_backward = kt_cpu_rmsnorm_backward,
    .rope = kt_cpu_rope,
    .attention_forward = kt_cpu_attention_forward,
    .attention_backward = kt_cpu_attention_backward,
    .glu_forward = kt_cpu_glu_forward,
    .glu_backward = kt_cpu_glu_backward,
    .router_forward = kt_cpu_router_forward,
    .router_backward = kt_cpu_router_backward,
    .cross_entropy = kt_cpu_cross_entropy,
    .add = kt_cpu_add,
    .dropout = kt_cpu_dropout,
    .pack_bf16 = kt_cpu_pack_bf16,
    .unpack_bf16 = kt_cpu_unpack_bf16,
};

kt_status kt_cpu_open(kt_context *ctx, struct kt_device **out)
{
    struct kt_cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return kt_fail_memory(ctx, sizeof *cpu, "the CPU device");
    cpu->base.ops = &cpu_ops;
    cpu->base.ctx = ctx;
    cpu->scratch.ctx = ctx;
    kt_kernels_init(&cpu->kernels, ctx->cpu.isa);
    *out = &cpu->base;
    return KT_OK;
}

void kt_cpu_close(struct kt_device *dev)
{
    kt_scratch_free(&kt_cpu(dev)->scratch);
    free(dev);
}
