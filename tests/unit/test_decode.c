/* SPDX-License-Identifier: Apache-2.0 */
/* Every decoder of every instruction set that this CPU has, bit by bit against its plain C twin:
 * all codes, parts of rows with every offset and tail, scales of every kind, odd strides, guard
 * pages behind weights and results. */
#include "checkasm.h"
#include "compare.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "weights.h"
#include "main.h"

static const kt_dtype dtypes[] = {
    KT_DTYPE_F8_E4M3, KT_DTYPE_I8,   KT_DTYPE_I4,  KT_DTYPE_Q8_0, KT_DTYPE_Q4_0,
    KT_DTYPE_Q4_K,    KT_DTYPE_Q6_K, KT_DTYPE_F32, KT_DTYPE_F16,  KT_DTYPE_BF16,
};

enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static size_t element_bytes(int decoding)
{
    return decoding == KT_DECODE_BF16 ? 2 : 4;
}

/* Equal, or a NaN for a NaN. */
static bool same(int decoding, const char *got, const char *want)
{
    if (memcmp(got, want, element_bytes(decoding)) == 0)
        return true;
    float x[2] = {0};
    uint16_t half[2];
    if (decoding == KT_DECODE_BF16) {
        memcpy(&half[0], got, 2), memcpy(&half[1], want, 2);
        x[0] = kt_bf16_to_f32(half[0]), x[1] = kt_bf16_to_f32(half[1]);
    } else {
        memcpy(&x[0], got, 4), memcpy(&x[1], want, 4);
    }
    return isnan(x[0]) && isnan(x[1]);
}

/* A part of the weight by a decoder and by plain C, with 3 elements between rows that stay. */
static void check_part(const struct kt_kernels *kernels, const struct kt_weight *w, int64_t row,
                       int64_t col, int64_t rows, int64_t cols)
{
    int64_t ld = cols + 3, n = (rows - 1) * ld + cols;
    for (int d = 0; d < KT_DECODINGS; d++) {
        size_t size = element_bytes(d);
        struct guarded got = guard((size_t)n * size);
        char *want = malloc((size_t)n * size);
        int64_t wrong = 0;
        memset(want, 0xa5, (size_t)n * size);
        kernels->decode[d](w, row, col, rows, cols, 64, got.data, ld);
        kt_decoders_c[d](w, row, col, rows, cols, 64, want, ld);
        for (int64_t i = 0; i < n; i++)
            wrong += !same(d, (char *)got.data + (size_t)i * size, want + (size_t)i * size);
        ck_assert_msg(wrong == 0, "%s, decoding %d, row %d + %d, column %d + %d: %d differ",
                      kt_dtype_name(w->dtype), d, (int)row, (int)rows, (int)col, (int)cols,
                      (int)wrong);
        free(want);
        release(&got);
    }
}

static void fill_random(uint64_t seed, size_t bytes, uint8_t *to)
{
    uint32_t words[4] = {0};
    for (size_t i = 0; i < bytes; i++) {
        if (i % 16 == 0)
            kt_philox(seed, 1, i, words);
        to[i] = (uint8_t)(words[i % 16 / 4] >> 8 * (i % 4));
    }
}

/* Random bytes are valid weights of every format, NaN and infinities among them. */
START_TEST(parts_of_every_format)
{
    struct kt_kernels kernels;
    if (!init_level(&kernels, levels[_i / DTYPES]))
        return;
    enum { ROWS = 9, COLS = 512 };
    kt_dtype dtype = dtypes[_i % DTYPES];
    size_t bytes = ROWS * (size_t)kt_format_row_bytes(dtype, COLS);
    struct guarded data = guard(bytes);
    fill_random(7, bytes, data.data);
    for (int scaled = 0; scaled < 2; scaled++) {
        float *scale = test_random(3, 64);
        struct kt_weight w = {data.data, dtype, ROWS, COLS, .first_row = 3};
        if (scaled) {
            w.scale = scale;
            w.scale_rows = 4;
            w.scale_cols = dtype == KT_DTYPE_I8 ? COLS : 128;
            w.scale_ld = COLS / w.scale_cols + 1;
        }
        for (int64_t n = 1; n <= 33; n++)
            check_part(&kernels, &w, ROWS - 1, COLS - n, 1, n);
        for (int64_t col = 0; col < 70; col++)
            check_part(&kernels, &w, col % 5, col, 4, 256 + 7 * col % 120);
        for (int64_t col = 96; col < 160; col++)
            check_part(&kernels, &w, 1, col, 2, COLS - 2 * col + col % 3);
        check_part(&kernels, &w, 0, 0, ROWS, COLS);
        free(scale);
    }
    release(&data);
}
END_TEST

