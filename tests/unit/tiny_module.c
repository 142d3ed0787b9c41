/* SPDX-License-Identifier: Apache-2.0 */
/* A module with one device, which has memory and does nothing. Built for TINY_ABI. */
#include "backend/plugin.h"

static const struct kt_backend_host *host;

static kt_status tiny_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                            const char *what, void **out)
{
    (void)kind;
    return host->buffer_alloc(dev->ctx, bytes, 1, what, out);
}

static void tiny_free(struct kt_device *dev, enum kt_memory kind, void *memory)
{
    (void)kind;
    host->buffer_free(dev->ctx, memory);
}

static kt_mark tiny_mark(struct kt_device *dev, enum kt_queue queue)
{
    (void)dev, (void)queue;
    return 0;
}

static kt_status tiny_sync(struct kt_device *dev, kt_mark mark)
{
    (void)dev, (void)mark;
    return KT_OK;
}

static void tiny_close(struct kt_device *dev)
{
    host->buffer_free(dev->ctx, dev);
}

static const struct kt_device_ops ops = {
    .abi = TINY_ABI,
    .name = "tiny",
    .alloc = tiny_alloc,
    .free = tiny_free,
    .mark = tiny_mark,
    .sync = tiny_sync,
    .close = tiny_close,
};

static kt_status tiny_open(kt_context *ctx, int32_t index, struct kt_device **out)
{
    void *memory;
    if (index > 0)
        return host->fail(ctx, KT_ERROR_NOT_FOUND, "there is one tiny device, not %d", index + 1);
    KT_TRY(host->buffer_alloc(ctx, 1, sizeof **out, "a tiny device", &memory));
    *out = memory;
    **out = (struct kt_device){.ops = &ops, .ctx = ctx};
    host->log(ctx, KT_LOG_INFO, "tiny opened, with %d threads",
              host->pool_num_threads(host->pool(ctx)));
    return KT_OK;
}

static const struct kt_backend backend = {tiny_open};

KT_API const struct kt_backend *kt_backend_module(uint32_t abi,
                                                  const struct kt_backend_host *services)
{
    host = services;
    return abi == TINY_ABI ? &backend : NULL;
}
