/* SPDX-License-Identifier: Apache-2.0 */
/* Linears of few tokens: weights are multiplied as they lie in memory, which is read once. One
 * launch serves several linears. */
#include "backends/cuda/decode.cuh"
#include "backends/cuda/product.h"
#include "backends/cuda/vector.cuh"

namespace
{

enum { WARP = 32, WARPS = 8, THREADS = WARP * WARPS };

struct few {
    struct kt_weight weight;
    struct kt_view x, y;
    int32_t tokens;
    bool accumulate;
};

struct several {
    struct few each[KT_CUDA_TOGETHER];
    bool rounds;
};

__device__ __forceinline__ float as_factor(float x, bool rounds)
{
    return rounds ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

template <typename T> __device__ __forceinline__ void put(T *to, float x, bool accumulate)
{
    kt_store(to, accumulate ? kt_load(to) + x : x);
}

__device__ __forceinline__ void put(const struct few &f, int64_t at, float x)
{
    if (f.y.dtype == KT_DTYPE_BF16)
        put((__nv_bfloat16 *)f.y.data + at, x, f.accumulate);
    else
        put((float *)f.y.data + at, x, f.accumulate);
}

/* -- forward: a warp has rows of the weight -----------------------------------------------------
 */

enum { ROWS = 2 /* of a warp */ };

template <kt_dtype DTYPE, typename X, int TOKENS>
__global__ void __launch_bounds__(THREADS) multiply_rows(const __grid_constant__ struct several all)
{
    const struct few &f = all.each[blockIdx.y];
    const struct kt_weight &w = f.weight;
    const X *__restrict__ x = (const X *)f.x.data;
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
    float sums[ROWS][TOKENS] = {};
    if (row >= w.rows)
        return;
#pragma unroll(TOKENS == 1 ? 4 : 1)
    for (int64_t col = lane * KT_CUDA_RUN; col < w.cols; col += WARP * KT_CUDA_RUN) {
        float values[ROWS][KT_CUDA_RUN];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            kt_cuda_load_run<DTYPE>(w, row + r < w.rows ? row + r : row, col, values[r]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float factors[KT_CUDA_RUN];
            kt_load_8(x + (t < f.tokens ? t : 0) * f.x.ld + col, factors);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < KT_CUDA_RUN; i++)
                    sums[r][t] +=
                        as_factor(values[r][i], all.rounds) * as_factor(factors[i], all.rounds);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float sum = kt_warp_sum(sums[r][t]);
            if (lane == 0 && t < f.tokens && row + r < w.rows)
                put(f, t * f.y.ld + row + r, sum);
        }
    }
}

/* -- backward: a block has columns of the weight, a thread a run of them in some rows -----------
 */

enum { RUNS = 8 /* of a block's columns */, LINES = THREADS / RUNS, COLS = RUNS * KT_CUDA_RUN };

/* Columns that the warps of a block summed, in the order of warps. */
template <int TOKENS>
__device__ void put_columns(const struct few &f, int64_t first, const float *warps)
{
    for (int i = threadIdx.x; i < TOKENS * COLS; i += THREADS) {
        int t = i / COLS, col = i % COLS;
        float sum = 0;
        for (int w = 0; w < WARPS; w++)
            sum += warps[(w * TOKENS + t) * COLS + col];
        if (t < f.tokens && first + col < f.weight.cols)
            put(f, t * f.y.ld + first + col, sum);
    }
}

template <kt_dtype DTYPE, typename X, int TOKENS>
__global__ void __launch_bounds__(THREADS)
    multiply_columns(const __grid_constant__ struct several all)
{
    __shared__ float warps[WARPS * TOKENS * COLS];
    const struct few &f = all.each[blockIdx.y];
    const struct kt_weight &w = f.weight;
    const X *__restrict__ x = (const X *)f.x.data;
    int64_t first = (int64_t)blockIdx.x * COLS, col = first + threadIdx.x % RUNS * KT_CUDA_RUN;
    float sums[TOKENS][KT_CUDA_RUN] = {};
    if (first >= w.cols)
        return;
    for (int64_t row = threadIdx.x / RUNS; row < w.rows && col < w.cols; row += LINES) {
        float values[KT_CUDA_RUN];
        kt_cuda_load_run<DTYPE>(w, row, col, values);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float factor =
                as_factor(kt_load(x + (t < f.tokens ? t : 0) * f.x.ld + row), all.rounds);
            for (int i = 0; i < KT_CUDA_RUN; i++)
                sums[t][i] += as_factor(values[i], all.rounds) * factor;
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < KT_CUDA_RUN; i++) {
            float sum = sums[t][i]; /* of the lanes with the same columns */
            sum += __shfl_xor_sync(0xffffffffu, sum, RUNS);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2 * RUNS);
            if (threadIdx.x % WARP < RUNS)
                warps[(threadIdx.x / WARP * TOKENS + t) * COLS + threadIdx.x % RUNS * KT_CUDA_RUN +
                      i] = sum;
        }
    __syncthreads();
    put_columns<TOKENS>(f, first, warps);
}

