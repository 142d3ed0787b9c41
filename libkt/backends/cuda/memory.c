/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "backends/cuda/host.h"

enum { PAGE = 4096 };

/** Drivers refuse large registrations here and there. */
static const uint64_t pin_at_once = 256u << 20;

/** Stands in front of the first page of pinned memory. */
struct pinned {
    void *buffer; /**< of libkt, which counts it */
    bool registered;
};

static kt_status fail_memory(struct kt_cuda_device *cuda, uint64_t bytes, const char *what,
                             cudaError_t error)
{
    const double mib = 1.0 / (1 << 20);
    size_t available = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&available, &total);
    return kt_cuda_host->fail(
        cuda->base.ctx, KT_ERROR_OUT_OF_MEMORY,
        "device \"%s\": cannot allocate %.1f MiB for %s: %s; of its %.1f MiB %.1f are free, and "
        "%.1f are libkt's; use shorter or fewer sequences in a step, or another device for some "
        "of the layers",
        cuda->name, (double)bytes * mib, what, cudaGetErrorString(error), (double)total * mib,
        (double)available * mib, (double)cuda->allocated * mib);
}

static kt_status alloc_device(struct kt_cuda_device *cuda, uint64_t bytes, const char *what,
                              void **out)
{
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
    *out = memory;
    if (error != cudaSuccess)
        return fail_memory(cuda, bytes, what, error);
    cuda->allocated += kt_cuda_bytes_at(memory);
    return KT_OK;
}

/* Whole pages, since that is what the system pins; none of them is shared with other memory. */
static kt_status alloc_pinned(struct kt_cuda_device *cuda, uint64_t bytes, const char *what,
                              void **out)
{
    uint64_t whole = (bytes / PAGE + 1) * PAGE;
    void *buffer;
    KT_TRY(kt_cuda_host->buffer_alloc(cuda->base.ctx, whole < bytes ? UINT64_MAX : whole + 2 * PAGE,
                                      1, what, &buffer));
    uintptr_t first = ((uintptr_t)buffer + sizeof(struct pinned) + PAGE - 1) / PAGE * PAGE;
    struct pinned *pinned = (struct pinned *)first - 1;
    cudaError_t error = cudaHostRegister((void *)first, whole, cudaHostRegisterPortable);
    *pinned = (struct pinned){buffer, error == cudaSuccess};
    if (error != cudaSuccess) {
        cudaGetLastError();
        kt_cuda_host->log(cuda->base.ctx, KT_LOG_WARNING,
                          "device \"%s\": %s (%.1f MiB) cannot be pinned, so that copies of it are "
                          "slow: %s",
                          cuda->name, what, (double)bytes / (1 << 20), cudaGetErrorString(error));
    }
    *out = (void *)first;
    return KT_OK;
}

static void free_pinned(struct kt_cuda_device *cuda, void *memory)
{
    const struct pinned *pinned = (const struct pinned *)memory - 1;
    if (pinned->registered)
        kt_cuda_check(cuda, cudaHostUnregister(memory), "unpinning memory");
    kt_cuda_host->buffer_free(cuda->base.ctx, pinned->buffer);
}

static void free_device(struct kt_cuda_device *cuda, void *memory)
{
    cuda->allocated -= kt_cuda_bytes_at(memory);
    kt_cuda_check(cuda, cudaFree(memory), "freeing memory");
}

kt_status kt_cuda_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                        const char *what, void **out)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    void *before = kt_cuda_enter(cuda->context);
    *out = NULL;
    kt_status status = kind == KT_MEMORY_PINNED ? alloc_pinned(cuda, bytes, what, out)
                                                : alloc_device(cuda, bytes, what, out);
    kt_cuda_leave(cuda->context, before);
    return status;
}

void kt_cuda_free(struct kt_device *dev, enum kt_memory kind, void *memory)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    if (!memory)
        return;
    void *before = kt_cuda_enter(cuda->context);
    if (kind == KT_MEMORY_PINNED)
        free_pinned(cuda, memory);
    else
        free_device(cuda, memory);
    kt_cuda_leave(cuda->context, before);
}

uint64_t kt_cuda_available(const struct kt_device *dev)
{
    const struct kt_cuda_device *cuda = (const struct kt_cuda_device *)dev;
    size_t available = 0, total = 0;
    void *before = kt_cuda_enter(cuda->context);
    cudaMemGetInfo(&available, &total);
    kt_cuda_leave(cuda->context, before);
    return available;
}

/** Memory of others that is pinned: in pieces, which a copy must not cross. */
struct kt_cuda_pinned {
    struct kt_cuda_pinned *next;
    const char *memory;
    uint64_t bytes, piece;
};

static void unpin(const char *memory, uint64_t bytes, uint64_t piece)
{
    for (uint64_t at = 0; at < bytes; at += piece)
        cudaHostUnregister((void *)(uintptr_t)(memory + at));
    cudaGetLastError();
}

/** Read-only, as a mapped file is. */
static bool pin(const char *memory, uint64_t bytes, uint64_t piece)
{
    for (uint64_t at = 0; at < bytes; at += piece) {
        uint64_t now = bytes - at < piece ? bytes - at : piece;
        if (cudaHostRegister((void *)(uintptr_t)(memory + at), now,
                             cudaHostRegisterPortable | cudaHostRegisterReadOnly) == cudaSuccess)
            continue;
        unpin(memory, at, piece);
        return false;
    }
    return true;
}

/** Whole, or in pieces where the driver refuses that. */
static bool pin_somehow(struct kt_cuda_pinned *p)
{
    p->piece = p->bytes;
    if (pin(p->memory, p->bytes, p->piece))
        return true;
    p->piece = pin_at_once;
    return p->bytes > p->piece && pin(p->memory, p->bytes, p->piece);
}

bool kt_cuda_pin(struct kt_device *dev, const void *memory, uint64_t bytes)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_pinned *p = calloc(1, sizeof *p);
    void *before = kt_cuda_enter(cuda->context);
    int supported = 0;
    cudaDeviceGetAttribute(&supported, cudaDevAttrHostRegisterReadOnlySupported, cuda->index);
    bool pinned = p && supported && bytes;
    if (pinned) {
        *p = (struct kt_cuda_pinned){kt_cuda_host_side(cuda)->pinned, memory, bytes, 0};
        pinned = pin_somehow(p);
    }
    if (pinned)
        kt_cuda_host_side(cuda)->pinned = p;
    else
        free(p);
    kt_cuda_leave(cuda->context, before);
    return pinned;
}

void kt_cuda_unpin(struct kt_device *dev, const void *memory, uint64_t bytes)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_pinned **at = &kt_cuda_host_side(cuda)->pinned, *p;
    void *before = kt_cuda_enter(cuda->context);
    while (*at && (*at)->memory != memory)
        at = &(*at)->next;
    p = *at;
    if (p) {
        *at = p->next;
        unpin(memory, bytes, p->piece);
        free(p);
    }
    kt_cuda_leave(cuda->context, before);
}

uint64_t kt_cuda_copy_piece(struct kt_cuda_device *cuda, const void *from, uint64_t bytes)
{
    const struct kt_cuda_pinned *p = kt_cuda_host_side(cuda)->pinned;
    const char *at = from;
    while (p && (at < p->memory || at >= p->memory + p->bytes))
        p = p->next;
    if (!p)
        return bytes;
    uint64_t left = p->piece - (uint64_t)(at - p->memory) % p->piece;
    return bytes < left ? bytes : left;
}
