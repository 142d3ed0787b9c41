/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/kernels.h
 * The kernels that exist once for each instruction set, as one table. kt_kernels_init fills it in
 * ascending order of instruction sets; each set overrides what it does better. Every kernel
 * computes what its plain C twin computes, to float32 rounding (the order of sums and the fusing of
 * multiply-add differ); dot_weight, which has none, what kt_weight_decode and products would.
 * Pointers need the alignment of their element only. Kernels never touch memory outside the rows
 * and columns that they are given. */
#ifndef KT_BACKENDS_CPU_KERNELS_H
#define KT_BACKENDS_CPU_KERNELS_H

#include "weights/weight.h"

/** A matrix read where it lies: element (row, col) at data[row * ld + col], ld in elements.
 * dtype is F32, F16 or BF16. */
struct kt_matrix {
    const void *data;
    kt_dtype dtype;
    int64_t ld;
};

enum { KT_GEMM_MAX_ROWS = 32, KT_GEMM_MAX_COLS = 64 };

/** What a decoder makes of an element: the float32 that kt_weight_decode gives, bit by bit (any NaN
 * for a NaN), or that rounded to bfloat16 (to nearest even) and kept as float32 or as bfloat16. */
enum kt_decoding { KT_DECODE_F32, KT_DECODE_ROUNDED, KT_DECODE_BF16, KT_DECODINGS };

/** to[r * ld + c] = element (row + r, col + c) of a weight in any format, r < rows, c < cols; ld in
 * elements of `to`. `ahead` bytes behind what is read, perhaps in another weight, is what will be
 * read next: it is fetched. */
typedef void (*kt_decode_fn)(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                             int64_t cols, int64_t ahead, void *to, int64_t ld);

/** Rows [row, row + rows) and columns [col, col + cols) of a weight as bfloat16, pairs of rows
 * interleaved: for each 32 rows and 32 columns [2][16 pairs of rows][16 columns][2], of which the
 * first half has columns 0 to 3 of every eight. 32 rows take 2 KiB, `stride` bytes lie between 32
 * columns. `ahead` as above. False, having written nothing, where it does not do that for the
 * format, its scales, or a number of rows or columns. */
typedef bool (*kt_decode_pairs_fn)(const struct kt_weight *w, int64_t row, int64_t rows,
                                   int64_t col, int64_t cols, int64_t ahead, void *to,
                                   int64_t stride);

/** How one arithmetic multiplies on one instruction set. The left factor is converted row by row;
 * the right one is packed into panels of nr columns; a tile of up to mr x nr results stays in
 * registers. Factors are rounded to bfloat16 (to nearest even) when `bf16` is set, whatever type
 * the elements have: a set without bfloat16 instructions keeps rounded values in float32. */
struct kt_gemm_kernel {
    bool bf16;
    int32_t mr, nr;
    int32_t element_size; /**< of converted rows and panels: 4 (float32) or 2 (bfloat16) */
    int32_t k_step;       /**< converted rows and panels are zero-padded to a multiple of this */
    int32_t row_step;     /**< a tile of this many rows takes as long as one of fewer; 0 = 1 */

    /** Before and after a thread's calls of tile; NULL = nothing. */
    void (*enter)(void);
    void (*leave)(void);

    /** to[i] = from[i] as an element, i < n, then zeros up to a multiple of k_step. */
    void (*convert)(int64_t n, const float *from, void *to);
    /** Packs `cols` columns and k rows of the right factor into panels of nr columns that follow
     * each other, the last one filled up with zeros. pack_nt: b holds the factor transposed,
     * [cols, k]; pack_nn: b is [k, cols]. Layout of a panel: [k / k_step][nr][k_step]. */
    void (*pack_nt)(int64_t k, int64_t cols, const struct kt_matrix *b, void *panels);
    void (*pack_nn)(int64_t k, int64_t cols, const struct kt_matrix *b, void *panels);
    /** c[rows, cols] (+)= alpha * a * panel. rows in 1 .. mr, cols in 1 .. nr; a: converted rows,
     * lda in elements; k is a multiple of k_step. */
    void (*tile)(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                 const void *panel, float alpha, bool accumulate, float *c, int64_t ldc);
    /** c[rows, cols] (+)= alpha * a * b^T straight from b [cols, k] without packing, any rows and
     * cols; worth it up to dot_rows. A kernel whose elements are rounded float32 takes b as it is,
     * so b must be BF16 there. a: converted rows, zeros up to a multiple of k_step. */
    int32_t dot_rows;
    void (*dot)(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                const struct kt_matrix *b, float alpha, bool accumulate, float *c, int64_t ldc);
    /** c[cols] (+)= alpha * a * (rows [row, row + cols) and columns [col, col + k) of a weight)^T,
     * of one row a of k converted elements. Codes are multiplied as they are and sums take the
     * scales, so weights are not rounded as `decode` rounds them. False, having done nothing,
     * where it does not do that for the format, its scales or col. NULL = none */
    bool (*dot_weight)(int64_t cols, int64_t k, const void *a, const struct kt_weight *w,
                       int64_t row, int64_t col, float alpha, bool accumulate, float *c);
    /** c[rows, cols] (+)= a * b straight from b [k, cols], row after row of b as they lie: a sum of
     * outer products; any rows and cols, worth it up to outer_rows. b as in dot. */
    int32_t outer_rows;
    void (*outer)(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                  const struct kt_matrix *b, bool accumulate, float *c, int64_t ldc);
    const kt_decode_fn *decode; /**< by enum kt_decoding */
};

