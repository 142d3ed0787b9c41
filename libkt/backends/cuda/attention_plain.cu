/* SPDX-License-Identifier: Apache-2.0 */
/* Attention in float32 for any shape. A block computes a tile of 64 x 64 scores, 16 of each of its
 * threads, and the product of what becomes of them with a matrix of at most WIDTH columns; wider
 * results are left to several blocks, which all compute the scores. */
#include "backends/cuda/attention.cuh"

namespace
{

enum {
    TILE = 64,
    THREADS = 256,
    LINE = 16, /* threads across a tile */
    EACH = TILE / LINE,
    DEPTH = 32, /* features of the factors that are in shared memory at a time */
    WIDTH = 128,
    FACTOR = TILE * (DEPTH + 1),
    RIGHT = DEPTH * WIDTH,
    FACTORS = 2 * FACTOR > RIGHT ? 2 * FACTOR : RIGHT,
    SCORES = TILE * (TILE + 1),
    SHARED_BYTES = (FACTORS + SCORES) * sizeof(float)
};

constexpr float NO_MAX = -1e30f;

/* TILE rows of a matrix, of which `count` exist; the others are zeros. */
template <typename T> struct rows {
    kt_attend_matrix<const T> matrix;
    int32_t first, count, col;

    __device__ __forceinline__ float get(int32_t row, int32_t i) const
    {
        return row < count ? kt_load(matrix.at(first + row) + col + i) : 0.0f;
    }
};

/* s[i][j] += <row line + 16 i of a, row column + 16 j of b> over `n` features */
template <typename T>
__device__ void add_dots(const rows<T> &a, const rows<T> &b, int32_t n, float *factors,
                         float (&s)[EACH][EACH])
{
    float *left = factors, *right = factors + FACTOR;
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int32_t base = 0; base < n; base += DEPTH) {
        int32_t depth = min((int32_t)DEPTH, n - base), at = threadIdx.x % DEPTH;
        __syncthreads();
        for (int32_t r = threadIdx.x / DEPTH; r < TILE; r += THREADS / DEPTH) {
            left[r * (DEPTH + 1) + at] = at < depth ? a.get(r, base + at) : 0.0f;
            right[r * (DEPTH + 1) + at] = at < depth ? b.get(r, base + at) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int32_t d = 0; d < DEPTH; d++)
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++)
                    s[i][j] = fmaf(left[(line + LINE * i) * (DEPTH + 1) + d],
                                   right[(column + LINE * j) * (DEPTH + 1) + d], s[i][j]);
    }
}

/* to[i][j] += the scores' row line + 16 i times column + 16 j of `width` columns of b */
template <typename T>
__device__ void add_product(const float *scores, const rows<T> &b, int32_t width, float *factors,
                            float (&to)[EACH][WIDTH / LINE])
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int32_t base = 0; base < b.count; base += DEPTH) {
        __syncthreads();
        for (int32_t i = threadIdx.x; i < RIGHT; i += THREADS)
            factors[i] = i % WIDTH < width ? b.get(base + i / WIDTH, i % WIDTH) : 0.0f;
        __syncthreads();
#pragma unroll 4
        for (int32_t d = 0; d < DEPTH; d++)
            for (int j = 0; j < WIDTH / LINE; j++)
                for (int i = 0; i < EACH; i++)
                    to[i][j] = fmaf(scores[(line + LINE * i) * (TILE + 1) + base + d],
                                    factors[d * WIDTH + column + LINE * j], to[i][j]);
    }
}

__device__ void put_scores(const float (&s)[EACH][EACH], float *scores)
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    __syncthreads();
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++)
            scores[(line + LINE * i) * (TILE + 1) + column + LINE * j] = s[i][j];
}

