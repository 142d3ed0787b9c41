/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/pack_template.h
 * Packing of right factors with vectors, and the table of kernels that take them. Included by a
 * file that defines VECTOR and its macros, NR, load_part, round_bf16, convert_bf16, pack_nt and
 * what fill_kernels names. */
/* Row by row through all panels, as the rows lie far apart in memory. */
static inline __attribute__((always_inline)) void pack_nn(const kt_dtype dtype, const bool bf16,
                                                          int64_t k, int64_t cols,
                                                          const struct kt_matrix *b, float *panels)
{
    int64_t row_bytes = b->ld * (int64_t)(dtype == KT_DTYPE_F32 ? 4 : 2);
    const char *row = b->data;
    for (int64_t p = 0; p < k; p++, row += row_bytes) {
        for (int64_t j = 0; j < (cols + NR - 1) / NR * NR; j += VECTOR_LANES) {
            VECTOR x = load_part(dtype, row, j, cols - j);
            if (bf16 && dtype != KT_DTYPE_BF16)
                x = round_bf16(x);
            VECTOR_STORE(panels + (j / NR * k + p) * NR + j % NR, x);
        }
    }
}

#define PACK(name, bf16)                                                                           \
    static void name##_##bf16(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)     \
    {                                                                                              \
        if (b->dtype == KT_DTYPE_F32)                                                              \
            name(KT_DTYPE_F32, bf16, k, cols, b, panel);                                           \
        else if (b->dtype == KT_DTYPE_F16)                                                         \
            name(KT_DTYPE_F16, bf16, k, cols, b, panel);                                           \
        else                                                                                       \
            name(KT_DTYPE_BF16, bf16, k, cols, b, panel);                                          \
    }
PACK(pack_nt, 0)
PACK(pack_nt, 1)
PACK(pack_nn, 0)
PACK(pack_nn, 1)

static void convert_f32(int64_t n, const float *from, void *to)
{
    memcpy(to, from, (size_t)n * sizeof *from);
}

/* Kernels of float32 factors, rounded to bfloat16 in the second table; so many rows go directly. */
static void fill_kernels(struct kt_kernels *kernels, int32_t dot_rows, int32_t outer_rows)
{
    kernels->f32 = (struct kt_gemm_kernel){.mr = TILE_ROWS,
                                           .nr = NR,
                                           .element_size = 4,
                                           .k_step = 1,
                                           .convert = convert_f32,
                                           .pack_nt = pack_nt_0,
                                           .pack_nn = pack_nn_0,
                                           .tile = tile,
                                           .dot_rows = dot_rows,
                                           .dot = dot,
                                           .outer_rows = outer_rows,
                                           .outer = outer};
    kernels->bf16 = kernels->f32;
    kernels->bf16.bf16 = true;
    kernels->bf16.convert = convert_bf16;
    kernels->bf16.pack_nt = pack_nt_1;
    kernels->bf16.pack_nn = pack_nn_1;
    kernels->row = row_kernels;
}
