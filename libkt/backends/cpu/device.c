/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/cpu.h"
#include "core/bind.h"
#include "core/memory.h"

/* Asking the system takes microseconds for each thread, so it is done once, not in every call. */
void kt_bind_thread_scratch(struct kt_pool *pool, struct kt_bound_scratch *state, char *threads,
                            uint64_t thread_bytes)
{
    if (state->memory == threads && state->thread_bytes == thread_bytes)
        return;
    for (int32_t i = 0; i < kt_pool_num_threads(pool); i++)
        kt_pool_bind_memory(pool, threads + (uint64_t)i * thread_bytes, thread_bytes,
                            kt_pool_node(pool, i));
    *state = (struct kt_bound_scratch){threads, thread_bytes};
}

static kt_status cpu_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                           const char *what, void **out)
{
    KT_TRY(kt_buffer_alloc(dev->ctx, bytes, 1, what, out));
    if (kind == KT_MEMORY_SCRATCH)
        kt_use_huge_pages(*out, bytes);
    return KT_OK;
}

static void cpu_free(struct kt_device *dev, enum kt_memory kind, void *memory)
{
    (void)kind;
    kt_buffer_free(dev->ctx, memory);
}

static uint64_t cpu_scratch_bytes(const struct kt_device *dev, enum kt_op op, const void *args)
{
    const struct kt_cpu_device *cpu = (const struct kt_cpu_device *)dev;
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
        return kt_cpu_linear_forward_scratch(cpu, args);
    case KT_OP_LINEAR_BACKWARD:
        return kt_cpu_linear_backward_scratch(cpu, args);
    case KT_OP_GEMM:
        return kt_cpu_gemm_scratch(cpu, args);
    case KT_OP_ATTENTION_FORWARD:
        return kt_cpu_attention_forward_scratch(cpu, args);
    case KT_OP_ATTENTION_BACKWARD:
        return kt_cpu_attention_backward_scratch(cpu, args);
    case KT_OP_ROUTER_FORWARD:
    case KT_OP_ROUTER_BACKWARD:
        return kt_cpu_router_scratch(cpu, args);
    default:
        return 0;
    }
}

static bool is_float(kt_dtype dtype)
{
    return dtype == KT_DTYPE_F32 || dtype == KT_DTYPE_BF16;
}

static bool are_f32(const struct kt_view *views, int num)
{
    for (int i = 0; i < num; i++)
        if (views[i].dtype != KT_DTYPE_F32)
            return false;
    return true;
}

#define ARE_F32(...)                                                                               \
    are_f32((const struct kt_view[]){__VA_ARGS__},                                                 \
            sizeof((const struct kt_view[]){__VA_ARGS__}) / sizeof(struct kt_view))

static bool rows_supported(enum kt_op op, const struct kt_rows_args *a)
{
    if (op == KT_OP_CONVERT)
        return is_float(a->x.dtype) && is_float(a->y.dtype) && a->x.dtype != a->y.dtype;
    return ARE_F32(a->y) && (op == KT_OP_ZERO || ARE_F32(a->x));
}

static bool attention_supported(const struct kt_attention_args *a, bool backward)
{
    if (!ARE_F32(a->q, a->k, a->v, a->o) || (a->shared_dim && !ARE_F32(a->k_shared)))
        return false;
    return !backward ||
           (ARE_F32(a->d_o, a->dq, a->dk, a->dv) && (!a->shared_dim || ARE_F32(a->dk_shared)));
}

static bool glu_supported(const struct kt_glu_args *a, bool backward)
{
    if (a->activation != KT_ACTIVATION_SILU || !ARE_F32(a->gate, a->up))
        return false;
    return backward ? ARE_F32(a->dh, a->dgate, a->dup) : ARE_F32(a->h);
}

