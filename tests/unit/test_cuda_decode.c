/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic that CUDA kernels decode weights with, on the host, bit by bit against plain C. */
#include "backends/cuda/decode_element.h"
#include "compare.h"
#include "core/random.h"
#include "main.h"

static const kt_dtype dtypes[] = {
    KT_DTYPE_F32, KT_DTYPE_F16,  KT_DTYPE_BF16, KT_DTYPE_F8_E4M3, KT_DTYPE_I8,
    KT_DTYPE_I4,  KT_DTYPE_Q8_0, KT_DTYPE_Q4_0, KT_DTYPE_Q4_K,    KT_DTYPE_Q6_K,
};

enum { DTYPES = sizeof dtypes / sizeof *dtypes, ROWS = 64, COLS = 1024 };

static void check_same(kt_dtype dtype, const float *got, const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(memcmp(&got[i], &want[i], 4) == 0 || (isnan(got[i]) && isnan(want[i])),
                      "%s: element %d is %a, not %a", kt_dtype_name(dtype), (int)i, (double)got[i],
                      (double)want[i]);
}

START_TEST(sizes_of_every_format)
{
    for (int d = 0; d < DTYPES; d++) {
        const struct kt_format *f = kt_format_of(dtypes[d]);
        ck_assert_int_eq(kt_cuda_block(dtypes[d]), f->block);
        ck_assert_int_eq(kt_cuda_block_bytes(dtypes[d]), f->block_bytes);
    }
}
END_TEST

/* Random bytes are valid weights of every format, NaN and infinities among them. */
START_TEST(random_bytes_of_every_format)
{
    kt_dtype dtype = dtypes[_i];
    struct kt_weight w = {.dtype = dtype, .rows = ROWS, .cols = COLS};
    int64_t row_bytes = kt_cuda_row_bytes(dtype, COLS);
    uint8_t *data = aligned_alloc(16, (size_t)(ROWS * row_bytes));
    uint32_t words[4] = {0};
    float want[COLS], elements[COLS], runs[COLS];
    for (int64_t i = 0; i < ROWS * row_bytes; i++) {
        if (i % 16 == 0)
            kt_philox(11, 1, (uint64_t)i, words);
        data[i] = (uint8_t)(words[i % 16 / 4] >> 8 * (i % 4));
    }
    w.data = data;
    for (int64_t row = 0; row < ROWS; row++) {
        kt_weight_decode(&w, row, 0, COLS, want);
        for (int64_t col = 0; col < COLS; col++)
            elements[col] = kt_cuda_decode_element(dtype, data + row * row_bytes, col);
        for (int64_t col = 0; col < COLS; col += KT_CUDA_RUN)
            kt_cuda_decode_run(dtype, data + row * row_bytes, col, runs + col);
        check_same(dtype, elements, want, COLS);
        check_same(dtype, runs, want, COLS);
    }
    free(data);
}
END_TEST

/* All codes of the formats that have 65536 or fewer. */
START_TEST(all_codes)
{
    static const kt_dtype short_ones[] = {KT_DTYPE_F16, KT_DTYPE_BF16, KT_DTYPE_F8_E4M3,
                                          KT_DTYPE_I8, KT_DTYPE_I4};
    enum { CODES = 65536 };
    uint16_t *data = aligned_alloc(16, CODES * sizeof *data);
    float *want = malloc(4 * CODES * sizeof *want), *got = malloc(4 * CODES * sizeof *got);
    for (int i = 0; i < CODES; i++)
        data[i] = (uint16_t)i;
    for (size_t d = 0; d < sizeof short_ones / sizeof *short_ones; d++) {
        kt_dtype dtype = short_ones[d];
        int64_t n = 2 * CODES / kt_cuda_block_bytes(dtype) * kt_cuda_block(dtype);
        kt_format_of(dtype)->decode(n / kt_cuda_block(dtype), data, want);
        for (int64_t i = 0; i < n; i += KT_CUDA_RUN)
            kt_cuda_decode_run(dtype, (const uint8_t *)data, i, got + i);
        check_same(dtype, got, want, n);
    }
    free(data), free(want), free(got);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("cuda_decode", .timeout = 60),
        TEST(sizes_of_every_format),
        LOOP(random_bytes_of_every_format, DTYPES),
        TEST(all_codes),
    };
    return RUN_TESTS("cuda_decode", tests);
}
