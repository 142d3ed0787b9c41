/* SPDX-License-Identifier: Apache-2.0 */
/* Which kernels attention takes, and their scratch. */
#include "backends/cuda/attention.cuh"

enum {
    WARP = 32,
    WARPS = 8,          /* of a block that takes a row a warp */
    KEY_TILE = 64,      /* keys whose dk_shared is summed by a block */
    MANY_BLOCKS = 2048, /* that fill any device */
    SOME_BLOCKS = 512,  /* that fill one when they are alike */
    ROW_TILE = 64,
    SPLIT_KEYS = 256, /* fewest of a split */
    FEW_KEYS = 8,     /* likewise, of rows that have warps of their own */
    MOST_SPLITS = 64,
    PACKED_ROWS = 512,       /* of a sequence that read its keys often enough to copy them */
    PACKED_BYTES = 256 << 20 /* of copies at a time, if that is a head's at least */
};

int64_t kt_attend_count(const struct kt_offsets *offsets, int32_t per_item, int32_t size)
{
    int64_t tiles = 0;
    for (int32_t s = 0; s < offsets->num; s++) {
        int64_t rows = (int64_t)(offsets->host[s + 1] - offsets->host[s]) * per_item;
        tiles += (rows + size - 1) / size;
    }
    return tiles;
}

void kt_attend_launch(struct kt_cuda_device *cuda, const void *kernel, int64_t blocks,
                      int32_t threads, size_t shared, const void *args)
{
    void *list[] = {(void *)args};
    if (!blocks)
        return;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error == cudaSuccess)
        error = cudaLaunchKernel(kernel, dim3((unsigned)blocks), dim3((unsigned)threads), list,
                                 shared, cuda->compute);
    kt_cuda_check(cuda, error, "attention");
}

/* A warp for each query and head. */
template <typename T>
static __global__ void __launch_bounds__(WARPS *WARP)
    dot_outputs(const __grid_constant__ struct kt_attend p)
{
    const struct kt_attention_args &a = p.a;
    int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (i >= p.queries * a.num_heads)
        return;
    int64_t query = i / a.num_heads, head = i % a.num_heads;
    const T *o = (const T *)a.o.data + query * a.o.ld + head * a.o_head_stride;
    const T *d_o = (const T *)a.d_o.data + query * a.d_o.ld + head * a.o_head_stride;
    float sum = 0;
    for (int32_t k = threadIdx.x % WARP; k < a.v_dim; k += WARP)
        sum += kt_load(o + k) * kt_load(d_o + k);
    sum = kt_warp_sum(sum);
    if (threadIdx.x % WARP == 0)
        p.delta[head * p.queries + query] = sum;
}

template <typename T>
static __global__ void __launch_bounds__(WARPS *WARP)
    add_shared_parts(const __grid_constant__ struct kt_attend p)
{
    const struct kt_view &to = p.a.dk_shared;
    int64_t n = p.keys * p.a.shared_dim, i = (int64_t)blockIdx.x * WARPS * WARP + threadIdx.x;
    if (i >= n)
        return;
    float sum = 0;
    for (int32_t unit = 0; unit < p.units; unit++)
        sum += p.shared_parts[unit * n + i];
    kt_store((T *)to.data + i / p.a.shared_dim * to.ld + i % p.a.shared_dim, sum);
}

/* A block for each query and head. */
template <typename T>
static __global__ void __launch_bounds__(WARPS *WARP)
    join_splits(const __grid_constant__ struct kt_attend p)
{
    const struct kt_attention_args &a = p.a;
    int64_t index = blockIdx.x, head = index / p.queries, query = index % p.queries;
    float max = -INFINITY, sum = 0;
    for (int32_t split = 0; split < p.splits; split++)
        max = fmaxf(max, kt_attend_part(p, split, index)[a.v_dim]);
    for (int32_t split = 0; split < p.splits; split++) {
        const float *part = kt_attend_part(p, split, index) + a.v_dim;
        sum += expf(part[0] - max) * part[1];
    }
    for (int32_t i = threadIdx.x; i < a.v_dim; i += WARPS * WARP) {
        float o = 0;
        for (int32_t split = 0; split < p.splits; split++) {
            const float *part = kt_attend_part(p, split, index);
            o += expf(part[a.v_dim] - max) * part[i];
        }
        kt_store((T *)a.o.data + query * a.o.ld + head * a.o_head_stride + i, o / sum);
    }
    if (a.lse && threadIdx.x == 0)
        a.lse[index] = max + logf(sum);
}

static bool is_wide(const struct kt_attend_input *x)
{
    int64_t line = 16 / kt_view_element(x->view.dtype); /* elements that are loaded at once */
    return x->view.ld % line == 0 && x->head_stride % line == 0 &&
           (uintptr_t)x->view.data % 16 == 0;
}

static bool are_wide(const struct kt_attend *p, bool backward)
{
    return p->own % 8 == 0 && p->a.shared_dim % 8 == 0 && p->a.v_dim % 8 == 0 && is_wide(&p->q) &&
           is_wide(&p->k) && is_wide(&p->v) && (!p->a.shared_dim || is_wide(&p->k_shared)) &&
           (!backward || is_wide(&p->d_o));
}

