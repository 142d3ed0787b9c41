/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/product.h"
#include "backends/cuda/vector.cuh"

namespace
{

enum { THREADS = 256, WIDTH = 4 /* elements of a thread, where they are aligned */ };

constexpr int64_t MOST_THREADS = 1 << 30; /* of a launch: their numbers are 32 bits */

struct shape {
    uint32_t across, threads; /* of a row, and of all */
    int64_t from_ld, to_ld;
    bool accumulate;
};

template <typename From, typename To>
__global__ void __launch_bounds__(THREADS)
    cast_wide(const struct shape s, const From *__restrict__ from, To *__restrict__ to)
{
    uint32_t id = blockIdx.x * THREADS + threadIdx.x;
    if (id >= s.threads)
        return;
    int64_t row = id / s.across, col = (int64_t)(id % s.across) * WIDTH;
    float x[WIDTH], before[WIDTH] = {};
    kt_load_4(from + row * s.from_ld + col, x);
    if (s.accumulate)
        kt_load_4(to + row * s.to_ld + col, before);
    for (int i = 0; i < WIDTH; i++)
        x[i] = s.accumulate ? before[i] + x[i] : x[i];
    kt_store_4(to + row * s.to_ld + col, x);
}

template <typename From, typename To>
__global__ void __launch_bounds__(THREADS)
    cast_elements(const struct shape s, const From *__restrict__ from, To *__restrict__ to)
{
    uint32_t id = blockIdx.x * THREADS + threadIdx.x;
    if (id >= s.threads)
        return;
    int64_t row = id / s.across, col = id % s.across;
    float x = kt_load(from + row * s.from_ld + col);
    to += row * s.to_ld + col;
    kt_store(to, s.accumulate ? kt_load(to) + x : x);
}

template <typename T> bool is_wide(const T *data, int64_t ld)
{
    return ld % WIDTH == 0 && (uintptr_t)data % (WIDTH * sizeof(T)) == 0;
}

template <typename From, typename To>
void launch(cudaStream_t stream, int64_t rows, int64_t cols, struct shape s, const From *from,
            To *to)
{
    bool wide = cols % WIDTH == 0 && is_wide(from, s.from_ld) && is_wide(to, s.to_ld);
    s.across = (uint32_t)(wide ? cols / WIDTH : cols);
    int64_t most = MOST_THREADS / s.across;
    for (int64_t row = 0; row < rows; row += most) {
        s.threads = (uint32_t)(rows - row < most ? rows - row : most) * s.across;
        uint32_t blocks = (s.threads + THREADS - 1) / THREADS;
        const From *x = from + row * s.from_ld;
        To *y = to + row * s.to_ld;
        if (wide)
            cast_wide<<<blocks, THREADS, 0, stream>>>(s, x, y);
        else
            cast_elements<<<blocks, THREADS, 0, stream>>>(s, x, y);
    }
}

template <typename To>
void launch_to(cudaStream_t stream, int64_t rows, int64_t cols, const struct shape &s,
               struct kt_view from, To *to)
{
#define LAUNCH(From) launch(stream, rows, cols, s, (const From *)from.data, to)
    KT_BY_DTYPE(from.dtype, LAUNCH);
#undef LAUNCH
}

} // namespace

void kt_cuda_cast(struct kt_cuda_device *cuda, int64_t rows, int64_t cols, struct kt_view from,
                  struct kt_view to, bool accumulate)
{
    struct shape s = {0, 0, from.ld, to.ld, accumulate};
    if (rows <= 0 || cols <= 0)
        return;
#define LAUNCH(To) launch_to(cuda->compute, rows, cols, s, from, (To *)to.data)
    KT_BY_DTYPE(to.dtype, LAUNCH);
#undef LAUNCH
    kt_cuda_launched(cuda, "converting elements");
}
