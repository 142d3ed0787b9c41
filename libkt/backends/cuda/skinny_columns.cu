/* SPDX-License-Identifier: Apache-2.0 */
/* Sums of rows of the large factor. A thread takes KT_SKINNY_WIDTH columns of every GROUPS-th row;
 * the other factor is in shared memory, DEPTH rows at a time. */
#include "backends/cuda/skinny.cuh"

namespace
{

enum {
    DEPTH = KT_SKINNY_COLUMNS_STEP,
    LANES = KT_SKINNY_COLUMNS_BLOCK / KT_SKINNY_WIDTH,
    GROUPS = 4,
    THREADS = LANES * GROUPS
};

template <int WIDTH>
__device__ __forceinline__ void stage(const struct kt_skinny &s, int64_t from, int depth,
                                      float *small)
{
    for (int i = threadIdx.x; i < WIDTH * DEPTH; i += THREADS) {
        int d = i / WIDTH, j = i % WIDTH;
        const float *at = s.small.data + (from + d) * s.small.row + j * s.small.col;
        small[i] = d < depth && j < s.width ? *at : 0.0f;
    }
}

/* Adds those of all groups to the first one's, in order. */
template <int COUNT> __device__ __forceinline__ void sum_groups(float *shared, float *sums)
{
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    for (int g = 1; g < GROUPS; g++) {
        __syncthreads();
        if (group == g)
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                shared[i * LANES + lane] = sums[i];
        __syncthreads();
        if (group == 0)
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                sums[i] += shared[i * LANES + lane];
    }
}

template <typename T, int WIDTH, bool WIDE>
__global__ void __launch_bounds__(THREADS) multiply_columns(const struct kt_skinny s)
{
    __shared__ __align__(16) float shared[WIDTH * KT_SKINNY_WIDTH * LANES];
    static_assert(DEPTH <= KT_SKINNY_WIDTH * LANES, "the small factor fits");
    int group = threadIdx.x / LANES;
    int64_t col =
        (int64_t)blockIdx.x * KT_SKINNY_COLUMNS_BLOCK + threadIdx.x % LANES * KT_SKINNY_WIDTH;
    int64_t begin = blockIdx.y * s.part;
    int64_t end = begin + s.part < s.depth ? begin + s.part : s.depth;
    const T *large = (const T *)s.large.data + col;
    float sums[WIDTH * KT_SKINNY_WIDTH] = {};
    for (int64_t from = begin; from < end; from += DEPTH) {
        int depth = (int)(end - from < DEPTH ? end - from : DEPTH);
        __syncthreads();
        stage<WIDTH>(s, from, depth, shared);
        __syncthreads();
        if (col >= s.size)
            continue;
#pragma unroll 4
        for (int d = group; d < depth; d += GROUPS) {
            float x[KT_SKINNY_WIDTH], y[KT_SKINNY_WIDTH];
            kt_skinny_load<WIDE>(large + (from + d) * s.large.ld, s.size - col, x);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                if (j % KT_SKINNY_WIDTH == 0)
                    kt_load_4(shared + d * WIDTH + j, y);
#pragma unroll
                for (int i = 0; i < KT_SKINNY_WIDTH; i++)
                    sums[j * KT_SKINNY_WIDTH + i] += x[i] * y[j % KT_SKINNY_WIDTH];
            }
        }
    }
    sum_groups<WIDTH * KT_SKINNY_WIDTH>(shared, sums);
    if (group > 0 || col >= s.size)
        return;
#pragma unroll
    for (int j = 0; j < WIDTH; j++)
        if (j < s.width)
            kt_skinny_store<WIDE>(s.partial + ((int64_t)blockIdx.y * s.width + j) * s.size + col,
                                  s.size - col, sums + j * KT_SKINNY_WIDTH);
}

} // namespace

void kt_skinny_columns(cudaStream_t stream, const struct kt_skinny *s)
{
    dim3 blocks((unsigned)((s->size + KT_SKINNY_COLUMNS_BLOCK - 1) / KT_SKINNY_COLUMNS_BLOCK),
                (unsigned)s->parts);
#define MULTIPLY(T, WIDTH, WIDE)                                                                   \
    multiply_columns<T, WIDTH, WIDE><<<blocks, THREADS, 0, stream>>>(*s)
    KT_SKINNY_BY_TYPE(s->large, s->size, s->width, MULTIPLY);
#undef MULTIPLY
}