/* Parts depend on the shapes alone, so that bits do not depend on the device. */
static struct kt_attend init(const struct kt_attention_args *a)
{
    struct kt_attend p = {*a};
    p.group = a->num_heads / a->num_kv_heads;
    p.own = a->qk_dim - a->shared_dim;
    p.q = {a->q, a->q_head_stride}, p.d_o = {a->d_o, a->o_head_stride};
    p.k = {a->k, a->k_head_stride}, p.k_shared = {a->k_shared, 0};
    p.v = {a->v, a->v_head_stride};
    p.splits = 1;
    if (!a->queries.num)
        return p;
    p.queries = a->queries.host[a->queries.num];
    p.keys = a->keys.host[a->keys.num];
    int64_t tiles = kt_attend_count(&a->keys, 1, KEY_TILE), units = a->num_kv_heads;
    if (a->shared_dim && tiles * units > MANY_BLOCKS)
        units = (MANY_BLOCKS + tiles - 1) / tiles;
    p.unit_heads = (int32_t)((a->num_kv_heads + units - 1) / units);
    p.units = (a->num_kv_heads + p.unit_heads - 1) / p.unit_heads;
    return p;
}

/* Keys are split, `least` or more together, where tiles of `rows` rows alone make few blocks. */
static void choose_splits(struct kt_attend *p, int32_t rows, int64_t least)
{
    const struct kt_attention_args *a = &p->a;
    int64_t tiles = kt_attend_count(&a->queries, p->group, rows) * a->num_kv_heads, most = 0;
    for (int32_t s = 0; s < a->queries.num; s++) {
        int64_t keys = a->keys.host[s + 1] - a->keys.host[s];
        if (a->window)
            keys = min(keys, a->queries.host[s + 1] - a->queries.host[s] + (int64_t)a->window);
        most = max(most, keys);
    }
    int64_t splits = min(SOME_BLOCKS / max(tiles, (int64_t)1), most / least), step;
    splits = max(min(splits, (int64_t)MOST_SPLITS), (int64_t)1);
    step = splits * min(least, (int64_t)KEY_TILE);
    p->split_keys = (int32_t)((most + step - 1) / step * (step / splits));
    p->splits = most ? (int32_t)((most + p->split_keys - 1) / p->split_keys) : 1;
}

/* The part of an operation that key/value heads [first, first + count) are. */
static struct kt_attend part_of(const struct kt_attend *whole, int32_t first, int32_t count)
{
    struct kt_attend p = *whole;
    int64_t q = (int64_t)first * p.group, k = first;
    p.a.num_kv_heads = count, p.a.num_heads = count * p.group;
    p.q.view = kt_view_at(p.q.view, 0, q * p.q.head_stride);
    p.k.view = kt_view_at(p.k.view, 0, k * p.k.head_stride);
    p.v.view = kt_view_at(p.v.view, 0, k * p.v.head_stride);
    p.d_o.view = kt_view_at(p.d_o.view, 0, q * p.d_o.head_stride);
    p.a.o = kt_view_at(p.a.o, 0, q * p.a.o_head_stride);
    p.a.dq = kt_view_at(p.a.dq, 0, q * p.a.q_head_stride);
    p.a.dk = kt_view_at(p.a.dk, 0, k * p.a.k_head_stride);
    p.a.dv = kt_view_at(p.a.dv, 0, k * p.a.v_head_stride);
    p.a.lse = p.a.lse ? p.a.lse + q * p.queries : NULL;
    p.delta = p.delta ? p.delta + q * p.queries : NULL;
    p.units = (count + p.unit_heads - 1) / p.unit_heads;
    if (p.shared_parts)
        p.shared_parts += first / p.unit_heads * p.keys * p.a.shared_dim;
    return p;
}

/* Key/value heads whose inputs are copied at a time: whole units; 0 = they are read where they are
 */
static int32_t heads_of_pack(const struct kt_attend *p, bool backward)
{
    const struct kt_offsets *queries = &p->a.queries;
    int32_t longest = 0, unit = backward ? p->unit_heads : 1;
    for (int32_t s = 0; s < queries->num; s++)
        longest = max(longest, queries->host[s + 1] - queries->host[s]);
    if (!kt_attend_fits_tiles(&p->a) || p->a.q.dtype != KT_DTYPE_F32 || p->splits > 1 ||
        (!backward && (int64_t)longest * p->group < PACKED_ROWS))
        return 0;
    int32_t units = (int32_t)(PACKED_BYTES / kt_attend_pack_bytes(p, unit, backward));
    return min(max(units, 1) * unit, p->a.num_kv_heads);
}

/* Scratch is told as the most that an operation on these tokens or fewer would take, since what was
 * measured for many must serve fewer, which may be split or copied otherwise. */

