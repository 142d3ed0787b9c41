/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding of weights in plain C, against the definition of each format. */
#include "weights/weight.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "core/memory.h"
#include "fixture.h"
#include "formats/safetensors.h"
#include "main.h"

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

/* Blocks whose fields are at their ends: 6-bit scales in both halves of their packing, nibbles and
 * high bits that differ between the parts of a block. */
START_TEST(gguf_blocks_by_hand)
{
    uint8_t q8_0[34] = {0x00, 0xc0, 0x80, 0x7f, 0xff}; /* d = -2; -128, 127, -1, 0 ... */
    uint8_t q4_0[18] = {0x00, 0x38, 0xf0, 0x8f};       /* d = 0.5 */
    uint8_t q4_k[144] = {0x00, 0x3c, 0x00, 0x40};      /* d = 1, dmin = 2 */
    uint8_t q6_k[210] = {0};
    float to[256];
    kt_format_of(KT_DTYPE_Q8_0)->decode(1, q8_0, to);
    const float want_q8[4] = {256, -254, 2, 0};
    for (int i = 0; i < 4; i++)
        ck_assert_float_eq(to[i], want_q8[i]);
    kt_format_of(KT_DTYPE_Q4_0)->decode(1, q4_0, to);
    const float want_q4[4] = {-4, 3.5f, 3.5f, 0};
    for (int i = 0; i < 4; i++)
        ck_assert_float_eq(to[i / 2 * 16 + i % 2], want_q4[i]);

    /* Scale 63 and minimum 21 of part 2; scale 0b110101 and minimum 0b011010 of part 6. */
    q4_k[4 + 2] = 63 | 3 << 6;
    q4_k[4 + 6] = 21 | 1 << 6;
    q4_k[4 + 10] = 0x5 | 0xa << 4;
    q4_k[16 + 32] = 0x9f; /* first elements of parts 2 and 3 */
    q4_k[16 + 96] = 0x17; /* and of parts 6 and 7 */
    kt_format_of(KT_DTYPE_Q4_K)->decode(1, q4_k, to);
    ck_assert_float_eq(to[2 * 32], 63 * 15 - 2 * 21);
    ck_assert_float_eq(to[2 * 32 + 1], -2 * 21);
    ck_assert_float_eq(to[3 * 32], 0);
    ck_assert_float_eq(to[6 * 32], 0x35 * 7 - 2 * 0x1a);
    ck_assert_float_eq(to[7 * 32], 0);

    for (int i = 0; i < 16; i++)
        q6_k[192 + i] = (uint8_t)(i == 15 ? -128 : i);
    q6_k[209] = 0xbc;                       /* d = -1 */
    q6_k[64] = 0xc5, q6_k[128 + 32] = 0x93; /* first of runs 4 and 6; high bits 3, 0, 1, 2 */
    q6_k[127] = 0x20;                       /* last of run 7 */
    kt_format_of(KT_DTYPE_Q6_K)->decode(1, q6_k, to);
    ck_assert_float_eq(to[4 * 32], -8 * (0x35 - 32));
    ck_assert_float_eq(to[5 * 32], -10 * (0x00 - 32));
    ck_assert_float_eq(to[6 * 32], -12 * (0x1c - 32));
    ck_assert_float_eq(to[7 * 32], -14 * (0x20 - 32));
    ck_assert_float_eq(to[255], -1 * -128 * (0x02 - 32));
    ck_assert_float_eq(to[0], 0);
    ck_assert_float_eq(to[31], 32);
}
END_TEST

static const struct kt_tensor *golden(struct kt_checkpoint *c, kt_dtype dtype, const char *what)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%s", kt_dtype_name(dtype), what);
    const struct kt_tensor *t = kt_checkpoint_find(c, name);
    ck_assert_ptr_nonnull(t);
    return t;
}

/* Bit for bit what the Python package gguf decodes, for any part of a row. */
START_TEST(gguf_blocks_of_goldens)
{
    kt_dtype dtype = KT_DTYPE_Q8_0 + _i;
    struct kt_checkpoint *c;
    ck_assert_int_eq(
        kt_checkpoint_open(fixture_context, KT_REFERENCE_DIR "/gguf/blocks.safetensors", &c),
        KT_OK);
    const struct kt_tensor *blocks = golden(c, dtype, "blocks"),
                           *values = golden(c, dtype, "values");
    const struct kt_format *f = kt_format_of(dtype);
    int64_t n = values->shape[0] * values->shape[1];
    ck_assert_int_eq(f->block, values->shape[1]);
    ck_assert_int_eq(f->block_bytes, blocks->shape[1]);
    ck_assert_uint_eq(kt_format_row_bytes(dtype, n), blocks->bytes);
    ck_assert_uint_eq(kt_format_row_bytes(dtype, n - 1), 0);
    struct kt_weight w = {.data = blocks->data, .dtype = dtype, .rows = 2, .cols = n / 2};
    const float *want = values->data;
    float *to = malloc((size_t)n * sizeof *to);
    for (int64_t row = 0; row < w.rows; row++, want += w.cols) {
        for (int64_t col = 0; col < w.cols; col += 37) {
            kt_weight_decode(&w, row, col, w.cols - col, to);
            ck_assert_mem_eq(to, want + col, (size_t)(w.cols - col) * sizeof *to);
            kt_weight_decode(&w, row, col, kt_min_i64(19, w.cols - col), to);
            ck_assert_mem_eq(to, want + col, (size_t)kt_min_i64(19, w.cols - col) * sizeof *to);
        }
    }
    free(to);
    kt_checkpoint_close(c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("decode", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(gguf_blocks_by_hand),
        LOOP(gguf_blocks_of_goldens, 4),
        TEST(f8_e4m3_codes),
        TEST(scales_of_blocks),
        TEST(integers),
    };
    return RUN_TESTS("weight", tests);
}
