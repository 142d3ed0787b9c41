/* SPDX-License-Identifier: Apache-2.0 */
/* Times of queues, for traces. A stamp is an event of a queue's ring, and is read when a call has
 * ended or the ring is full, since reading takes the host a microsecond. The device tells how far
 * events are apart; the host's clock is brought in by an event on a stream of its own, with which
 * nothing else queues. It is done again every second, as the two clocks drift and the device tells
 * milliseconds as float. */
#include <stdlib.h>

#include "backends/cuda/host.h"
#include "core/clock.h"

enum { STAMPS = 4096 };

static const double zero_is_good_for = 1; /* seconds */

/** Stamps are numbered from 0; those below `stored` are, those from `made` on do not exist yet. */
struct ring {
    cudaEvent_t events[STAMPS]; /**< stamp n has events[n % STAMPS] */
    double *seconds[STAMPS];
    uint64_t stored, made;
    double latest; /**< what was stored last: times do not go back where the zero moved */
};

struct kt_cuda_clock {
    cudaStream_t stream;
    cudaEvent_t zero;
    double zero_seconds; /**< of kt_clock, when `zero` was recorded */
    struct ring rings[KT_QUEUES];
};

/** Records the zero. What it waits for is that event alone. */
static cudaError_t set_zero(struct kt_cuda_clock *clock)
{
    double before = kt_clock();
    cudaError_t error = cudaEventRecord(clock->zero, clock->stream);
    if (error == cudaSuccess)
        error = cudaEventSynchronize(clock->zero);
    clock->zero_seconds = (before + kt_clock()) / 2;
    return error;
}

static cudaError_t open_clock(struct kt_cuda_clock *clock)
{
    cudaError_t error = cudaStreamCreateWithFlags(&clock->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaEventCreate(&clock->zero);
    for (int q = 0; q < KT_QUEUES; q++)
        for (int i = 0; i < STAMPS && error == cudaSuccess; i++)
            error = cudaEventCreate(&clock->rings[q].events[i]);
    return error == cudaSuccess ? set_zero(clock) : error;
}

static struct kt_cuda_clock *clock_of(struct kt_cuda_device *cuda)
{
    struct kt_cuda_host_side *host = kt_cuda_host_side(cuda);
    if (host->clock)
        return host->clock;
    host->clock = calloc(1, sizeof *host->clock);
    if (!host->clock)
        kt_cuda_remember(cuda, "no memory for the times of a trace");
    else
        kt_cuda_check(cuda, open_clock(host->clock), "the clock of a trace");
    return host->clock;
}

void kt_cuda_close_clock(struct kt_cuda_device *cuda)
{
    struct kt_cuda_clock *clock = kt_cuda_host_side(cuda)->clock;
    if (!clock)
        return;
    for (int q = 0; q < KT_QUEUES; q++)
        for (int i = 0; i < STAMPS && clock->rings[q].events[i]; i++)
            cudaEventDestroy(clock->rings[q].events[i]);
    if (clock->zero)
        cudaEventDestroy(clock->zero);
    if (clock->stream)
        cudaStreamDestroy(clock->stream);
    free(clock);
    kt_cuda_host_side(cuda)->clock = NULL;
}

/** Stores the times that are known, oldest first. */
static cudaError_t store_passed(const struct kt_cuda_clock *clock, struct ring *ring)
{
    float milliseconds = 0;
    for (; ring->stored < ring->made; ring->stored++) {
        uint64_t at = ring->stored % STAMPS;
        cudaError_t error = cudaEventElapsedTime(&milliseconds, clock->zero, ring->events[at]);
        if (error == cudaErrorNotReady) {
            cudaGetLastError(); /* it is no failure of what is launched next */
            return cudaSuccess;
        }
        if (error != cudaSuccess)
            return error;
        double seconds = clock->zero_seconds + 1e-3 * (double)milliseconds;
        if (seconds > ring->latest)
            ring->latest = seconds;
        kt_time_store(ring->seconds[at], ring->latest);
    }
    return cudaSuccess;
}

/** Where the ring is full its queue may be thousands of operations behind the host, and stays so
 * while the host waits for the oldest. */
static cudaError_t make_room(const struct kt_cuda_clock *clock, struct ring *ring)
{
    if (ring->made - ring->stored < STAMPS)
        return cudaSuccess;
    cudaError_t error = cudaEventSynchronize(ring->events[ring->stored % STAMPS]);
    return error == cudaSuccess ? store_passed(clock, ring) : error;
}

static cudaError_t record(const struct kt_cuda_clock *clock, struct ring *ring, cudaStream_t stream,
                          double *seconds)
{
    uint64_t at = ring->made % STAMPS;
    cudaError_t error = make_room(clock, ring);
    if (error == cudaSuccess)
        error = cudaEventRecord(ring->events[at], stream);
    if (error != cudaSuccess)
        return error;
    ring->seconds[at] = seconds;
    ring->made++;
    return cudaSuccess;
}

void kt_cuda_stamp(struct kt_device *dev, enum kt_queue queue, double *seconds)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    void *before = kt_cuda_enter(cuda->context);
    struct kt_cuda_clock *clock = cuda->failure[0] ? NULL : clock_of(cuda);
    if (clock && !cuda->failure[0])
        kt_cuda_check(cuda,
                      record(clock, &clock->rings[queue], kt_cuda_stream(cuda, queue), seconds),
                      "a time of a trace");
    kt_cuda_leave(cuda->context, before);
}

static cudaError_t store_all(struct kt_cuda_clock *clock)
{
    cudaError_t error = cudaSuccess;
    for (int q = 0; q < KT_QUEUES && error == cudaSuccess; q++)
        error = store_passed(clock, &clock->rings[q]);
    if (error == cudaSuccess && kt_clock() > clock->zero_seconds + zero_is_good_for)
        error = set_zero(clock);
    return error;
}

void kt_cuda_stamped(struct kt_device *dev)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_cuda_clock *clock = kt_cuda_host_side(cuda)->clock;
    if (!clock || cuda->failure[0])
        return;
    void *before = kt_cuda_enter(cuda->context);
    kt_cuda_check(cuda, store_all(clock), "a time of a trace");
    kt_cuda_leave(cuda->context, before);
}
