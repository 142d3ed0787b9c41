/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding of weights in plain C, against the definition of each format. */
#include "core/weight.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

/* Every code of E4M3, from the powers of two that its fields stand for. */
START_TEST(f8_e4m3_codes)
{
    for (int code = 0; code < 256; code++) {
        float got = kt_f8_e4m3_to_f32((uint8_t)code);
        if ((code & 0x7f) == 0x7f) {
            ck_assert(isnan(got));
            continue;
        }
        int exponent = (code & 0x7f) / 8, mantissa = code % 8;
        double want = exponent ? (1 + mantissa / 8.0) * pow(2, exponent - 7) : mantissa / 8.0 / 64;
        ck_assert_double_eq(got, code & 0x80 ? -want : want);
    }
    ck_assert_float_eq(kt_f8_e4m3_to_f32(0x7e), 448);
    ck_assert_float_eq(kt_f8_e4m3_to_f32(0x38), 1);
}
END_TEST

/* Any part of a row, of a matrix and of rows cut from it, has the scale of its block. */
START_TEST(scales_of_blocks)
{
    enum { ROWS = 300, COLS = 260, SCALE_LD = 3 };
    static uint8_t data[ROWS][COLS];
    static float scale[3][SCALE_LD];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++)
            data[r][c] = (uint8_t)((r * 31 + c * 7) % 127);
    for (int i = 0; i < 3 * SCALE_LD; i++)
        scale[i / SCALE_LD][i % SCALE_LD] = 0.5f + (float)i;
    struct kt_weight w = {.data = data,
                          .dtype = KT_DTYPE_F8_E4M3,
                          .rows = ROWS,
                          .cols = COLS,
                          .scale = scale[0],
                          .scale_rows = 128,
                          .scale_cols = 128,
                          .scale_ld = SCALE_LD};
    for (int begin = 0; begin < ROWS; begin += 37) {
        struct kt_weight part = kt_weight_rows(&w, begin, ROWS - begin);
        for (int r = 0; r < ROWS - begin; r += 11) {
            float to[200];
            int col = (r * 3) % (COLS - 200);
            kt_weight_decode(&part, r, col, 200, to);
            for (int i = 0; i < 200; i++)
                ck_assert_float_eq(to[i], kt_f8_e4m3_to_f32(data[begin + r][col + i]) *
                                              scale[(begin + r) / 128][(col + i) / 128]);
        }
    }
}
END_TEST

START_TEST(integers)
{
    static const int8_t bytes[2][4] = {{-128, -1, 0, 127}, {1, 2, 3, 4}};
    static const uint8_t nibbles[2][2] = {{0xf0, 0x98}, {0x12, 0x7f}};
    static const float row_scale[2] = {2, 0.5f};
    static const float expect_i4[2][4] = {{-16, 14, 0, 2}, {-3, -3.5f, 3.5f, -0.5f}};
    struct kt_weight w = {.data = bytes,
                          .dtype = KT_DTYPE_I8,
                          .rows = 2,
                          .cols = 4,
                          .scale = row_scale,
                          .scale_rows = 1,
                          .scale_cols = 4,
                          .scale_ld = 1};
    float to[4];
    for (int r = 0; r < 2; r++) {
        kt_weight_decode(&w, r, 0, 4, to);
        for (int i = 0; i < 4; i++)
            ck_assert_float_eq(to[i], (float)bytes[r][i] * row_scale[r]);
    }
    w.data = nibbles;
    w.dtype = KT_DTYPE_I4;
    for (int r = 0; r < 2; r++)
        for (int from = 0; from < 4; from++) {
            kt_weight_decode(&w, r, from, 4 - from, to);
            for (int i = from; i < 4; i++)
                ck_assert_float_eq(to[i - from], expect_i4[r][i]);
        }
    ck_assert_uint_eq(kt_format_row_bytes(KT_DTYPE_I4, 256), 128);
    ck_assert_uint_eq(kt_format_row_bytes(KT_DTYPE_I4, 3), 0);
    ck_assert_uint_eq(kt_format_row_bytes(KT_DTYPE_I64, 4), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("weight");
    TCase *t = tcase_create("decode");
    tcase_add_test(t, f8_e4m3_codes);
    tcase_add_test(t, scales_of_blocks);
    tcase_add_test(t, integers);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
