/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/quad.cuh
 * Rows of views in quads: four consecutive elements from a multiple of four on, which one thread
 * has. ALIGNED: every row begins at an address for whole quads and ends with a whole one, and a
 * quad is one access; else its elements are accessed one by one. Sums have the same order in both,
 * so that bits do not depend on addresses. */
#ifndef KT_BACKENDS_CUDA_QUAD_CUH
#define KT_BACKENDS_CUDA_QUAD_CUH

#include "backends/cuda/vector.cuh"

struct kt_quad {
    float v[4];
};

template <bool ALIGNED, typename T>
static __device__ __forceinline__ struct kt_quad kt_get_quad(const T *x, int64_t left)
{
    struct kt_quad q;
    if (ALIGNED) {
        kt_load_4(x, q.v);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            q.v[i] = i < left ? kt_load(x + i) : 0;
    }
    return q;
}

template <bool ALIGNED, typename T>
static __device__ __forceinline__ void kt_put_quad(T *x, int64_t left, const struct kt_quad &q)
{
    if (ALIGNED) {
        kt_store_4(x, q.v);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < left)
                kt_store(x + i, q.v[i]);
    }
}

/** The quad at element `at` of a view; elements from `left` on are not the row's and read as 0. */
template <bool ALIGNED>
static __device__ __forceinline__ struct kt_quad kt_get(const struct kt_view &view, int64_t at,
                                                        int64_t left)
{
    if (view.dtype == KT_DTYPE_BF16)
        return kt_get_quad<ALIGNED>((const __nv_bfloat16 *)view.data + at, left);
    return kt_get_quad<ALIGNED>((const float *)view.data + at, left);
}

template <bool ALIGNED>
static __device__ __forceinline__ void kt_put(const struct kt_view &view, int64_t at, int64_t left,
                                              const struct kt_quad &q)
{
    if (view.dtype == KT_DTYPE_BF16)
        kt_put_quad<ALIGNED>((__nv_bfloat16 *)view.data + at, left, q);
    else
        kt_put_quad<ALIGNED>((float *)view.data + at, left, q);
}

static inline bool kt_has_quads(const struct kt_view *view, int64_t dim)
{
    uintptr_t bytes = 4 * (uintptr_t)kt_view_element(view->dtype);
    return dim % 4 == 0 && view->ld % 4 == 0 && (uintptr_t)view->data % bytes == 0;
}

/* -- threads over [rows, items] ---------------------------------------------------------------- */

enum { KT_BLOCK = 256 };

/** A thread for every item of every row, and none for more rows than there are; those beyond what a
 * grid may have are reached by KT_EACH_ROW's steps. */
struct kt_grid {
    dim3 blocks, threads;
};

static inline struct kt_grid kt_grid_of(int64_t rows, int64_t items)
{
    struct kt_grid g = {dim3(1, 1), dim3(1, 1)};
    while (g.threads.x < KT_BLOCK && g.threads.x < items)
        g.threads.x *= 2;
    g.threads.y = KT_BLOCK / g.threads.x;
    if (g.threads.y > rows)
        g.threads.y = (unsigned)rows;
    int64_t tall = (rows + g.threads.y - 1) / g.threads.y;
    g.blocks.x = (unsigned)((items + g.threads.x - 1) / g.threads.x);
    g.blocks.y = (unsigned)(tall < 65535 ? tall : 65535);
    return g;
}

static __device__ __forceinline__ int64_t kt_item(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/** for each row t < rows of this thread */
#define KT_EACH_ROW(t, rows)                                                                       \
    for (int64_t t = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; t < (rows);                   \
         t += (int64_t)gridDim.y * blockDim.y)

/** KERNEL<ALIGNED> over [rows, items] of a device's operation. */
#define KT_LAUNCH(cuda, what, kernel, aligned, rows, items, ...)                                   \
    do {                                                                                           \
        struct kt_grid grid_ = kt_grid_of(rows, items);                                            \
        if (aligned)                                                                               \
            kernel<true><<<grid_.blocks, grid_.threads, 0, (cuda)->compute>>>(__VA_ARGS__);        \
        else                                                                                       \
            kernel<false><<<grid_.blocks, grid_.threads, 0, (cuda)->compute>>>(__VA_ARGS__);       \
        kt_cuda_launched(cuda, what);                                                              \
    } while (0)

#endif
