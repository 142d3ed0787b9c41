/* SPDX-License-Identifier: Apache-2.0 */
/* Copies in BF16 of float32 inputs that tiles read many times. */
#include "backends/cuda/attention.cuh"
#include "backends/cuda/vector.cuh"

namespace
{

enum { INPUTS = 5, THREADS = 256, CHUNK = 8 /* elements of a thread */, LINE = 256 };

/* The copy is dense. */
struct input {
    struct kt_attend_input from;
    __nv_bfloat16 *to;
    int64_t rows;
    int32_t heads, dim;
    int32_t blocks;
    bool wide; /* chunks are aligned */
};

struct inputs {
    struct input list[INPUTS];
};

__global__ void __launch_bounds__(THREADS) pack(const __grid_constant__ struct inputs all)
{
    int32_t block = (int32_t)blockIdx.x, i = 0;
    for (; block >= all.list[i].blocks; i++)
        block -= all.list[i].blocks;
    const struct input &x = all.list[i];
    uint32_t across = (uint32_t)(x.dim + CHUNK - 1) / CHUNK;
    int64_t id = (int64_t)block * THREADS + threadIdx.x, head_row = id / across;
    int32_t col = (int32_t)(id % across) * CHUNK;
    int64_t row = head_row / x.heads, head = head_row % x.heads;
    if (row >= x.rows)
        return;
    const float *from =
        (const float *)x.from.view.data + row * x.from.view.ld + head * x.from.head_stride + col;
    __nv_bfloat16 *to = x.to + head_row * x.dim + col;
    if (x.wide) {
        float values[CHUNK];
        kt_load_8(from, values);
        kt_store_8(to, values);
    } else
        for (int32_t k = 0; k < CHUNK && col + k < x.dim; k++)
            kt_store(to + k, kt_load(from + k));
}

uint64_t bytes_of(int64_t rows, int64_t heads, int64_t dim)
{
    return (uint64_t)(rows * heads * dim * 2 + LINE - 1) / LINE * LINE;
}

/* Lets x be its copy at *memory, which moves behind it. */
struct input replace(struct kt_attend_input *x, int64_t rows, int32_t heads, int32_t dim,
                     char **memory)
{
    int64_t chunks = rows * heads * ((dim + CHUNK - 1) / CHUNK);
    struct input in = {*x, (__nv_bfloat16 *)*memory, rows, heads, dim};
    in.blocks = (int32_t)((chunks + THREADS - 1) / THREADS);
    in.wide = dim % CHUNK == 0 && x->view.ld % 4 == 0 && x->head_stride % 4 == 0 &&
              (uintptr_t)x->view.data % 16 == 0;
    *x = {{*memory, (int64_t)heads * dim, KT_DTYPE_BF16}, dim};
    *memory += bytes_of(rows, heads, dim);
    return in;
}

} // namespace

uint64_t kt_attend_pack_bytes(const struct kt_attend *p, int32_t heads, bool backward)
{
    int64_t query_heads = (int64_t)heads * p->group;
    return bytes_of(p->queries, query_heads, p->a.qk_dim) + bytes_of(p->keys, heads, p->own) +
           bytes_of(p->keys, 1, p->a.shared_dim) + bytes_of(p->keys, heads, p->a.v_dim) +
           (backward ? bytes_of(p->queries, query_heads, p->a.v_dim) : 0);
}

void kt_attend_pack(struct kt_cuda_device *cuda, struct kt_attend *p, bool backward, void *memory)
{
    const struct kt_attention_args *a = &p->a;
    char *at = (char *)memory;
    int64_t blocks = 0;
    struct inputs all = {{replace(&p->q, p->queries, a->num_heads, a->qk_dim, &at),
                          replace(&p->k, p->keys, a->num_kv_heads, p->own, &at),
                          replace(&p->k_shared, p->keys, 1, a->shared_dim, &at),
                          replace(&p->v, p->keys, a->num_kv_heads, a->v_dim, &at)}};
    if (backward)
        all.list[INPUTS - 1] = replace(&p->d_o, p->queries, a->num_heads, a->v_dim, &at);
    for (const struct input &x : all.list)
        blocks += x.blocks;
    kt_attend_launch(cuda, (const void *)pack, blocks, THREADS, 0, &all);
}
