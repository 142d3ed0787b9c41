/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/skinny.cuh
 * What the kernels of narrow products have in common. */
#ifndef KT_BACKENDS_CUDA_SKINNY_CUH
#define KT_BACKENDS_CUDA_SKINNY_CUH

#include "backends/cuda/skinny.h"
#include "backends/cuda/vector.cuh"

/** Elements that a thread takes of a row of the large operand. */
enum { KT_SKINNY_WIDTH = 4 };

/** A float32 matrix that may lie transposed: element (i, j) at data[i * row + j * col]. */
struct kt_strided {
    const float *data;
    int64_t row, col;
};

static inline struct kt_strided kt_strided_view(const struct kt_view *view, bool transposed)
{
    struct kt_strided m = {(const float *)view->data, view->ld, 1};
    if (transposed)
        m.row = 1, m.col = view->ld;
    return m;
}

/** A product over the depth with a large factor: sum over d of large(i, d) * small(d, j), i < size,
 * j < width, a part of the depth at a time. */
struct kt_skinny {
    int64_t size, depth;
    int32_t width;
    struct kt_view large;    /**< [size, depth], or [depth, size] */
    struct kt_strided small; /**< [depth, width] */
    int64_t part;            /**< depth of a part, a multiple of the kernel's step */
    int32_t parts;
    float *partial; /**< [parts, size, width], or [parts, width, size] */
};

/** Up to KT_SKINNY_WIDTH elements, zeros after the first `left`; all of them and aligned if WIDE.
 */
template <bool WIDE, typename T>
static __device__ __forceinline__ void kt_skinny_load(const T *x, int64_t left, float *to)
{
    if constexpr (WIDE)
        kt_load_4(x, to);
    else
        for (int i = 0; i < KT_SKINNY_WIDTH; i++)
            to[i] = i < left ? kt_load(x + i) : 0.0f;
}

template <bool WIDE, typename T>
static __device__ __forceinline__ void kt_skinny_store(T *to, int64_t left, const float *x)
{
    if constexpr (WIDE)
        kt_store_4(to, x);
    else
        for (int i = 0; i < KT_SKINNY_WIDTH; i++)
            if (i < left)
                kt_store(to + i, x[i]);
}

/** Whether rows of `cols` elements can be taken KT_SKINNY_WIDTH at a time. */
static inline bool kt_skinny_is_wide(const struct kt_view *view, int64_t cols)
{
    int64_t bytes = KT_SKINNY_WIDTH * kt_view_element(view->dtype);
    return cols % KT_SKINNY_WIDTH == 0 && view->ld % KT_SKINNY_WIDTH == 0 &&
           (uintptr_t)view->data % (uintptr_t)bytes == 0;
}

/** CALL(T, WIDTH, WIDE) for a large operand and the narrow side's width, rounded up. */
#define KT_SKINNY_BY_WIDTH(T, width, WIDE, CALL)                                                   \
    do {                                                                                           \
        if ((width) <= 8)                                                                          \
            CALL(T, 8, WIDE);                                                                      \
        else if ((width) <= 16)                                                                    \
            CALL(T, 16, WIDE);                                                                     \
        else                                                                                       \
            CALL(T, 32, WIDE);                                                                     \
    } while (0)

#define KT_SKINNY_BY_TYPE(view, cols, width, CALL)                                                 \
    do {                                                                                           \
        bool wide = kt_skinny_is_wide(&(view), cols), bf16 = (view).dtype == KT_DTYPE_BF16;        \
        if (bf16 && wide)                                                                          \
            KT_SKINNY_BY_WIDTH(__nv_bfloat16, width, true, CALL);                                  \
        else if (bf16)                                                                             \
            KT_SKINNY_BY_WIDTH(__nv_bfloat16, width, false, CALL);                                 \
        else if (wide)                                                                             \
            KT_SKINNY_BY_WIDTH(float, width, true, CALL);                                          \
        else                                                                                       \
            KT_SKINNY_BY_WIDTH(float, width, false, CALL);                                         \
    } while (0)

/** Depth of which a part is a multiple, and elements of the size that a block takes. */
enum {
    KT_SKINNY_ROWS_STEP = 512,
    KT_SKINNY_ROWS_BLOCK = 32,
    KT_SKINNY_COLUMNS_STEP = 64,
    KT_SKINNY_COLUMNS_BLOCK = 256
};

/** partial of a large factor that is [size, depth] (skinny_rows.cu), or [depth, size]
 * (skinny_columns.cu). */
void kt_skinny_rows(cudaStream_t stream, const struct kt_skinny *s);
void kt_skinny_columns(cudaStream_t stream, const struct kt_skinny *s);

/** Little depth (skinny_depth.cu). */
void kt_skinny_depth(cudaStream_t stream, const struct kt_gemm_args *g);

#endif