/* 300 rows and columns under 128 x 128 scales: blocks that are cut at both ends. */
START_TEST(scales_of_cut_blocks)
{
    struct kt_kernels kernels;
    if (!init_level(&kernels, levels[_i]))
        return;
    enum { ROWS = 300, COLS = 300, SCALE_LD = 3 };
    struct guarded data = guard(ROWS * COLS);
    float *scale = test_random(5, 4 * SCALE_LD);
    fill_random(8, ROWS * COLS, data.data);
    struct kt_weight w = {.data = data.data,
                          .dtype = KT_DTYPE_F8_E4M3,
                          .rows = ROWS,
                          .cols = COLS,
                          .scale = scale,
                          .scale_rows = 128,
                          .scale_cols = 128,
                          .scale_ld = SCALE_LD};
    for (int64_t begin = 0; begin < ROWS; begin += 43) {
        struct kt_weight part = kt_weight_rows(&w, begin, ROWS - begin);
        for (int64_t row = 0; row < part.rows; row += 17)
            check_part(&kernels, &part, row, row * 5 % 130, kt_min_i64(12, part.rows - row), 170);
    }
    free(scale);
    release(&data);
}
END_TEST

/* Each code at every place of 64, where tables of 64 results and more are looked up; the scale
 * changes its sign with every row. */
START_TEST(all_codes_at_all_places)
{
    struct kt_kernels kernels;
    if (!init_level(&kernels, levels[_i]))
        return;
    enum { ROWS = 64, COLS = 256 };
    struct guarded data = guard(ROWS * COLS);
    float *scale = test_random(6, ROWS);
    for (int i = 0; i < ROWS * COLS; i++)
        ((uint8_t *)data.data)[i] = (uint8_t)(i / COLS + i % COLS);
    for (int row = 0; row < ROWS; row++)
        scale[row] = row % 2 ? -fabsf(scale[row]) : fabsf(scale[row]);
    struct kt_weight w = {.data = data.data,
                          .rows = ROWS,
                          .cols = COLS,
                          .scale = scale,
                          .scale_rows = 1,
                          .scale_cols = COLS,
                          .scale_ld = 1};
    for (w.dtype = KT_DTYPE_F8_E4M3; w.dtype <= KT_DTYPE_I8; w.dtype++) {
        struct kt_weight plain = w;
        plain.scale = NULL;
        check_part(&kernels, &w, 0, 0, ROWS, COLS);
        check_part(&kernels, &plain, 0, 0, ROWS, COLS);
    }
    w.dtype = KT_DTYPE_I4;
    w.rows = ROWS / 2;
    w.cols = w.scale_cols = 2 * COLS;
    check_part(&kernels, &w, 0, 0, w.rows, w.cols);
    release(&data);
    free(scale);
}
END_TEST

/* Each code, under scales whose products are subnormal, overflow, round to even or are no numbers.
 */
START_TEST(all_codes_under_all_scales)
{
    static const float scales[] = {1,         -1,        0x1.01p0f,  0x1.010001p-3f, 0x1.fffffep7f,
                                   1e-3f,     0x1p-126f, 0x1p-140f,  0x1.8p-99f,     0x1.8p99f,
                                   0x1p-110f, 0x1p120f,  0x1.8p127f, INFINITY,       NAN,
                                   0,         -0.0f,     0x1.030p5f, 0x1.7fffffep2f, 3e38f};
    struct kt_kernels kernels;
    if (!init_level(&kernels, levels[_i]))
        return;
    enum { SCALES = sizeof scales / sizeof *scales, CODES = 256 };
    struct guarded data = guard(SCALES * CODES);
    for (int i = 0; i < SCALES * CODES; i++)
        ((uint8_t *)data.data)[i] = (uint8_t)i;
    struct kt_weight w = {.data = data.data,
                          .rows = SCALES,
                          .cols = CODES,
                          .scale = scales,
                          .scale_rows = 1,
                          .scale_cols = CODES,
                          .scale_ld = 1};
    for (w.dtype = KT_DTYPE_F8_E4M3; w.dtype <= KT_DTYPE_I8; w.dtype++)
        check_part(&kernels, &w, 0, 0, SCALES, CODES);
    w.dtype = KT_DTYPE_I4;
    w.cols = w.scale_cols = 2 * CODES;
    w.rows = SCALES / 2;
    check_part(&kernels, &w, 0, 0, w.rows, w.cols);
    release(&data);
}
END_TEST

