/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/skinny.h
 * Float32 products with a narrow side, as LoRA's are: the large operand is read or written once, as
 * it lies. Sums over a part of the depth go to scratch and are added in a fixed order. */
#ifndef KT_BACKENDS_CUDA_SKINNY_H
#define KT_BACKENDS_CUDA_SKINNY_H

#include "backends/cuda/product.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KT_CUDA_NARROW = 32 };

enum kt_cuda_form {
    KT_CUDA_GENERAL, /**< for cuBLAS */
    KT_CUDA_LARGE_A, /**< few columns of C: A is large */
    KT_CUDA_LARGE_B, /**< few rows of C: B is large */
    KT_CUDA_LARGE_C  /**< little depth: C is large */
};

static inline enum kt_cuda_form kt_cuda_form(const struct kt_gemm_args *g)
{
    if (g->k > KT_CUDA_NARROW && g->n <= KT_CUDA_NARROW)
        return KT_CUDA_LARGE_A;
    if (g->k > KT_CUDA_NARROW && g->m <= KT_CUDA_NARROW)
        return KT_CUDA_LARGE_B;
    return g->k > 0 && g->k <= KT_CUDA_NARROW && g->n > KT_CUDA_NARROW ? KT_CUDA_LARGE_C
                                                                       : KT_CUDA_GENERAL;
}

/** Bytes of the partial sums. */
uint64_t kt_cuda_skinny_scratch(const struct kt_cuda_device *cuda, const struct kt_gemm_args *g);

/** The most that it is for a product of these sizes, one of m and n narrow, or of smaller ones. */
uint64_t kt_cuda_skinny_bound(const struct kt_cuda_device *cuda, int64_t m, int64_t n, int64_t k);

/** A product of a form that is not general; its operands are F32, but for the large one. */
void kt_cuda_skinny(struct kt_cuda_device *cuda, const struct kt_gemm_args *g, float *partial);

#ifdef __cplusplus
}
#endif
#endif
