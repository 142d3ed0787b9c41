/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/product.h
 * What linears and GEMM have in common: factors of one element type, cuBLAS, and scratch that is
 * laid out by the code that counts it. */
#ifndef KT_BACKENDS_CUDA_PRODUCT_H
#define KT_BACKENDS_CUDA_PRODUCT_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Scratch as it is given out; the addresses mean nothing where it is only counted (base NULL). */
struct kt_cuda_pieces {
    char *base;
    uint64_t used;
};

/** `bytes` at a multiple of 256 from the base. */
static inline void *kt_cuda_piece(struct kt_cuda_pieces *pieces, uint64_t bytes)
{
    uintptr_t at = (uintptr_t)pieces->base + pieces->used;
    pieces->used += (bytes + 255) / 256 * 256;
    return (void *)at;
}

/** A dense matrix in scratch, its rows aligned to 16 bytes. */
struct kt_view kt_cuda_piece_view(struct kt_cuda_pieces *pieces, int64_t rows, int64_t cols,
                                  kt_dtype dtype);

/** A matrix that products can take: `view` itself, or room for its elements in `dtype`. */
struct kt_cuda_factor {
    struct kt_view from, view;
    int64_t rows, cols;
    bool copied;
};
struct kt_cuda_factor kt_cuda_factor(struct kt_cuda_pieces *pieces, struct kt_view view,
                                     int64_t rows, int64_t cols, kt_dtype dtype);
/** Enqueues the copy, if there is to be one. */
void kt_cuda_factor_fill(struct kt_cuda_device *cuda, const struct kt_cuda_factor *f);

/** to (+)= from, [rows, cols], each F32 or BF16, rounded to nearest even (cast.cu). from.ld may be
 * 0. */
void kt_cuda_cast(struct kt_cuda_device *cuda, int64_t rows, int64_t cols, struct kt_view from,
                  struct kt_view to, bool accumulate);

/** C (+)= alpha op(A) op(B) by cuBLAS, summed in float32 and, of float32 factors, multiplied in
 * float32. A and B are of one dtype, C of theirs or F32. */
void kt_cuda_multiply(struct kt_cuda_device *cuda, const struct kt_gemm_args *g);

/** The first of `count` operations, as many as one launch can do: linears and GEMM of 1 to
 * KT_CUDA_FEW tokens, which decode no weight into memory and take no scratch (few.cu, gemm_few.cu).
 * Returns how many; 0 where the first is not for it. */
enum {
    KT_CUDA_FEW = 4,
    KT_CUDA_TOGETHER = 24 /* such as fit into a kernel's 4 KiB of arguments */
};
int32_t kt_cuda_linears_few(struct kt_cuda_device *cuda, int32_t count,
                            const struct kt_linear_args *a, bool backward);
/** The same for linears of more tokens and factors in BF16, whose weights are decoded into scratch
 * as far as it reaches (grouped.cu). */
int32_t kt_cuda_linears_grouped(struct kt_cuda_device *cuda, int32_t count,
                                const struct kt_linear_args *a, bool backward, void *scratch);
int32_t kt_cuda_gemms_few(struct kt_cuda_device *cuda, int32_t count, const struct kt_gemm_args *g);

#ifdef __cplusplus
}
#endif
#endif