/* Plain C's roundings of what kt_weight_decode gives. */
START_TEST(plain_c_rounds_to_nearest_even)
{
    enum { ROWS = 2, COLS = 600 };
    uint8_t data[ROWS * COLS];
    float scale[] = {0.7f, 0x1.01p0f}, exact[COLS], rounded[COLS];
    uint16_t half[COLS];
    fill_random(9, sizeof data, data);
    struct kt_weight w = {data, KT_DTYPE_I8, ROWS, COLS, scale, 1, COLS, 1, 0};
    for (int64_t row = 0; row < ROWS; row++) {
        kt_weight_decode(&w, row, 0, COLS, exact);
        kt_decoders_c[KT_DECODE_ROUNDED](&w, row, 0, 1, COLS, 0, rounded, COLS);
        kt_decoders_c[KT_DECODE_BF16](&w, row, 0, 1, COLS, 0, half, COLS);
        for (int i = 0; i < COLS; i++) {
            ck_assert_uint_eq(half[i], kt_f32_to_bf16(exact[i]));
            ck_assert(rounded[i] == kt_bf16_to_f32(half[i]));
        }
    }
}
END_TEST

/* -- pairs of rows -----------------------------------------------------------------------------
 */

/* Bytes of 64 rows of 320 columns, which 32 columns after the other take. */
enum {
    PAIR_STEPS = 2,
    PAIR_ROWS = 32 * PAIR_STEPS,
    PAIR_COLS = 320,
    PAIR_STRIDE = PAIR_STEPS * 2048
};

static void check_pairs(const struct kt_kernels *kernels, const struct kt_weight *w, int64_t row,
                        int64_t col, int64_t cols)
{
    struct guarded got = guard((size_t)cols / 32 * PAIR_STRIDE);
    uint16_t want[PAIR_ROWS * PAIR_COLS];
    kt_decoders_c[KT_DECODE_BF16](w, row, col, PAIR_ROWS, cols, 0, want, PAIR_COLS);
    ck_assert_int_eq(kernels->decode_pairs(w, row, PAIR_ROWS, col, cols, 64, got.data, PAIR_STRIDE),
                     1);
    for (int r = 0; r < PAIR_ROWS; r++)
        for (int c = 0; c < cols; c++) {
            const char *at = (const char *)got.data + test_pairs_offset(r, c, PAIR_STRIDE);
            ck_assert_msg(same(KT_DECODE_BF16, at, (const char *)&want[r * PAIR_COLS + c]),
                          "row %d, column %d", r, c);
        }
    release(&got);
}

static void check_no_pairs(const struct kt_kernels *kernels, const struct kt_weight *w, int64_t row,
                           int64_t rows, int64_t col, int64_t cols)
{
    struct guarded got = guard((size_t)PAIR_COLS / 32 * PAIR_STRIDE);
    ck_assert_int_eq(kernels->decode_pairs(w, row, rows, col, cols, 64, got.data, PAIR_STRIDE), 0);
    for (int i = 0; i < PAIR_COLS / 32 * PAIR_STRIDE; i++)
        ck_assert_int_eq(((uint8_t *)got.data)[i], 0xa5);
    release(&got);
}

START_TEST(pairs_of_rows)
{
    struct kt_kernels kernels;
    enum { ROWS = 160, SCALES = 2 * 3 };
    if (!init_level(&kernels, levels[_i]) || !kernels.decode_pairs)
        return;
    struct guarded data = guard(ROWS * PAIR_COLS);
    float scale[SCALES] = {0.7f, -0.3f, 0x1.01p-7f, 3, -5e-3f, 0x1.7fffffep2f};
    for (int i = 0; i < ROWS * PAIR_COLS; i++)
        ((uint8_t *)data.data)[i] = (uint8_t)(i / PAIR_COLS * 5 + i % PAIR_COLS);
    struct kt_weight w = {data.data, KT_DTYPE_F8_E4M3, ROWS, PAIR_COLS, scale, 128, 128, 3, 0};
    check_pairs(&kernels, &w, 0, 0, 128);
    check_pairs(&kernels, &w, 96, 0, PAIR_COLS);
    check_pairs(&kernels, &w, 32, 64, 256);
    struct kt_weight cut = kt_weight_rows(&w, 32, ROWS - 32);
    check_pairs(&kernels, &cut, 64, 256, 64);
    check_no_pairs(&kernels, &w, 0, 31, 0, 128);
    check_no_pairs(&kernels, &w, 0, 64, 0, 96);
    check_no_pairs(&kernels, &w, 0, 64, 32, 64);
    check_no_pairs(&kernels, &w, 8, 64, 0, 64);
    struct kt_weight plain = w;
    plain.scale = NULL;
    check_pairs(&kernels, &plain, 0, 0, PAIR_COLS);
    check_pairs(&kernels, &plain, 7, 96, 128);
    check_no_pairs(&kernels, &plain, 0, 31, 0, 128);
    check_no_pairs(&kernels, &plain, 0, 64, 0, 96);
    scale[4] = 0x1p-120f;
    check_no_pairs(&kernels, &w, 96, 64, 0, PAIR_COLS);
    check_pairs(&kernels, &w, 96, 0, 128);
    w.dtype = KT_DTYPE_I8;
    check_no_pairs(&kernels, &w, 0, 64, 0, 128);
    release(&data);
}
END_TEST