/* Of all of a tile's row. */
__device__ __forceinline__ float line_max(float x)
{
    for (int step = LINE / 2; step; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

__device__ __forceinline__ float line_sum(float x)
{
    for (int step = LINE / 2; step; step /= 2)
        x += __shfl_xor_sync(~0u, x, step);
    return x;
}

/* Views of one tile's sequence and key/value head. */
template <typename T> struct views {
    kt_attend_matrix<const T> q, k, k_shared, v, d_o;
};

template <typename T>
__device__ __forceinline__ views<T> views_of(const struct kt_attend &p,
                                             const struct kt_attend_tile &t, int32_t kv_head)
{
    return {kt_attend_query_rows<const T>(p, t, p.q, kv_head),
            kt_attend_key_rows<const T>(t, p.k, kv_head),
            kt_attend_key_rows<const T>(t, p.k_shared, 0),
            kt_attend_key_rows<const T>(t, p.v, kv_head),
            kt_attend_query_rows<const T>(p, t, p.d_o, kv_head)};
}

/* s = q k^T, of rows and keys that are counted from `row` and `key` */
template <typename T>
__device__ void score(const struct kt_attend &p, const views<T> &x, int32_t row, int32_t num_rows,
                      int32_t key, int32_t num_keys, float *factors, float (&s)[EACH][EACH])
{
    memset(s, 0, sizeof s);
    add_dots<T>({x.q, row, num_rows, 0}, {x.k, key, num_keys, 0}, p.own, factors, s);
    if (p.a.shared_dim)
        add_dots<T>({x.q, row, num_rows, p.own}, {x.k_shared, key, num_keys, 0}, p.a.shared_dim,
                    factors, s);
}

struct softmax {
    float max[EACH], sum[EACH];
};

/* s becomes unnormalised probabilities; returns in `factor` what older sums are rescaled by. */
__device__ void accumulate_softmax(const struct kt_attend &p, const struct kt_attend_tile &t,
                                   int32_t key, int32_t num_keys, float (&s)[EACH][EACH],
                                   struct softmax &soft, float (&factor)[EACH])
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int i = 0; i < EACH; i++) {
        int32_t first, last;
        float best = soft.max[i], sum = 0;
        kt_attend_visible(p, t, (t.first + line + LINE * i) / p.group, &first, &last);
        last = min(last, key + num_keys);
        for (int j = 0; j < EACH; j++) {
            int32_t at = key + column + LINE * j;
            if (at >= first && at < last)
                best = fmaxf(best, s[i][j] * p.a.scale);
        }
        best = line_max(best);
        for (int j = 0; j < EACH; j++) {
            int32_t at = key + column + LINE * j;
            s[i][j] = at >= first && at < last ? expf(fmaf(s[i][j], p.a.scale, -best)) : 0.0f;
            sum += s[i][j];
        }
        factor[i] = expf(soft.max[i] - best);
        soft.sum[i] = soft.sum[i] * factor[i] + line_sum(sum);
        soft.max[i] = best;
    }
}

/* Of the blocks of a tile: one for each key/value head and WIDTH columns of the result. The last
 * tiles see most keys and go first. */
struct place {
    int32_t tile, kv_head, col, width;
};

__device__ __forceinline__ struct place place_of(int32_t heads, int32_t columns, int32_t splits = 1)
{
    int32_t chunks = (columns + WIDTH - 1) / WIDTH, each = heads * chunks;
    int32_t tiles = (int32_t)gridDim.x / splits / each, i = (int32_t)blockIdx.x / splits;
    int32_t col = i % chunks * WIDTH;
    return {tiles - 1 - i / each, i / chunks % heads, col, min((int32_t)WIDTH, columns - col)};
}

