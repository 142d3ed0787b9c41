/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C: what every instruction set is tested against, and what runs where there is no other. */
#include "backends/cpu/rows_template.h"
#include "core/memory.h"

enum { MR = 4, NR = 8 };

static inline float round_bf16(float x)
{
    return kt_bf16_to_f32(kt_f32_to_bf16(x));
}

static inline float element(const struct kt_matrix *b, int64_t row, int64_t col)
{
    int64_t i = row * b->ld + col;
    switch (b->dtype) {
    case KT_DTYPE_BF16:
        return kt_bf16_to_f32(((const uint16_t *)b->data)[i]);
    case KT_DTYPE_F16:
        return widen_f16(((const uint16_t *)b->data)[i]);
    default:
        return ((const float *)b->data)[i];
    }
}

static void convert_f32(int64_t n, const float *from, void *to)
{
    memcpy(to, from, (size_t)n * sizeof *from);
}

static void convert_bf16(int64_t n, const float *from, void *to)
{
    for (int64_t i = 0; i < n; i++)
        ((float *)to)[i] = round_bf16(from[i]);
}

static inline void pack(int64_t k, int64_t cols, const struct kt_matrix *b, bool transposed,
                        bool bf16, float *panel)
{
    for (int64_t first = 0; first < cols; first += NR) {
        for (int64_t p = 0; p < k; p++) {
            for (int64_t j = first; j < first + NR; j++) {
                float value = 0;
                if (j < cols)
                    value = transposed ? element(b, j, p) : element(b, p, j);
                *panel++ = bf16 ? round_bf16(value) : value;
            }
        }
    }
}

static void pack_nt_f32(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)
{
    pack(k, cols, b, true, false, panel);
}

static void pack_nn_f32(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)
{
    pack(k, cols, b, false, false, panel);
}

static void pack_nt_bf16(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)
{
    pack(k, cols, b, true, true, panel);
}

static void pack_nn_bf16(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)
{
    pack(k, cols, b, false, true, panel);
}

static void tile(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                 const void *panel, float alpha, bool accumulate, float *c, int64_t ldc)
{
    float sum[MR][NR] = {{0}};
    const float *row[MR], *b = panel;
    for (int64_t i = 0; i < MR; i++)
        row[i] = (const float *)a + kt_min_i64(i, rows - 1) * lda;
    for (int64_t p = 0; p < k; p++, b += NR)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++)
                sum[i][j] += row[i][p] * b[j];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            c[i * ldc + j] = (accumulate ? c[i * ldc + j] : 0.0f) + alpha * sum[i][j];
}

static void dot(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                const struct kt_matrix *b, float alpha, bool accumulate, float *c, int64_t ldc)
{
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += ((const float *)a)[i * lda + p] * element(b, j, p);
            c[i * ldc + j] = (accumulate ? c[i * ldc + j] : 0.0f) + alpha * sum;
        }
    }
}

static void outer(int64_t rows, int64_t cols, int64_t k, const void *a, int64_t lda,
                  const struct kt_matrix *b, bool accumulate, float *c, int64_t ldc)
{
    for (int64_t p = 0; p < k; p++)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                c[i * ldc + j] = (accumulate || p > 0 ? c[i * ldc + j] : 0.0f) +
                                 ((const float *)a)[i * lda + p] * element(b, p, j);
}

void kt_kernels_init_c(struct kt_kernels *kernels)
{
    kernels->f32 = (struct kt_gemm_kernel){.mr = MR,
                                           .nr = NR,
                                           .element_size = 4,
                                           .k_step = 1,
                                           .convert = convert_f32,
                                           .pack_nt = pack_nt_f32,
                                           .pack_nn = pack_nn_f32,
                                           .tile = tile,
                                           .dot_rows = 2,
                                           .dot = dot,
                                           .outer_rows = 2,
                                           .outer = outer};
    kernels->bf16 = kernels->f32;
    kernels->bf16.bf16 = true;
    kernels->bf16.convert = convert_bf16;
    kernels->bf16.pack_nt = pack_nt_bf16;
    kernels->bf16.pack_nn = pack_nn_bf16;
    kernels->row = row_kernels;
}