static uint64_t pack_bytes(const struct kt_attend *p, bool backward)
{
    uint64_t unit = kt_attend_pack_bytes(p, backward ? p->unit_heads : 1, backward);
    uint64_t all = kt_attend_pack_bytes(p, p->a.num_kv_heads, backward);
    if (!kt_attend_fits_tiles(&p->a) || p->a.q.dtype != KT_DTYPE_F32)
        return 0;
    return min(all, max(unit, (uint64_t)PACKED_BYTES));
}

static void run_forward(struct kt_cuda_device *cuda, struct kt_attend *p)
{
    p->wide = are_wide(p, false);
    if (kt_attend_fits_tiles(&p->a))
        kt_attend_tiles_forward(cuda, p);
    else
        kt_attend_plain_forward(cuda, p);
}

static void run_backward(struct kt_cuda_device *cuda, struct kt_attend *p)
{
    p->wide = are_wide(p, true);
    if (kt_attend_fits_tiles(&p->a)) {
        kt_attend_tiles_rows(cuda, p);
        kt_attend_tiles_keys(cuda, p);
    } else
        kt_attend_plain_backward(cuda, p);
}

/* Runs it on all heads, in parts if their inputs are copied. */
static void run_heads(struct kt_cuda_device *cuda, struct kt_attend *p, bool backward, void *memory)
{
    int32_t heads = heads_of_pack(p, backward), step = heads ? heads : p->a.num_kv_heads;
    for (int32_t first = 0; first < p->a.num_kv_heads; first += step) {
        struct kt_attend part = part_of(p, first, min(step, p->a.num_kv_heads - first));
        if (heads)
            kt_attend_pack(cuda, &part, backward, memory);
        if (backward)
            run_backward(cuda, &part);
        else
            run_forward(cuda, &part);
    }
}

static uint64_t split_bytes(const struct kt_attend *p)
{
    uint64_t rows = min(MOST_SPLITS * p->queries * p->a.num_heads, (int64_t)SOME_BLOCKS * ROW_TILE);
    return rows * (uint64_t)(p->a.v_dim + 2) * sizeof(float);
}

uint64_t kt_cuda_attention_forward_scratch(const struct kt_cuda_device *cuda,
                                           const struct kt_attention_args *a)
{
    struct kt_attend p = init(a);
    (void)cuda;
    if (!p.queries)
        return 0;
    return max(split_bytes(&p), pack_bytes(&p, false)); /* one or the other */
}

void kt_cuda_attention_forward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    struct kt_attend p = init((const struct kt_attention_args *)args);
    if (!p.queries)
        return;
    int32_t few = kt_attend_few_rows(&p.a);
    choose_splits(&p, few ? few : ROW_TILE, few ? FEW_KEYS : SPLIT_KEYS);
    p.parts = (float *)scratch;
    if (few)
        kt_attend_few_forward(cuda, &p, few);
    else
        run_heads(cuda, &p, false, scratch); /* there are splits or copies, not both */
#define JOIN(T)                                                                                    \
    kt_attend_launch(cuda, (const void *)join_splits<T>, p.queries *p.a.num_heads, WARPS *WARP, 0, \
                     &p)
    if (p.splits > 1)
        KT_BY_DTYPE(p.a.q.dtype, JOIN);
#undef JOIN
}

static uint64_t delta_bytes(const struct kt_attend *p)
{
    return ((uint64_t)p->queries * (uint64_t)p->a.num_heads * sizeof(float) + 255) / 256 * 256;
}

static uint64_t shared_parts_bytes(const struct kt_attend *p)
{
    int64_t rows = min(p->a.num_kv_heads * p->keys, MANY_BLOCKS * KEY_TILE + p->keys);
    return ((uint64_t)(rows * p->a.shared_dim) * sizeof(float) + 255) / 256 * 256;
}

uint64_t kt_cuda_attention_backward_scratch(const struct kt_cuda_device *cuda,
                                            const struct kt_attention_args *a)
{
    struct kt_attend p = init(a);
    (void)cuda;
    if (!p.keys)
        return 0;
    return delta_bytes(&p) + shared_parts_bytes(&p) + pack_bytes(&p, true);
}

template <typename T>
static void backward(struct kt_cuda_device *cuda, struct kt_attend *p, char *memory)
{
    int64_t rows = p->queries * p->a.num_heads, shared = p->keys * p->a.shared_dim;
    kt_attend_launch(cuda, (const void *)dot_outputs<T>, (rows + WARPS - 1) / WARPS, WARPS * WARP,
                     0, p);
    run_heads(cuda, p, true, memory);
    if (p->shared_parts)
        kt_attend_launch(cuda, (const void *)add_shared_parts<T>,
                         (shared + WARPS * WARP - 1) / (WARPS * WARP), WARPS * WARP, 0, p);
}

void kt_cuda_attention_backward(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_attend p = init((const struct kt_attention_args *)args);
    char *memory = (char *)scratch;
    p.delta = (float *)memory;
    memory += delta_bytes(&p);
    if (p.a.shared_dim && p.units > 1)
        p.shared_parts = (float *)memory;
    memory += shared_parts_bytes(&p);
#define RUN(T) backward<T>(kt_cuda(dev), &p, memory)
    if (p.keys)
        KT_BY_DTYPE(p.a.q.dtype, RUN);
#undef RUN
}
