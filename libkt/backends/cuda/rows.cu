/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that touch each element once. */
#include "backends/cuda/decode.cuh"
#include "backends/cuda/quad.cuh"

namespace
{

/* y may be x. */
template <bool ALIGNED> __global__ void __launch_bounds__(KT_BLOCK) add_rows(struct kt_rows_args a)
{
    int64_t first = kt_item() * 4, left = a.dim - first;
    if (left <= 0)
        return;
    KT_EACH_ROW(t, a.tokens)
    {
        struct kt_quad x = kt_get<ALIGNED>(a.x, t * a.x.ld + first, left);
        struct kt_quad y = {0, 0, 0, 0};
        if (a.accumulate)
            y = kt_get<ALIGNED>(a.y, t * a.y.ld + first, left);
        for (int i = 0; i < 4; i++)
            y.v[i] = a.accumulate ? y.v[i] + a.alpha * x.v[i] : a.alpha * x.v[i];
        kt_put<ALIGNED>(a.y, t * a.y.ld + first, left, y);
    }
}

void launch_add(struct kt_cuda_device *cuda, const char *what, struct kt_rows_args a)
{
    if (a.tokens <= 0 || a.dim <= 0)
        return;
    if (a.x.ld == a.dim && a.y.ld == a.dim) { /* one row, whatever dim is */
        a.dim *= a.tokens;
        a.tokens = 1;
        a.x.ld = a.y.ld = a.dim;
    }
    bool aligned = kt_has_quads(&a.x, a.dim) && kt_has_quads(&a.y, a.dim);
    KT_LAUNCH(cuda, what, add_rows, aligned, a.tokens, (a.dim + 3) / 4, a);
}

/* Philox-4x32-10, as core/random.c. */
__device__ __forceinline__ void philox(uint64_t key, uint64_t high, uint64_t low, uint32_t *out)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)low, c1 = (uint32_t)(low >> 32);
    uint32_t c2 = (uint32_t)high, c3 = (uint32_t)(high >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* A quad is what one counter draws. */
template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) drop_rows(struct kt_dropout_args a, float keep)
{
    int64_t first = kt_item() * 4, left = a.dim - first;
    if (left <= 0)
        return;
    KT_EACH_ROW(t, a.tokens)
    {
        uint32_t words[4];
        struct kt_quad x = kt_get<ALIGNED>(a.x, t * a.x.ld + first, left);
        struct kt_quad y = {0, 0, 0, 0};
        if (a.accumulate)
            y = kt_get<ALIGNED>(a.y, t * a.y.ld + first, left);
        int64_t token = a.index ? a.index[t] : t;
        philox(a.key, (uint64_t)token, (uint64_t)first / 4, words);
        for (int i = 0; i < 4; i++) {
            float uniform = (float)(words[i] >> 8) * 0x1p-24f;
            float value = uniform < a.p ? 0 : __fmul_rn(x.v[i], keep);
            y.v[i] = a.accumulate ? y.v[i] + value : value;
        }
        kt_put<ALIGNED>(a.y, t * a.y.ld + first, left, y);
    }
}

template <bool ALIGNED>
__global__ void __launch_bounds__(KT_BLOCK) embed_rows(struct kt_embedding_args a)
{
    int64_t first = kt_item() * 4, left = a.table.cols - first;
    if (left <= 0)
        return;
    KT_EACH_ROW(t, a.tokens)
    {
        struct kt_quad x = {0, 0, 0, 0};
        for (int i = 0; i < 4 && i < left; i++)
            x.v[i] = kt_cuda_element(a.table, a.ids[t], first + i);
        kt_put<ALIGNED>(a.x, t * a.x.ld + first, left, x);
    }
}

} // namespace

cudaError_t kt_cuda_has_code(void)
{
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, (const void *)add_rows<true>);
    cudaGetLastError();
    return error;
}

void kt_cuda_add(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    launch_add(kt_cuda(dev), "add", *(const struct kt_rows_args *)args);
}

void kt_cuda_convert(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_rows_args a = *(const struct kt_rows_args *)args;
    (void)scratch;
    a.alpha = 1;
    a.accumulate = false;
    launch_add(kt_cuda(dev), "convert", a);
}

void kt_cuda_zero(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_rows_args *a = (const struct kt_rows_args *)args;
    struct kt_cuda_device *cuda = kt_cuda(dev);
    size_t element = (size_t)kt_view_element(a->y.dtype), row = (size_t)a->dim * element;
    (void)scratch;
    if (a->tokens <= 0 || a->dim <= 0)
        return;
    if (a->tokens == 1 || a->y.ld == 0 || a->y.ld == a->dim) {
        size_t rows = a->y.ld == 0 ? 1 : (size_t)a->tokens;
        kt_cuda_check(cuda, cudaMemsetAsync(a->y.data, 0, rows * row, cuda->compute), "zero");
    } else {
        kt_cuda_check(cuda,
                      cudaMemset2DAsync(a->y.data, (size_t)a->y.ld * element, 0, row,
                                        (size_t)a->tokens, cuda->compute),
                      "zero");
    }
}

void kt_cuda_dropout(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_dropout_args a = *(const struct kt_dropout_args *)args;
    float keep = a.p < 1.0f ? 1.0f / (1.0f - a.p) : 0.0f;
    (void)scratch;
    if (a.tokens <= 0 || a.dim <= 0)
        return;
    bool aligned = kt_has_quads(&a.x, a.dim) && kt_has_quads(&a.y, a.dim);
    KT_LAUNCH(kt_cuda(dev), "dropout", drop_rows, aligned, a.tokens, (a.dim + 3) / 4, a, keep);
}

void kt_cuda_embedding(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_embedding_args a = *(const struct kt_embedding_args *)args;
    (void)scratch;
    if (a.tokens <= 0 || a.table.cols <= 0)
        return;
    KT_LAUNCH(kt_cuda(dev), "embedding", embed_rows, kt_has_quads(&a.x, a.table.cols), a.tokens,
              (a.table.cols + 3) / 4, a);
}