/* -- launches -----------------------------------------------------------------------------------
 */

bool is_few(const struct kt_linear_args *a, bool backward)
{
    const struct kt_view *x = &a->x;
    if (a->tokens <= 0 || a->tokens > KT_CUDA_FEW || !kt_cuda_has_runs(&a->weight))
        return false;
    return backward ||
           ((uintptr_t)x->data % 16 == 0 && (a->tokens == 1 || x->ld % KT_CUDA_RUN == 0));
}

/* Whether one launch can serve both. */
bool are_alike(const struct kt_linear_args *a, const struct kt_linear_args *b)
{
    return a->weight.dtype == b->weight.dtype && a->x.dtype == b->x.dtype &&
           a->compute == b->compute;
}

struct launch {
    struct several all;
    int32_t count, tokens; /* of that with most */
    int64_t blocks;        /* likewise */
};

void add(struct launch *l, const struct kt_linear_args *a, bool backward)
{
    const struct kt_weight *w = &a->weight;
    int64_t blocks =
        backward ? (w->cols + COLS - 1) / COLS : (w->rows + WARPS * ROWS - 1) / (WARPS * ROWS);
    l->all.each[l->count++] = {*w, a->x, a->y, (int32_t)a->tokens, a->accumulate};
    l->all.rounds = a->compute == KT_COMPUTE_BF16;
    l->tokens = max(l->tokens, (int32_t)a->tokens);
    l->blocks = max(l->blocks, blocks);
}

template <typename X> void run(struct kt_cuda_device *cuda, const struct launch *l, bool backward)
{
    dim3 grid((unsigned)l->blocks, (unsigned)l->count);
#define MULTIPLY(DTYPE)                                                                            \
    if (backward && l->tokens == 1)                                                                \
        multiply_columns<DTYPE, X, 1><<<grid, THREADS, 0, cuda->compute>>>(l->all);                \
    else if (backward)                                                                             \
        multiply_columns<DTYPE, X, KT_CUDA_FEW><<<grid, THREADS, 0, cuda->compute>>>(l->all);      \
    else if (l->tokens == 1)                                                                       \
        multiply_rows<DTYPE, X, 1><<<grid, THREADS, 0, cuda->compute>>>(l->all);                   \
    else                                                                                           \
        multiply_rows<DTYPE, X, KT_CUDA_FEW><<<grid, THREADS, 0, cuda->compute>>>(l->all)
    KT_CUDA_BY_FORMAT(l->all.each[0].weight.dtype, MULTIPLY);
#undef MULTIPLY
    kt_cuda_launched(cuda, "a linear of few tokens");
}

} // namespace

int32_t kt_cuda_linears_few(struct kt_cuda_device *cuda, int32_t count,
                            const struct kt_linear_args *a, bool backward)
{
    struct launch l = {};
    while (l.count < count && l.count < KT_CUDA_TOGETHER && is_few(&a[l.count], backward) &&
           are_alike(&a[l.count], a))
        add(&l, &a[l.count], backward);
#define RUN(T) run<T>(cuda, &l, backward)
    if (l.blocks)
        KT_BY_DTYPE(a->x.dtype, RUN);
#undef RUN
    return l.count;
}
