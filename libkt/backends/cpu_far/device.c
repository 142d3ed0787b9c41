/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu_far/far.h"

void kt_far_remember(struct kt_far_device *far, const char *format, ...)
{
    va_list args;
    if (far->failure[0])
        return;
    va_start(args, format);
    vsnprintf(far->failure, sizeof far->failure, format, args);
    va_end(args);
}

void kt_cpu_far_seed(struct kt_device *dev, uint64_t seed)
{
    kt_far(dev)->seed = seed;
    kt_far(dev)->drawn = 0;
}

void kt_cpu_far_prefer_bf16(struct kt_device *dev)
{
    kt_far(dev)->bf16 = true;
}

static kt_status far_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                           const char *what, void **out)
{
    struct kt_far_device *far = kt_far(dev);
    void *real;
    KT_TRY(far->inner->ops->alloc(far->inner, kind, bytes, what, &real));
    kt_status status = kt_far_add(dev->ctx, &far->addresses, kind, bytes, what, real, out);
    if (status == KT_OK)
        memset(real, 0xff, bytes); /* NaN, whoever reads it before it is written */
    else
        far->inner->ops->free(far->inner, kind, real);
    return status;
}

static void far_free(struct kt_device *dev, enum kt_memory kind, void *memory)
{
    struct kt_far_device *far = kt_far(dev);
    if (!memory)
        return;
    struct kt_far_allocation *a = kt_far_find(&far->addresses, memory);
    if (!a || a->address != (uint64_t)(uintptr_t)memory || a->kind != kind) {
        kt_far_remember(far, "free: not memory of this device, or of another kind");
        return;
    }
    for (int queue = 0; queue < KT_QUEUES; queue++)
        if (kt_far_finish(far, (enum kt_queue)queue, a->last_use[queue]))
            kt_far_remember(far, "free: work that is queued still uses \"%s\"", a->what);
    void *real = a->real;
    kt_far_remove(&far->addresses, a);
    far->inner->ops->free(far->inner, kind, real);
}

static uint64_t far_scratch_bytes(const struct kt_device *dev, enum kt_op op, const void *args)
{
    return kt_far_scratch_bytes((const struct kt_far_device *)dev, op, args);
}

static bool far_supports(const struct kt_device *dev, enum kt_op op, const void *args)
{
    const struct kt_far_device *far = (const struct kt_far_device *)dev;
    union kt_far_args wide;
    if (!far->bf16 || !kt_far_widens(op, args))
        return far->inner->ops->supports(far->inner, op, args);
    memcpy(&wide, args, kt_op_args_size(op));
    kt_far_widen_types(op, &wide);
    return far->inner->ops->supports(far->inner, op, &wide);
}

static kt_dtype far_prefers(const struct kt_device *dev, kt_compute compute)
{
    bool bf16 = ((const struct kt_far_device *)dev)->bf16 && compute == KT_COMPUTE_BF16;
    return bf16 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

static struct kt_rates far_rates(const struct kt_device *dev, kt_compute compute)
{
    const struct kt_device *inner = ((const struct kt_far_device *)dev)->inner;
    return inner->ops->rates(inner, compute);
}

/* Memory that was not freed stays, and is counted: a test finds it. */
static void far_close(struct kt_device *dev)
{
    struct kt_far_device *far = kt_far(dev);
    kt_far_stop(far);
    kt_device_close(far->inner);
    kt_pool_free(far->pool);
    kt_far_unreserve(&far->addresses);
    pthread_cond_destroy(&far->changed);
    pthread_mutex_destroy(&far->lock);
    pthread_mutex_destroy(&far->running);
    free(far);
}

static const struct kt_device_ops far_ops = {
    .abi = KT_BACKEND_ABI,
    .alloc = far_alloc,
    .free = far_free,
    .scratch_bytes = far_scratch_bytes,
    .supports = far_supports,
    .prefers = far_prefers,
    .rates = far_rates,
    .copy = kt_far_copy,
    .mark = kt_far_mark,
    .wait = kt_far_wait,
    .stamp = kt_far_stamp,
    .sync = kt_far_sync,
    .close = far_close,
};

static kt_status prepare(struct kt_far_device *far)
{
    kt_context *ctx = far->base.ctx;
    if (kt_pool_create(&ctx->topology, 1, false, &far->pool) != KT_OK)
        return kt_fail_memory(ctx, 0, "the pool of a device");
    KT_TRY(kt_cpu_open_on(ctx, far->pool, far->name, &far->inner));
    KT_TRY(kt_far_reserve(ctx, &far->addresses));
    return kt_far_start(far);
}

kt_status kt_cpu_far_open(kt_context *ctx, const char *name, struct kt_device **out)
{
    struct kt_far_device *far = calloc(1, sizeof *far);
    if (!far)
        return kt_fail_memory(ctx, sizeof *far, "a device");
    snprintf(far->name, sizeof far->name, "%s", name);
    far->ops = far_ops;
    far->ops.name = far->name;
    memcpy(far->ops.run, kt_far_run, sizeof far->ops.run);
    far->base.ops = &far->ops;
    far->base.ctx = ctx;
    far->seed = 1;
    pthread_mutex_init(&far->lock, NULL);
    pthread_mutex_init(&far->running, NULL);
    pthread_cond_init(&far->changed, NULL);
    kt_status status = prepare(far);
    if (status == KT_OK)
        *out = &far->base;
    else
        far_close(&far->base);
    return status;
}
