/* SPDX-License-Identifier: Apache-2.0 */
/* Products of little depth. A thread keeps KT_SKINNY_WIDTH columns of the right factor and goes
 * down the rows of a block, BATCH at a time. */
#include "backends/cuda/skinny.cuh"

namespace
{

enum { THREADS = 128, ROWS = 64, BATCH = 4, COLUMNS = THREADS * KT_SKINNY_WIDTH };

struct product {
    int64_t m, n;
    int32_t depth;
    struct kt_strided a, b;
    struct kt_view c;
    float alpha;
    bool accumulate;
};

template <int DEPTH>
__device__ __forceinline__ void stage(const struct product &p, int64_t row, float *left)
{
    for (int i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        int r = i / DEPTH, d = i % DEPTH;
        const float *at = p.a.data + (row + r) * p.a.row + d * p.a.col;
        left[i] = row + r < p.m && d < p.depth ? *at : 0.0f;
    }
}

template <int DEPTH>
__device__ __forceinline__ void load_right(const struct product &p, int64_t col,
                                           float (*right)[KT_SKINNY_WIDTH])
{
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
#pragma unroll
        for (int i = 0; i < KT_SKINNY_WIDTH; i++)
            right[d][i] =
                d < p.depth && col + i < p.n ? p.b.data[d * p.b.row + (col + i) * p.b.col] : 0.0f;
}

/* One row: `left` is of A, `x` what C held. */
template <int DEPTH>
__device__ __forceinline__ void add_row(const float *left, float (*right)[KT_SKINNY_WIDTH],
                                        float alpha, float *x)
{
    float sums[KT_SKINNY_WIDTH] = {}, y[KT_SKINNY_WIDTH];
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
        if (d % KT_SKINNY_WIDTH == 0)
            kt_load_4(left + d, y);
#pragma unroll
        for (int i = 0; i < KT_SKINNY_WIDTH; i++)
            sums[i] += y[d % KT_SKINNY_WIDTH] * right[d][i];
    }
#pragma unroll
    for (int i = 0; i < KT_SKINNY_WIDTH; i++)
        x[i] += alpha * sums[i];
}

template <typename T, int DEPTH, bool WIDE>
__global__ void __launch_bounds__(THREADS) multiply_depth(const struct product p)
{
    __shared__ __align__(16) float left[ROWS * DEPTH];
    int64_t row = (int64_t)blockIdx.x * ROWS;
    int64_t col = (int64_t)blockIdx.y * COLUMNS + threadIdx.x * KT_SKINNY_WIDTH;
    int rows = (int)(p.m - row < ROWS ? p.m - row : ROWS);
    float right[DEPTH][KT_SKINNY_WIDTH];
    T *c = (T *)p.c.data + row * p.c.ld + col;
    stage<DEPTH>(p, row, left);
    load_right<DEPTH>(p, col, right);
    __syncthreads();
    if (col >= p.n)
        return;
    for (int r = 0; r < rows; r += BATCH) {
        float x[BATCH][KT_SKINNY_WIDTH] = {};
        if (p.accumulate)
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                kt_skinny_load<WIDE>(c + (r + b < rows ? r + b : r) * p.c.ld, p.n - col, x[b]);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (r + b >= rows)
                break;
            add_row<DEPTH>(left + (r + b) * DEPTH, right, p.alpha, x[b]);
            kt_skinny_store<WIDE>(c + (r + b) * p.c.ld, p.n - col, x[b]);
        }
    }
}

} // namespace

void kt_skinny_depth(cudaStream_t stream, const struct kt_gemm_args *g)
{
    struct product p = {g->m,
                        g->n,
                        (int32_t)g->k,
                        kt_strided_view(&g->a, g->trans_a),
                        kt_strided_view(&g->b, g->trans_b),
                        g->c,
                        g->alpha,
                        g->accumulate};
    dim3 blocks((unsigned)((g->m + ROWS - 1) / ROWS), (unsigned)((g->n + COLUMNS - 1) / COLUMNS));
#define MULTIPLY(T, DEPTH, WIDE) multiply_depth<T, DEPTH, WIDE><<<blocks, THREADS, 0, stream>>>(p)
    KT_SKINNY_BY_TYPE(p.c, p.n, p.depth, MULTIPLY);
#undef MULTIPLY
}
