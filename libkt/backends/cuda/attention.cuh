/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/attention.cuh
 * What the kernels of attention share.
 *
 * The queries of a sequence that use the same key/value head are its rows: row r is query
 * r / group, head r % group of that key/value head, so that grouped and multi-query attention fill
 * tiles even with one query. A block owns a tile of rows, or a tile of keys, and walks over the
 * other; nothing is added by atomics, so that bits depend on the shapes alone. */
#ifndef KT_BACKENDS_CUDA_ATTENTION_CUH
#define KT_BACKENDS_CUDA_ATTENTION_CUH

#include "backends/cuda/view.cuh"

/** What kernels read: a view and what is between its heads. */
struct kt_attend_input {
    struct kt_view view;
    int64_t head_stride;
};

/** Arguments of a kernel. */
struct kt_attend {
    struct kt_attention_args a;                    /**< addresses of the host are not followed */
    struct kt_attend_input q, k, k_shared, v, d_o; /**< those of `a`, or their copies in BF16 */
    int32_t group;                                 /**< heads of a key/value head */
    int32_t own;                                   /**< features of a key that are not shared */
    int64_t queries, keys;                         /**< of all sequences */
    bool wide;    /**< whether chunks of 8 elements of all views are aligned */
    float *delta; /**< [num_heads, queries]: <d_o, o> */
    /** dk_shared is summed over the key/value heads of a unit by one block, then over units.
     * Without it a unit is one head. */
    int32_t units, unit_heads;
    float *shared_parts; /**< [units, keys, shared_dim]; NULL when there is one unit */
    /** Of forward, when few rows see many keys: parts of a tile's keys, each for a block. */
    int32_t splits, split_keys;
    float *parts; /**< [splits, num_heads, queries, v_dim + 2]: sums, then maximum of the scaled
                       scores and sum of the unnormalised probabilities */
};

/** A sequence, and the `count` rows or keys of it, from `first` on, that a block owns. */
struct kt_attend_tile {
    int32_t first, count;
    int32_t query, queries, key, keys; /**< where it begins, and what it holds */
};

/** Tile `index` of `size` out of per_query x queries of each sequence, or of its keys if that is 0.
 * Called by whole warps. */
static __device__ inline struct kt_attend_tile
kt_attend_find(const struct kt_attend &p, int32_t per_query, int32_t size, int32_t index)
{
    const int32_t *q = p.a.queries.device, *k = p.a.keys.device;
    const int32_t *cu = per_query ? q : k, per_item = per_query ? per_query : 1;
    int32_t lane = threadIdx.x % 32, num = p.a.queries.num, s = 0, before = 0;
    for (int32_t base = 0; base < num; base += 32) {
        int32_t mine = base + lane, rows = 0;
        if (mine < num)
            rows = (cu[mine + 1] - cu[mine]) * per_item;
        int32_t tiles = (rows + size - 1) / size, end = tiles;
        for (int32_t step = 1; step < 32; step *= 2) {
            int32_t other = __shfl_up_sync(~0u, end, step);
            end += lane >= step ? other : 0;
        }
        uint32_t beyond = __ballot_sync(~0u, index < before + end);
        int32_t at = beyond ? __ffs((int)beyond) - 1 : 31;
        s = base + at;
        before += __shfl_sync(~0u, end, at) - (beyond ? __shfl_sync(~0u, tiles, at) : 0);
        if (beyond)
            break;
    }
    struct kt_attend_tile t;
    t.query = q[s], t.queries = q[s + 1] - q[s];
    t.key = k[s], t.keys = k[s + 1] - k[s];
    t.first = (index - before) * size;
    t.count = min(size, (per_query ? t.queries * per_query : t.keys) - t.first);
    return t;
}

/** Keys [first, last) of its sequence that a query of the sequence sees. */
static __device__ __forceinline__ void kt_attend_visible(const struct kt_attend &p,
                                                         const struct kt_attend_tile &t,
                                                         int32_t query, int32_t *first,
                                                         int32_t *last)
{
    *last = query + t.keys - t.queries + 1;
    *first = p.a.window ? max(0, *last - p.a.window) : 0;
}

/** Keys [first, last) that any row of a tile of rows sees. */
static __device__ __forceinline__ void kt_attend_keys(const struct kt_attend &p,
                                                      const struct kt_attend_tile &t,
                                                      int32_t *first, int32_t *last)
{
    int32_t ignored;
    kt_attend_visible(p, t, t.first / p.group, first, &ignored);
    kt_attend_visible(p, t, (t.first + t.count - 1) / p.group, &ignored, last);
}

/** The keys of these that a block walks over. */
static __device__ __forceinline__ void kt_attend_split(const struct kt_attend &p, int32_t split,
                                                       int32_t *first, int32_t *last)
{
    if (p.splits == 1)
        return;
    *first += split * p.split_keys;
    *last = min(*last, *first + p.split_keys);
}

