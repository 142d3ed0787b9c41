/* SPDX-License-Identifier: Apache-2.0 */
/* A queue is a stream. A mark is the number of a point on it, and points take the events of a ring
 * in turn: whoever asks for one whose event has been taken again gets a later point, which is right
 * as well. */
#include <stdlib.h>

#include "backends/cuda/host.h"

enum { EVENTS = 256 };

/** Points are numbered from 1. Those up to `passed` are known to be. */
struct kt_cuda_queue {
    cudaStream_t stream;
    cudaEvent_t events[EVENTS]; /**< point n has events[n % EVENTS] */
    uint64_t last, passed;
    bool changed; /**< something was queued behind point `last` */
};

static struct kt_cuda_queue *queue_of(struct kt_cuda_device *cuda, kt_mark mark)
{
    return &cuda->queues[mark % KT_QUEUES];
}

static cudaError_t open_queue(struct kt_cuda_queue *q)
{
    cudaError_t error = cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking);
    for (int i = 0; i < EVENTS && error == cudaSuccess; i++)
        error =
            cudaEventCreateWithFlags(&q->events[i], cudaEventDisableTiming | cudaEventBlockingSync);
    return error;
}

cudaError_t kt_cuda_open_queues(struct kt_cuda_device *cuda)
{
    cudaError_t error = cudaSuccess;
    cuda->queues = calloc(KT_QUEUES, sizeof *cuda->queues);
    if (!cuda->queues)
        return cudaErrorMemoryAllocation;
    for (int i = 0; i < KT_QUEUES && error == cudaSuccess; i++)
        error = open_queue(&cuda->queues[i]);
    cuda->compute = cuda->queues[KT_QUEUE_COMPUTE].stream;
    return error;
}

void kt_cuda_close_queues(struct kt_cuda_device *cuda)
{
    for (int i = 0; i < KT_QUEUES && cuda->queues; i++) {
        struct kt_cuda_queue *q = &cuda->queues[i];
        for (int k = 0; k < EVENTS && q->events[k]; k++)
            cudaEventDestroy(q->events[k]);
        if (q->stream)
            cudaStreamDestroy(q->stream);
    }
    free(cuda->queues);
}

cudaStream_t kt_cuda_stream(struct kt_cuda_device *cuda, enum kt_queue queue)
{
    return cuda->queues[queue].stream;
}

void kt_cuda_queued(struct kt_cuda_device *cuda)
{
    cuda->queues[KT_QUEUE_COMPUTE].changed = true;
}

void kt_cuda_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                  uint64_t bytes)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_queue *q = &cuda->queues[queue];
    void *before = kt_cuda_enter(cuda->context);
    q->changed = true;
    for (uint64_t now; bytes; bytes -= now) {
        now = kt_cuda_copy_piece(cuda, from, bytes);
        kt_cuda_check(cuda, cudaMemcpyAsync(to, from, now, cudaMemcpyDefault, q->stream), "copy");
        to = (char *)to + now;
        from = (const char *)from + now;
    }
    kt_cuda_leave(cuda->context, before);
}

kt_mark kt_cuda_mark(struct kt_device *dev, enum kt_queue queue)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_queue *q = &cuda->queues[queue];
    if (q->changed) {
        void *before = kt_cuda_enter(cuda->context);
        q->last++;
        q->changed = false;
        kt_cuda_check(cuda, cudaEventRecord(q->events[q->last % EVENTS], q->stream), "mark");
        kt_cuda_leave(cuda->context, before);
    }
    return q->last ? q->last * KT_QUEUES + (uint64_t)queue : 0;
}

/** The event to wait for; NULL where there is nothing to wait for. */
static cudaEvent_t event_of(struct kt_cuda_device *cuda, kt_mark mark)
{
    struct kt_cuda_queue *q = queue_of(cuda, mark);
    uint64_t point = mark / KT_QUEUES;
    if (point > q->last)
        kt_cuda_remember(cuda, "a wait for a mark of another device");
    return point > q->last || point <= q->passed ? NULL : q->events[point % EVENTS];
}

void kt_cuda_wait(struct kt_device *dev, enum kt_queue queue, kt_mark mark)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_queue *q = &cuda->queues[queue];
    cudaEvent_t event = event_of(cuda, mark);
    if (!event || q == queue_of(cuda, mark))
        return;
    void *before = kt_cuda_enter(cuda->context);
    q->changed = true;
    kt_cuda_check(cuda, cudaStreamWaitEvent(q->stream, event, 0), "wait");
    kt_cuda_leave(cuda->context, before);
}

kt_status kt_cuda_sync(struct kt_device *dev, kt_mark mark)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    cudaEvent_t event = event_of(cuda, mark);
    if (event) {
        void *before = kt_cuda_enter(cuda->context);
        kt_cuda_check(cuda, cudaEventSynchronize(event), "what was queued");
        kt_cuda_leave(cuda->context, before);
        queue_of(cuda, mark)->passed = mark / KT_QUEUES;
    }
    return cuda->failure[0] ? kt_cuda_host->fail(dev->ctx, KT_ERROR_INTERNAL, "device \"%s\": %s",
                                                 cuda->name, cuda->failure)
                            : KT_OK;
}
