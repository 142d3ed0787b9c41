/* SPDX-License-Identifier: Apache-2.0 */
/* Dot products of rows of the large factor. A warp takes ROWS of them along the depth; the other
 * factor is in shared memory, DEPTH at a time. */
#include "backends/cuda/skinny.cuh"

namespace
{

enum { WARP = 32, WARPS = 8, ROWS = 4, THREADS = WARP * WARPS, STEP = WARP * KT_SKINNY_WIDTH };

static_assert(WARPS * ROWS == KT_SKINNY_ROWS_BLOCK, "a block's rows");

/* Depth in shared memory; rows are padded against bank conflicts. */
template <int WIDTH> constexpr int DEPTH = WIDTH <= 16 ? 512 : 256;
template <int WIDTH> constexpr int STRIDE = DEPTH<WIDTH> + 4;

template <int WIDTH>
__device__ __forceinline__ void stage(const struct kt_skinny &s, int64_t from, int depth,
                                      float *small)
{
    for (int i = threadIdx.x; i < WIDTH * DEPTH<WIDTH>; i += THREADS) {
        bool along = s.small.row == 1;
        int j = along ? i / DEPTH<WIDTH> : i % WIDTH, d = along ? i % DEPTH<WIDTH> : i / WIDTH;
        const float *at = s.small.data + (from + d) * s.small.row + j * s.small.col;
        small[j * STRIDE<WIDTH> + d] = d < depth && j < s.width ? *at : 0.0f;
    }
}

/* Sums over the lanes. Lane l is left with those of values [l * COUNT / 32, (l + 1) * COUNT / 32),
 * at the beginning: in each step a lane gives one half of its sums away for the other half. */
template <int COUNT, int STEP = WARP / 2> __device__ __forceinline__ void sum_lanes(float *values)
{
    bool upper = threadIdx.x & STEP;
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
        float given = upper ? values[i] : values[i + COUNT / 2];
        float kept = upper ? values[i + COUNT / 2] : values[i];
        values[i] = kept + __shfl_xor_sync(0xffffffffu, given, STEP);
    }
    if constexpr (STEP > 1)
        sum_lanes<COUNT / 2, STEP / 2>(values);
}

template <typename T, int WIDTH, bool WIDE>
__global__ void __launch_bounds__(THREADS, WIDTH < 32 ? 2 : 1)
    multiply_rows(const struct kt_skinny s)
{
    __shared__ __align__(16) float small[WIDTH * STRIDE<WIDTH>];
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * KT_SKINNY_ROWS_BLOCK + threadIdx.x / WARP * ROWS;
    int64_t begin = blockIdx.y * s.part;
    int64_t end = begin + s.part < s.depth ? begin + s.part : s.depth;
    float sums[ROWS * WIDTH] = {};
    for (int64_t from = begin; from < end; from += DEPTH<WIDTH>) {
        int depth = (int)(end - from < DEPTH<WIDTH> ? end - from : DEPTH<WIDTH>);
        __syncthreads();
        stage<WIDTH>(s, from, depth, small);
        __syncthreads();
        if (row >= s.size)
            continue;
#pragma unroll
        for (int at = lane * KT_SKINNY_WIDTH; at < DEPTH<WIDTH>; at += STEP) {
            float x[ROWS][KT_SKINNY_WIDTH];
            if (at >= depth)
                break;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int64_t from_row = row + r < s.size ? row + r : row;
                kt_skinny_load<WIDE>((const T *)s.large.data + from_row * s.large.ld + from + at,
                                     depth - at, x[r]);
            }
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                float y[KT_SKINNY_WIDTH];
                kt_load_4(small + j * STRIDE<WIDTH> + at, y);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    for (int i = 0; i < KT_SKINNY_WIDTH; i++)
                        sums[r * WIDTH + j] += x[r][i] * y[i];
            }
        }
    }
    if (row >= s.size)
        return;
    sum_lanes<ROWS * WIDTH>(sums);
    constexpr int MINE = ROWS * WIDTH / WARP;
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        int at = lane * MINE + i, j = at % WIDTH;
        int64_t to = row + at / WIDTH;
        if (to < s.size && j < s.width)
            s.partial[(blockIdx.y * s.size + to) * s.width + j] = sums[i];
    }
}

} // namespace

void kt_skinny_rows(cudaStream_t stream, const struct kt_skinny *s)
{
    dim3 blocks((unsigned)((s->size + KT_SKINNY_ROWS_BLOCK - 1) / KT_SKINNY_ROWS_BLOCK),
                (unsigned)s->parts);
#define MULTIPLY(T, WIDTH, WIDE) multiply_rows<T, WIDTH, WIDE><<<blocks, THREADS, 0, stream>>>(*s)
    KT_SKINNY_BY_TYPE(s->large, s->depth, s->width, MULTIPLY);
#undef MULTIPLY
}