/* Columns of the output, or of a split. */
template <typename T>
__device__ void write_output(const struct kt_attend &p, const struct kt_attend_tile &t,
                             const struct place &b, int32_t split,
                             const float (&o)[EACH][WIDTH / LINE], const struct softmax &soft)
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    kt_attend_matrix<T> to = kt_attend_query_rows<T>(p, t, p.a.o, p.a.o_head_stride, b.kv_head);
    for (int i = 0; i < EACH; i++) {
        int32_t row = line + LINE * i;
        if (row >= t.count)
            continue;
        int64_t index = kt_attend_index(p, t, b.kv_head, t.first + row);
        bool leads = b.col == 0 && column == 0;
        float factor = 1.0f / soft.sum[i], *part = kt_attend_part(p, split, index);
        for (int j = 0; j < WIDTH / LINE; j++) {
            int32_t col = b.col + column + LINE * j;
            if (column + LINE * j >= b.width)
                continue;
            if (p.splits > 1)
                part[col] = o[i][j];
            else
                kt_store(to.at(t.first + row) + col, o[i][j] * factor);
        }
        if (p.splits > 1 && leads)
            part[p.a.v_dim] = soft.max[i], part[p.a.v_dim + 1] = soft.sum[i];
        else if (p.a.lse && leads)
            p.a.lse[index] = soft.max[i] + logf(soft.sum[i]);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ float shared[];
    float *factors = shared, *scores = shared + FACTORS;
    struct place b = place_of(p.a.num_kv_heads, p.a.v_dim, p.splits);
    struct kt_attend_tile t = kt_attend_find(p, p.group, TILE, b.tile);
    views<T> x = views_of<T>(p, t, b.kv_head);
    float o[EACH][WIDTH / LINE] = {};
    struct softmax soft = {{NO_MAX, NO_MAX, NO_MAX, NO_MAX}};
    int32_t from, to, split = (int32_t)blockIdx.x % p.splits;
    kt_attend_keys(p, t, &from, &to);
    kt_attend_split(p, split, &from, &to);
    for (int32_t key = from; key < to; key += TILE) {
        int32_t keys = min((int32_t)TILE, to - key);
        float s[EACH][EACH], factor[EACH];
        score(p, x, t.first, t.count, key, keys, factors, s);
        accumulate_softmax(p, t, key, keys, s, soft, factor);
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < WIDTH / LINE; j++)
                o[i][j] *= factor[i];
        put_scores(s, scores);
        add_product<T>(scores, {x.v, key, keys, b.col}, b.width, factors, o);
    }
    write_output<T>(p, t, b, split, o, soft);
}

__device__ __forceinline__ bool sees(const struct kt_attend &p, const struct kt_attend_tile &t,
                                     int32_t row, int32_t key)
{
    int32_t first, last;
    kt_attend_visible(p, t, row / p.group, &first, &last);
    return key >= first && key < last;
}

/* The probability of a score. */
__device__ __forceinline__ float probability(const struct kt_attend &p, float score, float lse)
{
    return expf(fmaf(score, p.a.scale, -lse));
}

/* s becomes the gradient of the unscaled scores; s is of rows. */
__device__ void row_gradients(const struct kt_attend &p, const struct kt_attend_tile &t,
                              int32_t kv_head, int32_t key, int32_t num_keys,
                              const float (&dp)[EACH][EACH], float (&s)[EACH][EACH])
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int i = 0; i < EACH; i++) {
        int32_t row = min(line + LINE * i, t.count - 1) + t.first;
        int64_t index = kt_attend_index(p, t, kv_head, row);
        float lse = p.a.lse[index], delta = p.delta[index];
        for (int j = 0; j < EACH; j++) {
            int32_t at = column + LINE * j;
            bool seen = at < num_keys && sees(p, t, row, key + at);
            s[i][j] = seen ? probability(p, s[i][j], lse) * (dp[i][j] - delta) * p.a.scale : 0.0f;
        }
    }
}