/* -- products with a row -----------------------------------------------------------------------
 */

enum { DOT_ROWS = 19, DOT_COLS = 1024 };

static void check_dot(const struct kt_gemm_kernel *k, const struct kt_weight *w, int64_t row,
                      int64_t cols, int64_t col, int64_t depth)
{
    struct guarded a = guard((size_t)(depth + 1) / 2 * 4), c = guard((size_t)cols * sizeof(float));
    float *x = test_random(8, depth), *y = test_random(9, cols), *got = c.data;
    float values[DOT_COLS];
    k->convert(depth, x, a.data);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float alpha = accumulate ? -0.5f : 1.0f;
        memcpy(got, y, (size_t)cols * sizeof *y);
        ck_assert_int_eq(k->dot_weight(cols, depth, a.data, w, row, col, alpha, accumulate, got),
                         1);
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0, size = 0;
            kt_weight_decode(w, row + j, col, depth, values);
            for (int64_t p = 0; p < depth; p++) {
                double product =
                    (double)kt_bf16_to_f32(((uint16_t *)a.data)[p]) * (double)values[p];
                sum += product;
                size += fabs(product);
            }
            double want = (accumulate ? (double)y[j] : 0) + (double)alpha * sum;
            ck_assert_double_lt(fabs((double)got[j] - want), 1e-6 * (size + 1));
        }
    }
    free(x), free(y);
    release(&a), release(&c);
}

static const kt_dtype dot_types[] = {KT_DTYPE_F8_E4M3, KT_DTYPE_I4};

enum { DOT_TYPES = sizeof dot_types / sizeof *dot_types };

START_TEST(products_with_a_row)
{
    struct kt_kernels kernels;
    kt_dtype dtype = dot_types[_i % DOT_TYPES];
    uint32_t level = levels[_i / DOT_TYPES];
    if (!init_level(&kernels, level))
        return;
    ck_assert_int_eq(kernels.bf16.dot_weight != NULL, (level & KT_ISA_AVX512_VBMI) != 0);
    if (!kernels.bf16.dot_weight)
        return;
    const struct kt_gemm_kernel *k = &kernels.bf16;
    size_t bytes = DOT_ROWS * (size_t)kt_format_row_bytes(dtype, DOT_COLS);
    struct guarded data = guard(bytes);
    float *scale = test_random(6, DOT_ROWS * DOT_COLS / 128), c = 0.5f;
    uint16_t a[DOT_COLS] = {0};
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)data.data)[i] = (uint8_t)((i / DOT_COLS * 5 + i) % 127 | (i & 0x80));
    struct kt_weight w = {data.data, dtype, DOT_ROWS, DOT_COLS, scale, 4, 128, 8, 2};
    if (dtype == KT_DTYPE_I4)
        w.scale_rows = 1, w.first_row = 0;
    for (int64_t cols = 1; cols <= 9; cols++)
        for (int64_t depth = 128; depth <= DOT_COLS; depth *= 2)
            check_dot(k, &w, DOT_ROWS - cols, cols, DOT_COLS - depth, depth);
    for (w.scale_cols = 128; w.scale_cols <= 256; w.scale_cols *= 2) {
        check_dot(k, &w, 0, DOT_ROWS, 128, 640);
        for (int64_t depth = 2; depth < 300; depth += 42)
            check_dot(k, &w, DOT_ROWS - 5, 5, DOT_COLS - 384, depth);
    }
    check_dot(k, &w, DOT_ROWS - 1, 1, DOT_COLS - 256, 255);
    w.scale_cols = 128;
    ck_assert_int_eq(k->dot_weight(1, 128, a, &w, 0, 64, 1, 0, &c), 0);
    w.scale_cols = 96;
    ck_assert_int_eq(k->dot_weight(1, 128, a, &w, 0, 0, 1, 0, &c), 0);
    w.scale = NULL;
    ck_assert_int_eq(k->dot_weight(1, 128, a, &w, 0, 0, 1, 0, &c), 0);
    w.scale = scale, w.scale_cols = 128, w.dtype = KT_DTYPE_I8;
    ck_assert_int_eq(k->dot_weight(1, 128, a, &w, 0, 0, 1, 0, &c), 0);
    ck_assert(c == 0.5f);
    free(scale);
    release(&data);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("decode", .timeout = 120),
        LOOP(parts_of_every_format, LEVELS * DTYPES),
        LOOP(scales_of_cut_blocks, LEVELS),
        LOOP(all_codes_at_all_places, LEVELS),
        LOOP(all_codes_under_all_scales, LEVELS),
        TEST(plain_c_rounds_to_nearest_even),
        LOOP(pairs_of_rows, LEVELS),
        LOOP(products_with_a_row, LEVELS * DOT_TYPES),
    };
    return RUN_TESTS("decode", tests);
}
