/* SPDX-License-Identifier: Apache-2.0 */
/* Linears of several experts in one launch: their tiles of results fill the device together, and
 * the host launches once instead of asking cuBLAS for each. A block computes a tile of ROWS x COLS
 * over the whole depth, which travels through shared memory in STAGES stages of DEPTH. */
#include "backends/cuda/mma.cuh"
#include "backends/cuda/product.h"
#include "backends/cuda/vector.cuh"

namespace
{

enum {
    ROWS = 128, /* tokens of a tile */
    COLS = 128, /* features of y */
    DEPTH = 32,
    STAGES = 4,
    THREADS = 128,
    WARP = 32,
    WARP_ROWS = 64, /* of a warp's part of a tile; two warps by two */
    WARP_COLS = 64,
    CHUNK = 8, /* elements of 16 bytes */
    FACTOR_BYTES = ROWS * DEPTH * 2,
    STAGE_BYTES = 2 * FACTOR_BYTES,
    SHARED_BYTES = STAGES * STAGE_BYTES,
    MOST_TOKENS = 512 /* beyond which cuBLAS has enough to do with one linear, and is faster */
};

/* y [m, n] (+)= x [m, depth] w, all dense or with strides; w is [n, depth], or [depth, n] in
 * backward. */
struct product {
    const __nv_bfloat16 *x, *w;
    int64_t ldx, ldw;
    struct kt_view y;
    int32_t m, n, depth;
    int32_t end; /* tiles of it and those before it */
    bool accumulate;
};

struct several {
    struct product each[KT_CUDA_TOGETHER];
};

__device__ __forceinline__ int32_t tiles(int32_t n, int32_t tile)
{
    return (n + tile - 1) / tile;
}

/* Chunks of rows of DEPTH or COLS elements trade places, so that eight rows' chunks that one
 * instruction reads lie in different banks. */
__device__ __forceinline__ uint32_t at_depth(uint32_t base, int32_t row, int32_t chunk)
{
    return base + (uint32_t)(row * DEPTH * 2 + (chunk ^ (row / 2 & 3)) * 16);
}

__device__ __forceinline__ uint32_t at_cols(uint32_t base, int32_t row, int32_t chunk)
{
    return base + (uint32_t)(row * COLS * 2 + ((chunk & 8) | ((chunk ^ row) & 7)) * 16);
}

/* HEIGHT rows of a matrix from `first` on, WIDTH columns from `col` on, each chunk to where AT has
 * it; zeros beyond its ends. */
template <int HEIGHT, int WIDTH, uint32_t AT(uint32_t, int32_t, int32_t)>
__device__ __forceinline__ void load(uint32_t to, const __nv_bfloat16 *x, int64_t ld, int32_t first,
                                     int32_t rows, int32_t col, int32_t cols)
{
    const int each = HEIGHT * WIDTH / CHUNK / THREADS;
#pragma unroll
    for (int i = 0; i < each; i++) {
        int32_t index = (int32_t)threadIdx.x + i * THREADS, row = index / (WIDTH / CHUNK);
        int32_t chunk = index % (WIDTH / CHUNK), at = col + chunk * CHUNK;
        bool valid = first + row < rows && at < cols;
        kt_copy_16(AT(to, row, chunk), valid ? x + (first + row) * ld + at : x, valid);
    }
}

template <bool BACKWARD>
__device__ __forceinline__ void load_stage(const struct product &p, uint32_t shared, int32_t row,
                                           int32_t col, int32_t step)
{
    uint32_t to = shared + (uint32_t)(step % STAGES * STAGE_BYTES);
    int32_t depth = step * DEPTH;
    if (depth < p.depth) {
        load<ROWS, DEPTH, at_depth>(to, p.x, p.ldx, row, p.m, depth, p.depth);
        if (BACKWARD)
            load<DEPTH, COLS, at_cols>(to + FACTOR_BYTES, p.w, p.ldw, depth, p.depth, col, p.n);
        else
            load<COLS, DEPTH, at_depth>(to + FACTOR_BYTES, p.w, p.ldw, col, p.n, depth, p.depth);
    }
    asm volatile("cp.async.commit_group;" : : : "memory");
}

typedef float sums[WARP_ROWS / 16][WARP_COLS / 8][4];

/* The warp's part of a stage's product. */
template <bool BACKWARD>
__device__ __forceinline__ void add_stage(uint32_t stage, int32_t warp_row, int32_t warp_col,
                                          sums &c)
{
    uint32_t right = stage + FACTOR_BYTES;
    int32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
        uint32_t a[WARP_ROWS / 16][4], b[WARP_COLS / 16][4];
#pragma unroll
        for (int i = 0; i < WARP_ROWS / 16; i++)
            kt_ldmatrix(a[i], at_depth(stage, warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int j = 0; j < WARP_COLS / 16; j++)
            if (BACKWARD)
                kt_ldmatrix_transposed(b[j], at_cols(right, 16 * k + lane % 16,
                                                     (warp_col + 16 * j) / CHUNK + lane / 16));
            else
                kt_ldmatrix(b[j], at_depth(right, warp_col + 16 * j + lane / 16 * 8 + lane % 8,
                                           2 * k + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
            for (int j = 0; j < WARP_COLS / 8; j++)
                kt_mma(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

__device__ __forceinline__ void put_pair(float *to, float x, float next, bool accumulate)
{
    float2 before = accumulate ? *(const float2 *)to : make_float2(0, 0);
    *(float2 *)to = make_float2(before.x + x, before.y + next);
}

__device__ __forceinline__ void put_pair(__nv_bfloat16 *to, float x, float next, bool accumulate)
{
    float before[2] = {};
    if (accumulate)
        kt_unpack_bf16(*(const uint32_t *)to, before);
    *(uint32_t *)to = kt_pack_bf16(before[0] + x, before[1] + next);
}

template <typename T>
__device__ __forceinline__ void put(const struct product &p, int32_t row, int32_t col, float x,
                                    float next)
{
    if (row < p.m && col < p.n)
        put_pair((T *)p.y.data + row * p.y.ld + col, x, next, p.accumulate);
}

template <typename T>
__device__ __forceinline__ void put_all(const struct product &p, int32_t row, int32_t col,
                                        const sums &c)
{
    row += (int32_t)threadIdx.x % WARP / 4, col += (int32_t)threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < WARP_COLS / 8; j++) {
            put<T>(p, row + 16 * i, col + 8 * j, c[i][j][0], c[i][j][1]);
            put<T>(p, row + 16 * i + 8, col + 8 * j, c[i][j][2], c[i][j][3]);
        }
}

template <bool BACKWARD>
__global__ void __launch_bounds__(THREADS, 2) multiply(const __grid_constant__ struct several all)
{
    extern __shared__ __align__(128) uint8_t memory[];
    uint32_t shared = kt_shared(memory);
    int32_t i = 0, tile = (int32_t)blockIdx.x;
    while (tile >= all.each[i].end)
        i++;
    const struct product &p = all.each[i];
    tile -= i ? all.each[i - 1].end : 0;
    int32_t rows = tiles(p.m, ROWS), steps = tiles(p.depth, DEPTH);
    int32_t row = tile % rows * ROWS, col = tile / rows * COLS;
    int32_t warp = (int32_t)threadIdx.x / WARP;
    int32_t warp_row = warp / 2 * WARP_ROWS, warp_col = warp % 2 * WARP_COLS;
    sums c = {};
    for (int32_t step = 0; step < STAGES - 1; step++)
        load_stage<BACKWARD>(p, shared, row, col, step);
    for (int32_t step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" : : "n"(STAGES - 2) : "memory");
        __syncthreads(); /* the stage is there, and all are done with the one that is loaded next */
        load_stage<BACKWARD>(p, shared, row, col, step + STAGES - 1);
        add_stage<BACKWARD>(shared + (uint32_t)(step % STAGES * STAGE_BYTES), warp_row, warp_col,
                            c);
    }
    if (p.y.dtype == KT_DTYPE_BF16)
        put_all<__nv_bfloat16>(p, row + warp_row, col + warp_col, c);
    else
        put_all<float>(p, row + warp_row, col + warp_col, c);
}

bool is_aligned(const void *x, int64_t ld)
{
    return (uintptr_t)x % 16 == 0 && ld % CHUNK == 0;
}

/* Whether the kernel takes a linear, whatever its weight's format. */
bool takes(const struct kt_linear_args *a)
{
    const struct kt_weight *w = &a->weight;
    return a->compute == KT_COMPUTE_BF16 && a->x.dtype == KT_DTYPE_BF16 &&
           a->tokens > KT_CUDA_FEW && a->tokens <= MOST_TOKENS && w->rows % CHUNK == 0 &&
           w->cols % CHUNK == 0 && w->rows > 0 && w->cols > 0 && w->rows < INT32_MAX &&
           w->cols < INT32_MAX && is_aligned(a->x.data, a->x.ld) && is_aligned(a->y.data, a->y.ld);
}

bool is_plain(const struct kt_weight *w)
{
    return w->dtype == KT_DTYPE_BF16 && !w->scale && (uintptr_t)w->data % 16 == 0;
}

struct product product_of(const struct kt_linear_args *a, bool backward, const void *weight)
{
    const struct kt_weight *w = &a->weight;
    struct product p = {(const __nv_bfloat16 *)a->x.data, (const __nv_bfloat16 *)weight};
    p.ldx = a->x.ld, p.ldw = w->cols;
    p.y = a->y;
    p.m = (int32_t)a->tokens;
    p.n = (int32_t)(backward ? w->cols : w->rows);
    p.depth = (int32_t)(backward ? w->rows : w->cols);
    p.accumulate = a->accumulate;
    return p;
}

} // namespace

int32_t kt_cuda_linears_grouped(struct kt_cuda_device *cuda, int32_t count,
                                const struct kt_linear_args *a, bool backward, void *scratch)
{
    struct several all;
    struct kt_cuda_pieces pieces = {(char *)scratch};
    int32_t num = 0, end = 0;
    for (; num < count && num < KT_CUDA_TOGETHER && takes(&a[num]); num++) {
        const struct kt_weight *w = &a[num].weight;
        const void *weight = w->data;
        if (!is_plain(w)) {
            void *to = kt_cuda_piece(&pieces, (uint64_t)(w->rows * w->cols) * 2);
            if (pieces.used > cuda->base.scratch_bytes)
                break;
            kt_cuda_decode(cuda, w, KT_DTYPE_BF16, to);
            weight = to;
        }
        struct product *p = &all.each[num];
        *p = product_of(&a[num], backward, weight);
        end += (p->m + ROWS - 1) / ROWS * ((p->n + COLS - 1) / COLS);
        p->end = end;
    }
    if (!num)
        return 0;
    void (*kernel)(const struct several) = backward ? multiply<true> : multiply<false>;
    kt_cuda_check(cuda,
                  cudaFuncSetAttribute((const void *)kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
                  "a product of several experts");
    kernel<<<(unsigned)end, THREADS, SHARED_BYTES, cuda->compute>>>(all);
    kt_cuda_launched(cuda, "a product of several experts");
    return num;
}
