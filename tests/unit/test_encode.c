/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding to the formats of weights: against PyTorch, and against the definition. */
#include "weights/encode.h"

#include <float.h>
#include <math.h>

#include "core/random.h"
#include "weights/weight.h"
#include "encode_golden.h"
#include "main.h"

START_TEST(f8_is_that_of_pytorch)
{
    const struct kt_tensor *numbers = golden("numbers"), *want = golden("numbers_f8");
    const float *x = numbers->data;
    uint8_t *got = malloc(want->bytes);
    kt_encode(KT_DTYPE_F8_E4M3, numbers->shape[0], x, 1, got);
    for (uint64_t i = 0; i < want->bytes; i++)
        ck_assert_msg(got[i] == ((const uint8_t *)want->data)[i], "%.9g becomes %02x, not %02x",
                      x[i], got[i], ((const uint8_t *)want->data)[i]);
    free(got);
}
END_TEST

START_TEST(matrices_are_those_of_pytorch)
{
    const struct golden_format *f = &golden_formats[_i];
    const float *x = golden("matrix")->data, *scales = golden(f->scales)->data;
    int64_t scale_ld = golden(f->scales)->shape[1];
    size_t row_bytes = kt_format_row_bytes(f->dtype, GOLDEN_COLS);
    for (int64_t r = 0; r < GOLDEN_ROWS; r++) {
        const char *want = (const char *)golden(f->codes)->data + (size_t)r * row_bytes;
        char got[GOLDEN_COLS];
        for (int64_t c = 0; c < GOLDEN_COLS; c += f->cols) {
            int64_t n = GOLDEN_COLS - c < f->cols ? GOLDEN_COLS - c : f->cols;
            float scale = scales[r / f->rows * scale_ld + c / f->cols];
            kt_encode(f->dtype, n, x + r * GOLDEN_COLS + c, scale,
                      got + kt_format_row_bytes(f->dtype, c));
        }
        ck_assert_mem_eq(got, want, row_bytes);
    }
}
END_TEST

static double value_of(kt_dtype dtype, int code)
{
    return dtype == KT_DTYPE_F8_E4M3 ? (double)kt_f8_e4m3_to_f32((uint8_t)code)
                                     : (double)(int8_t)code;
}

/* The nearest of all codes, of two equally near ones that with an even code. FP8 keeps the sign of
 * zero; INT8 has no code for -128. */
static uint8_t nearest(kt_dtype dtype, double x)
{
    uint8_t best = 0;
    double distance = INFINITY;
    for (int code = 0; code < 256; code++) {
        double value = value_of(dtype, code), d = fabs(value - x);
        if (dtype == KT_DTYPE_F8_E4M3 ? (code >> 7) != (signbit(x) != 0) : code == 0x80)
            continue;
        if (d < distance || (d == distance && code % 2 == 0)) {
            distance = d;
            best = (uint8_t)code;
        }
    }
    return best;
}

START_TEST(the_nearest_code_is_taken)
{
    kt_dtype dtype = _i ? KT_DTYPE_I8 : KT_DTYPE_F8_E4M3;
    for (int i = 0; i < 20000; i++) {
        uint32_t words[4];
        uint8_t got;
        kt_philox(7, 0, (uint64_t)i, words);
        float x = ldexpf(2 * kt_uniform_f32(words[0]) - 1, (int)(words[1] % 24) - 13);
        if (i % 3 == 0) /* ties are frequent among numbers with few bits */
            x = ldexpf((float)((int)(words[2] % 64) - 32), (int)(words[1] % 16) - 11);
        kt_encode(dtype, 1, &x, 1, &got);
        ck_assert_msg(got == nearest(dtype, x), "%.9g becomes %02x, not %02x", x, got,
                      nearest(dtype, x));
    }
}
END_TEST

