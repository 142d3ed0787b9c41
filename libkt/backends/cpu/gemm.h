/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/gemm.h
 * Matrix products over the micro-kernels of kernels.h: C[m,n] (+)= alpha * A[m,k] * B[k,n].
 *
 * A is float32 activations, converted into rows of the kernel's elements, as many at a time as fit
 * into bounded scratch. B is packed by blocks of KT_GEMM_BLOCK_COLS columns x a depth that fits
 * level-2 cache, in scratch of the thread that works on the block, straight from the memory it lies
 * in. Each element of C is summed by one thread in ascending k, so that its bits do not depend on
 * the number of threads. A product of few rows with a transposed B is made of dot products along k
 * instead, without packing. */
#ifndef KT_BACKENDS_CPU_GEMM_H
#define KT_BACKENDS_CPU_GEMM_H

#include "backends/cpu/cpu.h"

enum { KT_GEMM_BLOCK_COLS = 128, KT_GEMM_BLOCK_BYTES = 1024 };

/** Whether a product of m rows with an [n, k] factor takes less than about 20 microseconds and is
 * not worth waking threads for; reading the factor counts as ten rows. */
static inline bool kt_gemm_is_small(int64_t m, int64_t n, int64_t k)
{
    return (double)(m + 10) * (double)n * (double)k < 2e6;
}

/** Right factor; transposed: b holds [n, k]. */
struct kt_gemm_right {
    struct kt_matrix matrix;
    bool transposed;
    /** instead of `matrix`: a weight in any format, borrowed, from its element (row, col) on */
    const struct kt_weight *weight;
    int64_t row, col;
};

struct kt_gemm_right kt_gemm_right_weight(const struct kt_weight *w, bool transposed);

/** Whether the right factor is packed, or read as it lies. */
enum kt_gemm_way {
    KT_GEMM_PACKED,
    KT_GEMM_DIRECT,
    KT_GEMM_ROW /**< direct, and codes are taken without their scales (dot_weight): of a product
                   that has one row in all, so that no cutting into blocks changes its arithmetic */
};

/** The faster way for a product of m rows. */
enum kt_gemm_way kt_gemm_way(const struct kt_gemm_kernel *kernel, int64_t m,
                             const struct kt_gemm_right *b);

/** Elements between converted rows of depth k: padded against cache-set conflicts. */
int64_t kt_gemm_row_stride(const struct kt_gemm_kernel *kernel, int64_t k);

/** Columns and depth of a packed block. */
int64_t kt_gemm_block_cols(const struct kt_gemm_kernel *kernel);
int64_t kt_gemm_block_depth(const struct kt_gemm_kernel *kernel);

/** Columns that a product of m rows with a factor that is not transposed sums at a time, when
 * KT_GEMM_DIRECT. */
int64_t kt_gemm_outer_cols(int64_t m);

/** Bytes of scratch that one thread needs for packed panels and decoded pieces. */
uint64_t kt_gemm_panel_bytes(const struct kt_gemm_kernel *kernel);

/** One block on the calling thread: `a` converted rows (lda in elements), any m and n. */
void kt_gemm_block(const struct kt_gemm_kernel *kernel, int64_t m, int64_t n, int64_t k,
                   float alpha, const void *a, int64_t lda, const struct kt_gemm_right *b,
                   bool accumulate, float *c, int64_t ldc, void *panels);

/** The same in a given way. KT_GEMM_DIRECT where kt_gemm_way gives it for some m; KT_GEMM_ROW
 * where m is 1 and kt_gemm_way gives KT_GEMM_DIRECT. */
void kt_gemm_block_by(enum kt_gemm_way way, const struct kt_gemm_kernel *kernel, int64_t m,
                      int64_t n, int64_t k, float alpha, const void *a, int64_t lda,
                      const struct kt_gemm_right *b, bool accumulate, float *c, int64_t ldc,
                      void *panels);

/** The right factor from row `row` and column `col` on. */
struct kt_gemm_right kt_gemm_right_at(const struct kt_gemm_right *b, int64_t row, int64_t col);

/** A whole product: C[m,n] (+)= alpha * A * B. */
struct kt_gemm_product {
    const struct kt_gemm_kernel *kernel;
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t lda;
    bool trans_a; /**< a is [k, m] */
    struct kt_gemm_right b;
    bool accumulate;
    float *c;
    int64_t ldc;
};

/** Bytes of scratch that kt_gemm_run takes; addresses of factors and of the result are not looked
 * at. */
uint64_t kt_gemm_run_scratch(const struct kt_pool *pool, const struct kt_gemm_product *product);

/** Runs it over the pool, in scratch that is 64-byte aligned. */
void kt_gemm_run(struct kt_pool *pool, const struct kt_gemm_product *product, void *scratch);

#endif
