/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/decode.cuh
 * Elements of weights inside kernels, in any format. */
#ifndef KT_BACKENDS_CUDA_DECODE_CUH
#define KT_BACKENDS_CUDA_DECODE_CUH

#include "backends/cuda/decode_element.h"

/** The scale of element (row, col); of a weight that has scales. */
static __device__ __forceinline__ float kt_cuda_scale(const struct kt_weight &w, int64_t row,
                                                      int64_t col)
{
    uint32_t r = (uint32_t)(w.first_row + row) / (uint32_t)w.scale_rows;
    uint32_t c = (uint32_t)col / (uint32_t)w.scale_cols;
    return w.scale[(int64_t)r * w.scale_ld + c];
}

/** What kt_weight_decode gives for element (row, col). */
static __device__ __forceinline__ float kt_cuda_element(const struct kt_weight &w, int64_t row,
                                                        int64_t col)
{
    const uint8_t *at = (const uint8_t *)w.data + row * kt_cuda_row_bytes(w.dtype, w.cols);
    float x = kt_cuda_decode_element(w.dtype, at, col);
    return w.scale ? x * kt_cuda_scale(w, row, col) : x;
}

/** The same of KT_CUDA_RUN elements from a multiple of it on, of a weight that kt_cuda_has_runs;
 * DTYPE is the weight's. */
template <kt_dtype DTYPE>
static __device__ __forceinline__ void kt_cuda_load_run(const struct kt_weight &w, int64_t row,
                                                        int64_t col, float *to)
{
    const uint8_t *at = (const uint8_t *)w.data + row * kt_cuda_row_bytes(DTYPE, w.cols);
    kt_cuda_decode_run(DTYPE, at, col, to);
    if (w.scale) {
        float scale = kt_cuda_scale(w, row, col);
        for (int i = 0; i < KT_CUDA_RUN; i++)
            to[i] *= scale;
    }
}

/** Whether rows consist of whole runs, aligned and under one scale each. */
static inline bool kt_cuda_has_runs(const struct kt_weight *w)
{
    int64_t align = kt_cuda_run_align(w->dtype);
    return w->cols % KT_CUDA_RUN == 0 && (int64_t)((uintptr_t)w->data % (uintptr_t)align) == 0 &&
           kt_cuda_row_bytes(w->dtype, w->cols) % align == 0 &&
           (!w->scale || w->scale_cols % KT_CUDA_RUN == 0 || w->scale_cols >= w->cols);
}

/** CALL(DTYPE) with a weight's dtype as a constant. */
#define KT_CUDA_BY_FORMAT(dtype, CALL)                                                             \
    do {                                                                                           \
        switch (dtype) {                                                                           \
        case KT_DTYPE_F32:                                                                         \
            CALL(KT_DTYPE_F32);                                                                    \
            break;                                                                                 \
        case KT_DTYPE_F16:                                                                         \
            CALL(KT_DTYPE_F16);                                                                    \
            break;                                                                                 \
        case KT_DTYPE_BF16:                                                                        \
            CALL(KT_DTYPE_BF16);                                                                   \
            break;                                                                                 \
        case KT_DTYPE_F8_E4M3:                                                                     \
            CALL(KT_DTYPE_F8_E4M3);                                                                \
            break;                                                                                 \
        case KT_DTYPE_I8:                                                                          \
            CALL(KT_DTYPE_I8);                                                                     \
            break;                                                                                 \
        case KT_DTYPE_I4:                                                                          \
            CALL(KT_DTYPE_I4);                                                                     \
            break;                                                                                 \
        case KT_DTYPE_Q8_0:                                                                        \
            CALL(KT_DTYPE_Q8_0);                                                                   \
            break;                                                                                 \
        case KT_DTYPE_Q4_0:                                                                        \
            CALL(KT_DTYPE_Q4_0);                                                                   \
            break;                                                                                 \
        case KT_DTYPE_Q4_K:                                                                        \
            CALL(KT_DTYPE_Q4_K);                                                                   \
            break;                                                                                 \
        default:                                                                                   \
            CALL(KT_DTYPE_Q6_K);                                                                   \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

#endif
