/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/cuda.h
 * The CUDA device from inside, and its operations, each in the file of its name. Host code is C
 * (.c), kernels and what launches them are CUDA C (.cu); this header is read by both. */
#ifndef KT_BACKENDS_CUDA_CUDA_H
#define KT_BACKENDS_CUDA_CUDA_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "backend/device.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kt_cuda_queue; /* queue.c */

struct kt_cuda_device {
    struct kt_device base;
    struct kt_device_ops ops; /**< with this device's name */
    char name[16];
    int index;
    int num_sms;
    size_t shared_bytes; /**< most that a block may ask for */
    void *context;       /**< the driver's; current while libkt is inside */
    cudaStream_t compute;
    cublasHandle_t cublas; /**< on `compute`, with a workspace of its own */
    void *workspace;       /**< cuBLAS's */
    struct kt_cuda_queue *queues;
    uint64_t allocated; /**< bytes of its memory that libkt holds */
    char failure[256];  /**< the first; empty = none */
};

static inline struct kt_cuda_device *kt_cuda(struct kt_device *dev)
{
    return (struct kt_cuda_device *)dev;
}

/** Keeps the sentence for sync, if `error` is one and the first: "what: CUDA's words". */
void kt_cuda_check(struct kt_cuda_device *cuda, cudaError_t error, const char *what);
void kt_cuda_check_cublas(struct kt_cuda_device *cuda, cublasStatus_t status, const char *what);
/** The same for the kernel that was just launched. */
static inline void kt_cuda_launched(struct kt_cuda_device *cuda, const char *what)
{
    kt_cuda_check(cuda, cudaGetLastError(), what);
}

/** Whether the module holds code for the current device (rows.cu). */
cudaError_t kt_cuda_has_code(void);

/* Operations enqueue on `compute`. Every view may be F32 or BF16, each by itself. */
#define KT_CUDA_OP(name, op, type)                                                                 \
    void kt_cuda_##name(struct kt_device *dev, const void *args, void *scratch);
KT_EACH_OP(KT_CUDA_OP)
#undef KT_CUDA_OP

/** Scratch of those that take some. */
uint64_t kt_cuda_linear_forward_scratch(const struct kt_cuda_device *cuda,
                                        const struct kt_linear_args *a);
uint64_t kt_cuda_linear_backward_scratch(const struct kt_cuda_device *cuda,
                                         const struct kt_linear_args *a);
uint64_t kt_cuda_gemm_scratch(const struct kt_cuda_device *cuda, const struct kt_gemm_args *a);
uint64_t kt_cuda_attention_forward_scratch(const struct kt_cuda_device *cuda,
                                           const struct kt_attention_args *a);
uint64_t kt_cuda_attention_backward_scratch(const struct kt_cuda_device *cuda,
                                            const struct kt_attention_args *a);
/** Whether a block's shared memory holds what routing a token takes. */
bool kt_cuda_router_supported(const struct kt_cuda_device *cuda, const struct kt_router_args *a);

/** The whole weight as BF16 (rounded to nearest even) or F32, dense row-major [rows, cols], in `to`
 * (decode.cu). Any format of weights/weight.h. */
void kt_cuda_decode(struct kt_cuda_device *cuda, const struct kt_weight *w, kt_dtype dtype,
                    void *to);

#ifdef __cplusplus
}
#endif
#endif