/** Rows [first, last) that see any key of a tile of keys. */
static __device__ __forceinline__ void kt_attend_rows(const struct kt_attend &p,
                                                      const struct kt_attend_tile &t,
                                                      int32_t *first, int32_t *last)
{
    int32_t shift = t.keys - t.queries, end = t.queries;
    if (p.a.window)
        end = min(end, t.first + t.count - 1 - shift + p.a.window);
    *first = max(0, t.first - shift) * p.group;
    *last = end * p.group;
}

/** Where the features of row or key `row` of a sequence begin: query row / group of it, head
 * row % group after the one that `data` stands at. */
template <typename T> struct kt_attend_matrix {
    T *data;
    int64_t ld, head_stride;
    int32_t group;

    __device__ __forceinline__ T *at(int32_t row) const
    {
        if (group == 1)
            return data + row * ld;
        return data + row / group * ld + row % group * head_stride;
    }
};

/** Rows of a view of queries, of its heads of a key/value head. */
template <typename T>
static __device__ __forceinline__ kt_attend_matrix<T>
kt_attend_query_rows(const struct kt_attend &p, const struct kt_attend_tile &t,
                     const struct kt_view &x, int64_t head_stride, int32_t kv_head)
{
    T *data = (T *)x.data + t.query * x.ld + (int64_t)kv_head * p.group * head_stride;
    return {data, x.ld, head_stride, p.group};
}

template <typename T>
static __device__ __forceinline__ kt_attend_matrix<T>
kt_attend_query_rows(const struct kt_attend &p, const struct kt_attend_tile &t,
                     const struct kt_attend_input &x, int32_t kv_head)
{
    return kt_attend_query_rows<T>(p, t, x.view, x.head_stride, kv_head);
}

template <typename T>
static __device__ __forceinline__ kt_attend_matrix<T>
kt_attend_key_rows(const struct kt_attend_tile &t, const struct kt_view &x, int64_t head_stride,
                   int32_t kv_head)
{
    return {(T *)x.data + t.key * x.ld + kv_head * head_stride, x.ld, 0, 1};
}

template <typename T>
static __device__ __forceinline__ kt_attend_matrix<T>
kt_attend_key_rows(const struct kt_attend_tile &t, const struct kt_attend_input &x, int32_t kv_head)
{
    return kt_attend_key_rows<T>(t, x.view, x.head_stride, kv_head);
}

/** Where a row's number is in lse and delta. */
static __device__ __forceinline__ int64_t kt_attend_index(const struct kt_attend &p,
                                                          const struct kt_attend_tile &t,
                                                          int32_t kv_head, int32_t row)
{
    return (int64_t)(kv_head * p.group + row % p.group) * p.queries + t.query + row / p.group;
}

/** Where a row's numbers of a split are; `index` is what kt_attend_index gives. */
static __device__ __forceinline__ float *kt_attend_part(const struct kt_attend &p, int32_t split,
                                                        int64_t index)
{
    return p.parts + (split * p.a.num_heads * p.queries + index) * (p.a.v_dim + 2);
}

/** Tiles that kt_attend_find knows. Of the host. */
int64_t kt_attend_count(const struct kt_offsets *offsets, int32_t per_item, int32_t size);

/** Launches a kernel of one parameter, *args, with `shared` bytes of shared memory. */
void kt_attend_launch(struct kt_cuda_device *cuda, const void *kernel, int64_t blocks,
                      int32_t threads, size_t shared, const void *args);

/** Bytes of copies in BF16 of what an operation on `heads` key/value heads reads. */
uint64_t kt_attend_pack_bytes(const struct kt_attend *p, int32_t heads, bool backward);
/** Copies the inputs of p there, and lets p read the copies. */
void kt_attend_pack(struct kt_cuda_device *cuda, struct kt_attend *p, bool backward, void *memory);

/** Whether the kernels of tiles in BF16 take the dimensions. */
static inline bool kt_attend_fits_tiles(const struct kt_attention_args *a)
{
    return a->compute == KT_COMPUTE_BF16 && a->qk_dim <= 192 && a->v_dim <= 128;
}

/* attention_tiles_forward.cu, and backward: dq in attention_tiles_rows.cu, the others in
 * attention_tiles_keys.cu; BF16 */
void kt_attend_tiles_forward(struct kt_cuda_device *cuda, const struct kt_attend *p);
void kt_attend_tiles_rows(struct kt_cuda_device *cuda, const struct kt_attend *p);
void kt_attend_tiles_keys(struct kt_cuda_device *cuda, const struct kt_attend *p);

/* attention_few.cu: float32, forward of a few queries a sequence */
enum { KT_ATTEND_FEW = 4, KT_ATTEND_FEW_QK = 576, KT_ATTEND_FEW_V = 512 };
/** Rows of a block; 0 where the operation is not for it. Of the host. */
int32_t kt_attend_few_rows(const struct kt_attention_args *a);
void kt_attend_few_forward(struct kt_cuda_device *cuda, const struct kt_attend *p, int32_t rows);

/* attention_plain.cu: float32, any shape */
void kt_attend_plain_forward(struct kt_cuda_device *cuda, const struct kt_attend *p);
void kt_attend_plain_backward(struct kt_cuda_device *cuda, const struct kt_attend *p);

#endif
