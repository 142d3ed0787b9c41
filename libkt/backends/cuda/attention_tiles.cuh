/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/attention_tiles.cuh
 * Tiles of BF16 in shared memory, and a warp's products of them. A warp owns 16 rows of its
 * results, all their columns, so that scores become factors without leaving its registers. */
#ifndef KT_BACKENDS_CUDA_ATTENTION_TILES_CUH
#define KT_BACKENDS_CUDA_ATTENTION_TILES_CUH

#include "backends/cuda/attention.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/vector.cuh"

enum {
    KT_ATTEND_CHUNK = 8, /**< elements that are loaded at once */
    KT_ATTEND_STRIP = 16 /**< rows of a warp */
};

constexpr float KT_LOG2_E = 1.4426950408889634f;

/** [rows, D] of BF16. Chunks of a row trade places by row % 8, so that instructions that read a
 * chunk of each of 8 rows find them in different banks. */
template <int D> struct kt_attend_factor {
    uint32_t address;

    __device__ __forceinline__ uint32_t at(int32_t row, int32_t chunk) const
    {
        /* apart, so that the compiler sees what is constant */
        return address + (uint32_t)(row * D * 2 + (chunk & ~7) * 16 + ((chunk ^ row) & 7) * 16);
    }
};

/** A thread's rows of a warp's results are row() and row() + 8, its columns column(i) and the next
 * of block i of 8. */
static __device__ __forceinline__ int32_t kt_attend_row(void)
{
    return threadIdx.x % 32 / 4;
}

static __device__ __forceinline__ int32_t kt_attend_column(int32_t block)
{
    return block * 8 + threadIdx.x % 4 * 2;
}

/** s += a b^T: of rows [row, row + 16) of a and [first, first + N) of b */
template <int D, int N>
static __device__ __forceinline__ void kt_attend_add_dots(const kt_attend_factor<D> &a, int32_t row,
                                                          const kt_attend_factor<D> &b,
                                                          int32_t first, float (&s)[N / 8][4])
{
    int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[4], right[4];
        kt_ldmatrix(left, a.at(row + lane % 16, 2 * k | lane / 16));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            kt_ldmatrix(right,
                        b.at(first + 16 * n + lane / 16 * 8 + lane % 8, 2 * k | lane / 8 % 2));
            kt_mma(s[2 * n], left, right[0], right[1]);
            kt_mma(s[2 * n + 1], left, right[2], right[3]);
        }
    }
}

/** The same with rows of a in registers. */
template <int D, int N>
static __device__ __forceinline__ void kt_attend_add_dots(const uint32_t (&a)[D / 16][4],
                                                          const kt_attend_factor<D> &b,
                                                          float (&s)[N / 8][4])
{
    int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t right[4];
            kt_ldmatrix(right, b.at(16 * n + lane / 16 * 8 + lane % 8, 2 * k | lane / 8 % 2));
            kt_mma(s[2 * n], a[k], right[0], right[1]);
            kt_mma(s[2 * n + 1], a[k], right[2], right[3]);
        }
}

