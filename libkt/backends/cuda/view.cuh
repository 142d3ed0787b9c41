/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/view.cuh
 * Elements of views inside kernels: F32 or BF16 in memory, float in registers. */
#ifndef KT_BACKENDS_CUDA_VIEW_CUH
#define KT_BACKENDS_CUDA_VIEW_CUH

#include <cuda_bf16.h>

#include "backends/cuda/cuda.h"

static __device__ __forceinline__ float kt_load(const float *x)
{
    return *x;
}

static __device__ __forceinline__ float kt_load(const __nv_bfloat16 *x)
{
    return __bfloat162float(*x);
}

static __device__ __forceinline__ void kt_store(float *to, float x)
{
    *to = x;
}

static __device__ __forceinline__ void kt_store(__nv_bfloat16 *to, float x)
{
    *to = __float2bfloat16_rn(x);
}

/** The sum of a whole warp, in all its threads. */
static __device__ __forceinline__ float kt_warp_sum(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(~0u, x, step);
    return x;
}

/** CALL(T) with the element type of a view's dtype. */
#define KT_BY_DTYPE(dtype, CALL)                                                                   \
    do {                                                                                           \
        if ((dtype) == KT_DTYPE_BF16)                                                              \
            CALL(__nv_bfloat16);                                                                   \
        else                                                                                       \
            CALL(float);                                                                           \
    } while (0)

#endif
