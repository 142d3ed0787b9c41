/* SPDX-License-Identifier: Apache-2.0 */
/* Whole weights to dense floats, at the speed of memory. */
#include "backends/cuda/decode.cuh"
#include "backends/cuda/vector.cuh"

namespace
{

enum { THREADS = 256, ROWS = 4 /* of a thread: as many loads are under way at once */ };

constexpr int64_t MOST_THREADS = 1 << 30; /* of a launch: their numbers are 32 bits */

int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* A thread decodes the same run of ROWS rows. */
template <kt_dtype DTYPE, typename T>
__global__ void __launch_bounds__(THREADS)
    decode_runs(const struct kt_weight w, int64_t first, uint32_t runs, uint32_t threads, T *to)
{
    uint32_t id = blockIdx.x * THREADS + threadIdx.x;
    if (id >= threads)
        return;
    int64_t row = first + (int64_t)(id / runs) * ROWS, col = (int64_t)(id % runs) * KT_CUDA_RUN;
    float values[ROWS][KT_CUDA_RUN];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        kt_cuda_load_run<DTYPE>(w, row + r < w.rows ? row + r : row, col, values[r]);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (row + r < w.rows)
            kt_store_8(to + (row + r) * w.cols + col, values[r]);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    decode_elements(const struct kt_weight w, int64_t first, uint32_t threads, T *to)
{
    uint32_t id = blockIdx.x * THREADS + threadIdx.x, cols = (uint32_t)w.cols;
    if (id >= threads)
        return;
    int64_t row = first + id / cols, col = id % cols;
    kt_store(to + row * w.cols + col, kt_cuda_element(w, row, col));
}

template <kt_dtype DTYPE, typename T>
void launch_runs(cudaStream_t stream, const struct kt_weight *w, T *to)
{
    int64_t runs = w->cols / KT_CUDA_RUN, groups = MOST_THREADS / runs;
    for (int64_t first = 0; first < w->rows; first += groups * ROWS) {
        int64_t some = min64(groups, (w->rows - first + ROWS - 1) / ROWS);
        uint32_t threads = (uint32_t)(some * runs);
        decode_runs<DTYPE, T><<<(threads + THREADS - 1) / THREADS, THREADS, 0, stream>>>(
            *w, first, (uint32_t)runs, threads, to);
    }
}

template <typename T> void launch_elements(cudaStream_t stream, const struct kt_weight *w, T *to)
{
    int64_t most = MOST_THREADS / w->cols;
    for (int64_t first = 0; first < w->rows; first += most) {
        uint32_t threads = (uint32_t)(min64(most, w->rows - first) * w->cols);
        decode_elements<T>
            <<<(threads + THREADS - 1) / THREADS, THREADS, 0, stream>>>(*w, first, threads, to);
    }
}

template <typename T> void launch(cudaStream_t stream, const struct kt_weight *w, T *to)
{
    if (!kt_cuda_has_runs(w) || (uintptr_t)to % 16) {
        launch_elements(stream, w, to);
        return;
    }
#define RUNS(DTYPE) launch_runs<DTYPE>(stream, w, to)
    KT_CUDA_BY_FORMAT(w->dtype, RUNS);
#undef RUNS
}

} // namespace

void kt_cuda_decode(struct kt_cuda_device *cuda, const struct kt_weight *w, kt_dtype dtype,
                    void *to)
{
    if (w->rows <= 0 || w->cols <= 0)
        return;
#define LAUNCH(T) launch(cuda->compute, w, (T *)to)
    KT_BY_DTYPE(dtype, LAUNCH);
#undef LAUNCH
    kt_cuda_launched(cuda, "decoding a weight");
}