/** to += x b: of N columns of x, rounded to BF16, and rows [0, N) of b */
template <int D, int N>
static __device__ __forceinline__ void kt_attend_add_product(const float (&x)[N / 8][4],
                                                             const kt_attend_factor<D> &b,
                                                             float (&to)[D / 8][4])
{
    int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float *l = x[2 * k], *r = x[2 * k + 1];
        uint32_t left[4] = {kt_pack_bf16(l[0], l[1]), kt_pack_bf16(l[2], l[3]),
                            kt_pack_bf16(r[0], r[1]), kt_pack_bf16(r[2], r[3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t right[4];
            kt_ldmatrix_transposed(right, b.at(16 * k + lane % 16, 2 * n | lane / 16));
            kt_mma(to[2 * n], left, right[0], right[1]);
            kt_mma(to[2 * n + 1], left, right[2], right[3]);
        }
    }
}

/** Rows of a view, or of two side by side. */
template <typename T> struct kt_attend_source {
    kt_attend_matrix<const T> left, right;
    int32_t left_dim, right_dim;
    bool wide; /**< whether chunks are aligned */

    __device__ __forceinline__ const T *at(int32_t row, int32_t col) const
    {
        return col < left_dim ? left.at(row) + col : right.at(row) + (col - left_dim);
    }
};

/** A chunk in BF16, zeros where it leaves the source; `x` of float32 or with unaligned chunks. */
template <typename T>
static __device__ __forceinline__ void kt_attend_read(const kt_attend_source<T> &x, int32_t row,
                                                      int32_t col, bool valid, uint32_t (&to)[4])
{
    float values[KT_ATTEND_CHUNK] = {};
    int32_t dim = x.left_dim + x.right_dim;
    if (valid && x.wide && col < dim)
        kt_load_8(x.at(row, col), values);
    else if (valid)
        for (int i = 0; i < KT_ATTEND_CHUNK; i++)
            if (col + i < dim)
                values[i] = kt_load(x.at(row, col + i));
    for (int i = 0; i < 4; i++)
        to[i] = kt_pack_bf16(values[2 * i], values[2 * i + 1]);
}

/** Loads ROWS rows from `first` on, of which `count` exist, by all THREADS of the block; they are
 * there after kt_copy_wait and a barrier. BATCH chunks of a thread are underway at a time. */
template <int ROWS, int THREADS, int BATCH, typename T, int D>
static __device__ __forceinline__ void kt_attend_load(const kt_attend_source<T> &x, int32_t first,
                                                      int32_t count, const kt_attend_factor<D> &to)
{
    constexpr int ACROSS = D / KT_ATTEND_CHUNK, CHUNKS = ROWS * ACROSS;
    if (sizeof(T) == 2 && x.wide) {
#pragma unroll
        for (int32_t i = threadIdx.x; i < CHUNKS; i += THREADS) {
            int32_t row = i / ACROSS, col = i % ACROSS * KT_ATTEND_CHUNK;
            bool valid = row < count && col < x.left_dim + x.right_dim;
            kt_copy_16(to.at(row, i % ACROSS), valid ? x.at(first + row, col) : x.left.data, valid);
        }
        return;
    }
    for (int32_t base = threadIdx.x; base < CHUNKS; base += THREADS * BATCH) {
        uint32_t values[BATCH][4];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int32_t i = base + b * THREADS, row = i / ACROSS;
            kt_attend_read(x, first + row, i % ACROSS * KT_ATTEND_CHUNK, row < min(ROWS, count),
                           values[b]);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            if (base + b * THREADS < CHUNKS)
                kt_store_16(to.at((base + b * THREADS) / ACROSS, (base + b * THREADS) % ACROSS),
                            values[b]);
    }
}

/** What the kernels read, of a sequence and key/value head. */
template <typename T>
static __device__ __forceinline__ kt_attend_source<T>
kt_attend_queries(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head)
{
    return {kt_attend_query_rows<const T>(p, t, p.q, kv_head), {}, p.a.qk_dim, 0, p.wide};
}

template <typename T>
static __device__ __forceinline__ kt_attend_source<T>
kt_attend_output_gradients(const struct kt_attend &p, const struct kt_attend_tile &t,
                           int32_t kv_head)
{
    return {kt_attend_query_rows<const T>(p, t, p.d_o, kv_head), {}, p.a.v_dim, 0, p.wide};
}

template <typename T>
static __device__ __forceinline__ kt_attend_source<T>
kt_attend_whole_keys(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head)
{
    return {kt_attend_key_rows<const T>(t, p.k, kv_head),
            kt_attend_key_rows<const T>(t, p.k_shared, 0), p.own, p.a.shared_dim, p.wide};
}

template <typename T>
static __device__ __forceinline__ kt_attend_source<T>
kt_attend_values(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head)
{
    return {kt_attend_key_rows<const T>(t, p.v, kv_head), {}, p.a.v_dim, 0, p.wide};
}

/** Writes x[col] and x[col + 1], of columns [0, dim), to a row. */
template <typename T>
static __device__ __forceinline__ void kt_attend_write(T *row, int32_t col, int32_t dim, float x,
                                                       float y)
{
    if (col < dim)
        kt_store(row + col, x);
    if (col + 1 < dim)
        kt_store(row + col + 1, y);
}

/** CALL(QK, V) with the smallest dimensions that hold the arguments'. */
#define KT_ATTEND_BY_DIMS(a, CALL)                                                                 \
    do {                                                                                           \
        if ((a)->qk_dim <= 64 && (a)->v_dim <= 64)                                                 \
            CALL(64, 64);                                                                          \
        else if ((a)->qk_dim <= 128)                                                               \
            CALL(128, 128);                                                                        \
        else                                                                                       \
            CALL(192, 128);                                                                        \
    } while (0)

#endif