/* dq, WIDTH columns of it */
template <typename T>
__global__ void __launch_bounds__(THREADS) backward_rows(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ float shared[];
    float *factors = shared, *scores = shared + FACTORS;
    /* a block's columns are all of one part of the key */
    int32_t own_chunks = (p.own + WIDTH - 1) / WIDTH;
    struct place b = place_of(p.a.num_kv_heads, own_chunks * WIDTH + p.a.shared_dim);
    bool of_shared = b.col >= own_chunks * WIDTH;
    int32_t right_col = of_shared ? b.col - own_chunks * WIDTH : b.col;
    int32_t width = of_shared ? b.width : min((int32_t)WIDTH, p.own - b.col);
    struct kt_attend_tile t = kt_attend_find(p, p.group, TILE, b.tile);
    views<T> x = views_of<T>(p, t, b.kv_head);
    float dq[EACH][WIDTH / LINE] = {};
    int32_t from, to, line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    kt_attend_keys(p, t, &from, &to);
    for (int32_t key = from; key < to; key += TILE) {
        int32_t keys = min((int32_t)TILE, to - key);
        float s[EACH][EACH], dp[EACH][EACH] = {};
        score(p, x, t.first, t.count, key, keys, factors, s);
        add_dots<T>({x.d_o, t.first, t.count, 0}, {x.v, key, keys, 0}, p.a.v_dim, factors, dp);
        row_gradients(p, t, b.kv_head, key, keys, dp, s);
        put_scores(s, scores);
        add_product<T>(scores, {of_shared ? x.k_shared : x.k, key, keys, right_col}, width, factors,
                       dq);
    }
    kt_attend_matrix<T> out = kt_attend_query_rows<T>(p, t, p.a.dq, p.a.q_head_stride, b.kv_head);
    int32_t col = of_shared ? p.own + right_col : right_col;
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < WIDTH / LINE; j++)
            if (line + LINE * i < t.count && column + LINE * j < width)
                kt_store(out.at(t.first + line + LINE * i) + col + column + LINE * j, dq[i][j]);
}

enum part { OWN, SHARED, VALUE };

/* s = the probabilities, transposed: of keys; dp, unless NULL: s becomes their gradients. */
__device__ void key_gradients(const struct kt_attend &p, const struct kt_attend_tile &t,
                              int32_t kv_head, int32_t row, int32_t num_rows, bool gradients,
                              const float (&dp)[EACH][EACH], float (&s)[EACH][EACH])
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int j = 0; j < EACH; j++) {
        int32_t at = row + min(column + LINE * j, num_rows - 1);
        int64_t index = kt_attend_index(p, t, kv_head, at);
        float lse = p.a.lse[index], delta = p.delta[index];
        for (int i = 0; i < EACH; i++) {
            bool seen = column + LINE * j < num_rows && line + LINE * i < t.count &&
                        sees(p, t, at, t.first + line + LINE * i);
            float x = seen ? probability(p, s[i][j], lse) : 0.0f;
            s[i][j] = gradients ? x * (dp[i][j] - delta) * p.a.scale : x;
        }
    }
}

template <typename T, enum part PART>
__device__ void add_rows(const struct kt_attend &p, const struct kt_attend_tile &t, int32_t kv_head,
                         int32_t col, int32_t width, float *shared,
                         float (&sum)[EACH][WIDTH / LINE])
{
    float *factors = shared, *scores = shared + FACTORS;
    views<T> x = views_of<T>(p, t, kv_head);
    int32_t from, to;
    kt_attend_rows(p, t, &from, &to);
    for (int32_t row = from; row < to; row += TILE) {
        int32_t num_rows = min((int32_t)TILE, to - row);
        float s[EACH][EACH] = {}, dp[EACH][EACH] = {};
        add_dots<T>({x.k, t.first, t.count, 0}, {x.q, row, num_rows, 0}, p.own, factors, s);
        if (p.a.shared_dim)
            add_dots<T>({x.k_shared, t.first, t.count, 0}, {x.q, row, num_rows, p.own},
                        p.a.shared_dim, factors, s);
        if (PART != VALUE)
            add_dots<T>({x.v, t.first, t.count, 0}, {x.d_o, row, num_rows, 0}, p.a.v_dim, factors,
                        dp);
        key_gradients(p, t, kv_head, row, num_rows, PART != VALUE, dp, s);
        put_scores(s, scores);
        add_product<T>(
            scores,
            {PART == VALUE ? x.d_o : x.q, row, num_rows, PART == SHARED ? p.own + col : col}, width,
            factors, sum);
    }
}

