/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/host.h
 * The C files of the module among themselves: what libkt does for it, the driver, memory and
 * queues. */
#ifndef KT_BACKENDS_CUDA_HOST_H
#define KT_BACKENDS_CUDA_HOST_H

#include "backend/plugin.h"
#include "backends/cuda/cuda.h"

enum { KT_CUDA_COMPUTES = KT_COMPUTE_BF16 + 1 };

/** A device with what kernels need not know. */
struct kt_cuda_host_side {
    struct kt_cuda_device device;
    struct kt_cuda_pinned *pinned; /**< memory.c */
    struct kt_rates rates[KT_CUDA_COMPUTES];
    struct kt_cuda_clock *clock; /**< stamp.c; NULL = never asked */
};

static inline struct kt_cuda_host_side *kt_cuda_host_side(struct kt_cuda_device *cuda)
{
    return (struct kt_cuda_host_side *)cuda;
}

/** What libkt gave when it opened the module. */
extern const struct kt_backend_host *kt_cuda_host;

/** Keeps the sentence for sync, if it is the first. */
void kt_cuda_remember(struct kt_cuda_device *cuda, const char *format, ...) KT_PRINTF(2, 3);

/* driver.c: what the runtime lacks. The host application may use CUDA too, on another device, so
 * the thread's current context is put back when libkt returns. */

/** False when there is no driver on this machine. Before all others. */
bool kt_cuda_driver_load(void);
/** Makes `context` current. Returns the one that was; NULL = none. */
void *kt_cuda_enter(void *context);
/** `before` is what enter returned. */
void kt_cuda_leave(void *context, void *before);
void *kt_cuda_current(void);
/** Bytes of the allocation that begins at an address of the current device. */
uint64_t kt_cuda_bytes_at(const void *memory);

/* memory.c */
kt_status kt_cuda_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                        const char *what, void **out);
void kt_cuda_free(struct kt_device *dev, enum kt_memory kind, void *memory);
uint64_t kt_cuda_available(const struct kt_device *dev);
bool kt_cuda_pin(struct kt_device *dev, const void *memory, uint64_t bytes);
void kt_cuda_unpin(struct kt_device *dev, const void *memory, uint64_t bytes);
/** How much of `bytes` bytes from an address of the host on one copy may take. */
uint64_t kt_cuda_copy_piece(struct kt_cuda_device *cuda, const void *from, uint64_t bytes);

/* queue.c */
cudaError_t kt_cuda_open_queues(struct kt_cuda_device *cuda);
void kt_cuda_close_queues(struct kt_cuda_device *cuda);
/** Something was queued on COMPUTE. */
void kt_cuda_queued(struct kt_cuda_device *cuda);
void kt_cuda_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                  uint64_t bytes);
kt_mark kt_cuda_mark(struct kt_device *dev, enum kt_queue queue);
void kt_cuda_wait(struct kt_device *dev, enum kt_queue queue, kt_mark mark);
kt_status kt_cuda_sync(struct kt_device *dev, kt_mark mark);
cudaStream_t kt_cuda_stream(struct kt_cuda_device *cuda, enum kt_queue queue);

/* stamp.c */
void kt_cuda_stamp(struct kt_device *dev, enum kt_queue queue, double *seconds);
void kt_cuda_stamped(struct kt_device *dev);
void kt_cuda_close_clock(struct kt_cuda_device *cuda);

/* operations.c: kt_cuda_NAME of cuda.h, with the device's context current */
extern const kt_op_fn kt_cuda_run[KT_OPS];
int32_t kt_cuda_run_first(struct kt_device *dev, enum kt_op op, int32_t count, const void *args,
                          void *scratch);
uint64_t kt_cuda_scratch_bytes(const struct kt_device *dev, enum kt_op op, const void *args);
bool kt_cuda_supports(const struct kt_device *dev, enum kt_op op, const void *args);

#endif