/** Kernels over one row of n floats. */
struct kt_row_kernels {
    float (*dot)(int64_t n, const float *x, const float *y);
    float (*sum)(int64_t n, const float *x);
    float (*max)(int64_t n, const float *x); /**< n >= 1 */
    /** y = exp(x * scale - shift); returns the sum. y may be x. */
    float (*exp_sum)(int64_t n, float scale, float shift, const float *x, float *y);
    /** y = exp(x * scale - shift), a shift for each element; y may be x */
    void (*exp_minus)(int64_t n, float scale, const float *x, const float *shift, float *y);
    /** dp = p * (dp - delta) * scale: gradient of unscaled scores */
    void (*softmax_backward)(int64_t n, float scale, const float *p, const float *delta, float *dp);
    /** y (+)= alpha * x */
    void (*scale_add)(int64_t n, float alpha, const float *x, bool accumulate, float *y);
    /** y = x * scale * weight */
    void (*scale_mul)(int64_t n, float scale, const float *x, const float *weight, float *y);
    /** sum of x * y * z */
    float (*dot3)(int64_t n, const float *x, const float *y, const float *z);
    /** dx (+)= a * dy * weight - b * x */
    void (*norm_backward)(int64_t n, float a, float b, const float *weight, const float *x,
                          const float *dy, bool accumulate, float *dx);
    void (*sigmoid)(int64_t n, const float *x, float *y);
    /** h = silu(gate) * up */
    void (*silu_mul)(int64_t n, const float *gate, const float *up, float *h);
    /** gradients of the above times scale; outputs may be the inputs of the same name */
    void (*silu_mul_backward)(int64_t n, float scale, const float *gate, const float *up,
                              const float *dh, float *dgate, float *dup);
    /** Widens F32, F16 or BF16. */
    void (*widen)(int64_t n, kt_dtype dtype, const void *x, float *y);
    void (*to_bf16)(int64_t n, const float *x, uint16_t *y);
};

struct kt_kernels {
    struct kt_gemm_kernel f32, bf16;
    struct kt_row_kernels row;
    const kt_decode_fn *decode;      /**< by enum kt_decoding; `f32` and `bf16` have the same */
    kt_decode_pairs_fn decode_pairs; /**< NULL = none */
};

/** Fills the table for a set of KT_ISA_* bits (as kt_cpu_detect found and masked them). */
void kt_kernels_init(struct kt_kernels *kernels, uint32_t isa);

/* One per file kernels_*.c: overrides what that instruction set does better. */
void kt_kernels_init_c(struct kt_kernels *kernels);
void kt_kernels_init_avx2(struct kt_kernels *kernels);
void kt_kernels_init_avx512(struct kt_kernels *kernels);
void kt_kernels_init_avx512bf16(struct kt_kernels *kernels);
void kt_kernels_init_avx512vbmi(struct kt_kernels *kernels);
/** Over those of AVX-512-BF16; emulated: with tiles of plain C, for tests. */
void kt_kernels_init_amx(struct kt_kernels *kernels);
void kt_kernels_init_amx_emulated(struct kt_kernels *kernels);

/* One per file decode_*.c, likewise. */
extern const kt_decode_fn kt_decoders_c[KT_DECODINGS];
extern const kt_decode_fn kt_decoders_avx2[KT_DECODINGS];
extern const kt_decode_fn kt_decoders_avx512[KT_DECODINGS];
extern const kt_decode_fn kt_decoders_avx512bf16[KT_DECODINGS];
extern const kt_decode_fn kt_decoders_avx512vbmi[KT_DECODINGS];
bool kt_decode_pairs_avx512vbmi(const struct kt_weight *w, int64_t row, int64_t rows, int64_t col,
                                int64_t cols, int64_t ahead, void *to, int64_t stride);

static inline const struct kt_gemm_kernel *kt_gemm_kernel_for(const struct kt_kernels *kernels,
                                                              kt_compute compute)
{
    return compute == KT_COMPUTE_BF16 ? &kernels->bf16 : &kernels->f32;
}

#endif