template <typename T>
__device__ void write_keys(const struct kt_attend_tile &t, const kt_attend_matrix<T> &to,
                           int32_t col, int32_t width, const float (&sum)[EACH][WIDTH / LINE])
{
    int32_t line = threadIdx.x / LINE, column = threadIdx.x % LINE;
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < WIDTH / LINE; j++)
            if (line + LINE * i < t.count && column + LINE * j < width)
                kt_store(to.at(t.first + line + LINE * i) + col + column + LINE * j, sum[i][j]);
}

/* WIDTH columns of dk or dv of a key/value head */
template <typename T, enum part PART>
__global__ void __launch_bounds__(THREADS) backward_keys(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ float shared[];
    struct place b = place_of(p.a.num_kv_heads, PART == OWN ? p.own : p.a.v_dim);
    struct kt_attend_tile t = kt_attend_find(p, 0, TILE, b.tile);
    float sum[EACH][WIDTH / LINE] = {};
    add_rows<T, PART>(p, t, b.kv_head, b.col, b.width, shared, sum);
    write_keys<T>(t,
                  PART == OWN ? kt_attend_key_rows<T>(t, p.a.dk, p.a.k_head_stride, b.kv_head)
                              : kt_attend_key_rows<T>(t, p.a.dv, p.a.v_head_stride, b.kv_head),
                  b.col, b.width, sum);
}

/* WIDTH columns of dk_shared, of a unit */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    backward_shared(const __grid_constant__ struct kt_attend p)
{
    extern __shared__ float shared[];
    struct place b = place_of(p.units, p.a.shared_dim);
    struct kt_attend_tile t = kt_attend_find(p, 0, TILE, b.tile);
    float sum[EACH][WIDTH / LINE] = {};
    int32_t head = b.kv_head * p.unit_heads, end = min(head + p.unit_heads, p.a.num_kv_heads);
    for (; head < end; head++)
        add_rows<T, SHARED>(p, t, head, b.col, b.width, shared, sum);
    if (!p.shared_parts) {
        write_keys<T>(t, kt_attend_key_rows<T>(t, p.a.dk_shared, 0, 0), b.col, b.width, sum);
        return;
    }
    int64_t ld = p.a.shared_dim;
    kt_attend_matrix<float> part = {p.shared_parts + (b.kv_head * p.keys + t.key) * ld, ld, 0, 1};
    write_keys<float>(t, part, b.col, b.width, sum);
}

int64_t chunks(int32_t columns)
{
    return (columns + WIDTH - 1) / WIDTH;
}

void launch(struct kt_cuda_device *cuda, const void *kernel, int64_t blocks,
            const struct kt_attend *p)
{
    kt_attend_launch(cuda, kernel, blocks, THREADS, SHARED_BYTES, p);
}

template <typename T> void run_backward(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    int64_t heads = p->a.num_kv_heads, shared = chunks(p->a.shared_dim);
    int64_t row_tiles = kt_attend_count(&p->a.queries, p->group, TILE);
    int64_t key_tiles = kt_attend_count(&p->a.keys, 1, TILE);
    launch(cuda, (const void *)backward_rows<T>, row_tiles * heads * (chunks(p->own) + shared), p);
    launch(cuda, (const void *)backward_keys<T, OWN>, key_tiles * heads * chunks(p->own), p);
    launch(cuda, (const void *)backward_keys<T, VALUE>, key_tiles * heads * chunks(p->a.v_dim), p);
    launch(cuda, (const void *)backward_shared<T>, key_tiles * p->units * shared, p);
}

} // namespace

void kt_attend_plain_forward(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
    int64_t blocks = kt_attend_count(&p->a.queries, p->group, TILE) * p->a.num_kv_heads *
                     chunks(p->a.v_dim) * p->splits;
#define RUN(T) launch(cuda, (const void *)forward<T>, blocks, p)
    KT_BY_DTYPE(p->a.q.dtype, RUN);
#undef RUN
}

void kt_attend_plain_backward(struct kt_cuda_device *cuda, const struct kt_attend *p)
{
#define RUN(T) run_backward<T>(cuda, p)
    KT_BY_DTYPE(p->a.q.dtype, RUN);
#undef RUN
}
