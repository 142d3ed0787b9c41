/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/product.h"

/* Strides of scratch are multiples of this many elements. */
enum { STRIDE = 8 };

struct kt_view kt_cuda_piece_view(struct kt_cuda_pieces *pieces, int64_t rows, int64_t cols,
                                  kt_dtype dtype)
{
    int64_t ld = (cols + STRIDE - 1) / STRIDE * STRIDE;
    return (struct kt_view){
        .data = kt_cuda_piece(pieces, (uint64_t)(rows * ld * kt_view_element(dtype))),
        .ld = ld,
        .dtype = dtype};
}

/* A matrix of one row may have any stride; cuBLAS takes none below the width. */
static struct kt_view with_stride(struct kt_view view, int64_t rows, int64_t cols)
{
    if (rows <= 1)
        view.ld = cols;
    return view;
}

struct kt_cuda_factor kt_cuda_factor(struct kt_cuda_pieces *pieces, struct kt_view view,
                                     int64_t rows, int64_t cols, kt_dtype dtype)
{
    struct kt_cuda_factor f = {.from = view, .rows = rows, .cols = cols};
    f.view = with_stride(view, rows, cols);
    f.copied = view.dtype != dtype || f.view.ld < cols;
    if (f.copied)
        f.view = kt_cuda_piece_view(pieces, rows, cols, dtype);
    return f;
}

void kt_cuda_factor_fill(struct kt_cuda_device *cuda, const struct kt_cuda_factor *f)
{
    if (f->copied)
        kt_cuda_cast(cuda, f->rows, f->cols, f->from, f->view, false);
}

static cudaDataType element_type(kt_dtype dtype)
{
    return dtype == KT_DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static void clear(struct kt_cuda_device *cuda, const struct kt_gemm_args *g)
{
    size_t size = (size_t)kt_view_element(g->c.dtype);
    kt_cuda_check(cuda,
                  cudaMemset2DAsync(g->c.data, (size_t)g->c.ld * size, 0, (size_t)g->n * size,
                                    (size_t)g->m, cuda->compute),
                  "clearing a product");
}

/* cuBLAS is column-major: what it sees is C^T = op(B)^T op(A)^T. */
void kt_cuda_multiply(struct kt_cuda_device *cuda, const struct kt_gemm_args *g)
{
    struct kt_gemm_args p = *g;
    float beta = p.accumulate ? 1.0f : 0.0f;
    if (p.m <= 0 || p.n <= 0)
        return;
    p.a = with_stride(p.a, p.trans_a ? p.k : p.m, p.trans_a ? p.m : p.k);
    p.b = with_stride(p.b, p.trans_b ? p.n : p.k, p.trans_b ? p.k : p.n);
    p.c = with_stride(p.c, p.m, p.n);
    if (p.k <= 0) {
        if (!p.accumulate)
            clear(cuda, &p);
        return;
    }
    cublasSetMathMode(cuda->cublas,
                      CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    kt_cuda_check_cublas(cuda,
                         cublasGemmEx_64(cuda->cublas, p.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                                         p.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N, p.n, p.m, p.k,
                                         &p.alpha, p.b.data, element_type(p.b.dtype), p.b.ld,
                                         p.a.data, element_type(p.a.dtype), p.a.ld, &beta, p.c.data,
                                         element_type(p.c.dtype), p.c.ld, CUBLAS_COMPUTE_32F,
                                         CUBLAS_GEMM_DEFAULT),
                         "a matrix product");
}