static bool cpu_supports(const struct kt_device *dev, enum kt_op op, const void *args)
{
    const struct kt_linear_args *linear = args;
    const struct kt_gemm_args *gemm = args;
    const struct kt_norm_args *norm = args;
    const struct kt_dropout_args *dropout = args;
    const struct kt_gather_args *gather = args;
    const struct kt_weigh_args *weigh = args;
    (void)dev;
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
    case KT_OP_LINEAR_BACKWARD:
        return ARE_F32(linear->x, linear->y);
    case KT_OP_GEMM:
        return ARE_F32(gemm->a, gemm->b, gemm->c);
    case KT_OP_EMBEDDING:
        return ARE_F32(((const struct kt_embedding_args *)args)->x);
    case KT_OP_NORM_FORWARD:
    case KT_OP_NORM_BACKWARD:
        return ARE_F32(norm->x, norm->y) && (op == KT_OP_NORM_FORWARD || ARE_F32(norm->dy));
    case KT_OP_ROPE:
        return ARE_F32(((const struct kt_rope_args *)args)->x);
    case KT_OP_ATTENTION_FORWARD:
    case KT_OP_ATTENTION_BACKWARD:
        return attention_supported(args, op == KT_OP_ATTENTION_BACKWARD);
    case KT_OP_GLU_FORWARD:
    case KT_OP_GLU_BACKWARD:
        return glu_supported(args, op == KT_OP_GLU_BACKWARD);
    case KT_OP_CROSS_ENTROPY:
        return ARE_F32(((const struct kt_cross_entropy_args *)args)->logits);
    case KT_OP_DROPOUT:
        return ARE_F32(dropout->x, dropout->y);
    case KT_OP_GATHER:
    case KT_OP_SCATTER_ADD:
        return ARE_F32(gather->x, gather->y);
    case KT_OP_WEIGH:
        return ARE_F32(weigh->h, weigh->dh);
    case KT_OP_ADD:
    case KT_OP_ZERO:
    case KT_OP_CONVERT:
        return rows_supported(op, args);
    default:
        return true; /* routers have no views */
    }
}

static kt_dtype cpu_prefers(const struct kt_device *dev, kt_compute compute)
{
    (void)dev, (void)compute;
    return KT_DTYPE_F32;
}

/* Of a thread, as measured on Zen 4 and Sapphire Rapids; about two thirds of what registers do. */
static double thread_flops(uint32_t isa, kt_compute compute)
{
    bool bf16 = compute == KT_COMPUTE_BF16;
    if (bf16 && isa & KT_ISA_AMX_BF16)
        return 600e9;
    if (bf16 && isa & KT_ISA_AVX512_BF16)
        return 150e9;
    if (isa & KT_ISA_AVX512)
        return 80e9;
    return isa & KT_ISA_AVX2 ? 40e9 : 2e9;
}

static struct kt_rates cpu_rates(const struct kt_device *dev, kt_compute compute)
{
    const struct kt_cpu_device *cpu = (const struct kt_cpu_device *)dev;
    double threads = kt_pool_num_threads(cpu->pool);
    return (struct kt_rates){.flops = threads * thread_flops(dev->ctx->cpu.isa, compute),
                             .bytes = threads * 8e9,
                             .link = threads * 8e9};
}

/* Everything is done when its call returns, so that there is nothing to wait for. */
static void cpu_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                     uint64_t bytes)
{
    (void)dev, (void)queue;
    if (to != from)
        memcpy(to, from, bytes);
}

static kt_mark cpu_mark(struct kt_device *dev, enum kt_queue queue)
{
    (void)dev, (void)queue;
    return 0;
}

static void cpu_wait(struct kt_device *dev, enum kt_queue queue, kt_mark mark)
{
    (void)dev, (void)queue, (void)mark;
}

static kt_status cpu_sync(struct kt_device *dev, kt_mark mark)
{
    (void)dev, (void)mark;
    return KT_OK;
}

static void cpu_close(struct kt_device *dev)
{
    free(dev);
}

#define RUN(name, op, args) [KT_OP_##op] = kt_cpu_##name,

static const struct kt_device_ops cpu_ops = {
    .abi = KT_BACKEND_ABI,
    .traits = KT_DEVICE_HOST_MEMORY,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .scratch_bytes = cpu_scratch_bytes,
    .supports = cpu_supports,
    .prefers = cpu_prefers,
    .rates = cpu_rates,
    .copy = cpu_copy,
    .mark = cpu_mark,
    .wait = cpu_wait,
    .sync = cpu_sync,
    .close = cpu_close,
    .run = {KT_EACH_OP(RUN)},
};

kt_status kt_cpu_open_on(kt_context *ctx, struct kt_pool *pool, const char *name,
                         struct kt_device **out)
{
    struct kt_cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return kt_fail_memory(ctx, sizeof *cpu, "the CPU device");
    snprintf(cpu->name, sizeof cpu->name, "%s", name);
    cpu->ops = cpu_ops;
    cpu->ops.name = cpu->name;
    cpu->base.ops = &cpu->ops;
    cpu->base.ctx = ctx;
    cpu->pool = pool;
    kt_kernels_init(&cpu->kernels, ctx->cpu.isa);
    *out = &cpu->base;
    return KT_OK;
}

kt_status kt_cpu_open(kt_context *ctx, const char *name, struct kt_device **out)
{
    return kt_cpu_open_on(ctx, ctx->pool, name, out);
}