START_TEST(nibbles_round_to_even_and_saturate)
{
    const float x[] = {-9, -8.5f, -7.5f, -0.5f, 0.5f, 1.5f, 2.5f, 6.5f, 7.4f, 100};
    const int want[] = {-8, -8, -8, 0, 0, 2, 2, 6, 7, 7};
    uint8_t got[5];
    float scaled[10];
    for (int i = 0; i < 10; i++)
        scaled[i] = x[i] * 0.25f;
    kt_encode(KT_DTYPE_I4, 10, scaled, 0.25f, got);
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq((i % 2 ? got[i / 2] >> 4 : got[i / 2] & 15) - 8, want[i]);
}
END_TEST

START_TEST(ranges_saturate)
{
    const float x[] = {449, -1e30f, 465, 200};
    const uint8_t want_f8[] = {0x7e, 0xfe, 0x7e, 0x74}; /* 200 is between 192 and 208 */
    const int8_t want_i8[] = {127, -127, 127, 127};
    uint8_t got[4];
    kt_encode(KT_DTYPE_F8_E4M3, 4, x, 1, got);
    ck_assert_mem_eq(got, want_f8, 4);
    kt_encode(KT_DTYPE_I8, 4, x, 1, got);
    ck_assert_mem_eq(got, want_i8, 4);
}
END_TEST

START_TEST(the_largest_is_found)
{
    float x[37] = {0};
    ck_assert_float_eq(kt_encode_largest(37, x), 0);
    ck_assert_float_eq(kt_encode_largest(0, x), 0);
    for (int at = 0; at < 37; at++) {
        memset(x, 0, sizeof x);
        x[0] = 0.25f;
        x[at] = -3;
        ck_assert_float_eq(kt_encode_largest(37, x), 3);
        x[at] = _i ? -INFINITY : NAN;
        ck_assert(isinf(kt_encode_largest(37, x)));
    }
}
END_TEST

START_TEST(scales_fit_the_largest)
{
    ck_assert_float_eq(kt_encode_scale(KT_DTYPE_F8_E4M3, 896), 2);
    ck_assert_float_eq(kt_encode_scale(KT_DTYPE_I8, 127), 1);
    ck_assert_float_eq(kt_encode_scale(KT_DTYPE_I4, 3.5f), 0.5f);
    const kt_dtype dtypes[] = {KT_DTYPE_F8_E4M3, KT_DTYPE_I8, KT_DTYPE_I4};
    for (int i = 0; i < 3; i++) {
        ck_assert_float_eq(kt_encode_scale(dtypes[i], 0), 1);
        ck_assert_float_eq(kt_encode_scale(dtypes[i], 1e-44f), FLT_MIN);
        ck_assert(isfinite(kt_encode_scale(dtypes[i], FLT_MAX)));
    }
    ck_assert_float_eq(kt_encode_scale(KT_DTYPE_BF16, 3), 1);
}
END_TEST

START_TEST(bf16_has_a_limit)
{
    float limit = kt_encode_limit(KT_DTYPE_BF16), beyond = nextafterf(limit, INFINITY),
          x[2] = {limit, beyond}, back[2];
    uint16_t narrow[2];
    struct kt_weight w = {.data = narrow, .dtype = KT_DTYPE_BF16, .rows = 1, .cols = 2};
    kt_encode(KT_DTYPE_BF16, 2, x, 1, narrow);
    kt_weight_decode(&w, 0, 0, 2, back);
    ck_assert(isfinite(back[0]) && isinf(back[1]));
    ck_assert_float_eq(kt_encode_limit(KT_DTYPE_F32), FLT_MAX);
    kt_encode(KT_DTYPE_F32, 2, x, 7, back);
    ck_assert_mem_eq(back, x, sizeof x);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("encode", .setup = goldens_open, .teardown = goldens_close),
        TEST(f8_is_that_of_pytorch),
        LOOP(matrices_are_those_of_pytorch, GOLDEN_FORMATS),
        LOOP(the_nearest_code_is_taken, 2),
        TEST(nibbles_round_to_even_and_saturate),
        TEST(ranges_saturate),
        LOOP(the_largest_is_found, 2),
        TEST(scales_fit_the_largest),
        TEST(bf16_has_a_limit),
    };
    return RUN_TESTS("encode", tests);
}
