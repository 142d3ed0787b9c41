/* SPDX-License-Identifier: Apache-2.0 */
/* Products, embeddings and what touches each element once, on every device, against formulas in
 * double precision. Operations with gradients of their own are in test_device_rows.c and
 * test_device_attention.c, the front in test_device_front.c. */
#include "device_fixture.h"
#include "main.h"

/* The bytes of a weight matrix in `dtype`, and its exact values in `values`. */
static void *make_weight(kt_dtype dtype, uint64_t seed, int64_t n, double *values)
{
    uint16_t *half = malloc((size_t)n * 4);
    float *full = (float *)(void *)half;
    float *x = test_random(seed, n);
    for (int64_t i = 0; i < n; i++) {
        if (dtype == KT_DTYPE_F32) {
            full[i] = x[i];
            values[i] = x[i];
        } else if (dtype == KT_DTYPE_BF16) {
            half[i] = kt_f32_to_bf16(x[i]);
            values[i] = kt_bf16_to_f32(half[i]);
        } else { /* any finite half-precision number of moderate size */
            half[i] = (uint16_t)(((uint32_t)i * 40503u & 0x83ffu) | (10u + (uint32_t)i % 6) << 10);
            values[i] = kt_f16_to_f32(half[i]);
        }
    }
    free(x);
    return half;
}

static double round_if(kt_compute compute, double x)
{
    return compute == KT_COMPUTE_BF16 ? kt_bf16_to_f32(kt_f32_to_bf16((float)x)) : x;
}

struct linear_case {
    int64_t tokens, n, k, ldx, ldy;
    kt_compute compute;
    const double *w;
    float *x, *y, *dy, *dx; /* on the host, as they are before an operation */
};

static void expect_linear(const struct linear_case *c, bool accumulate, double *want,
                          double *want_dx)
{
    for (int64_t i = 0; i < c->tokens; i++) {
        for (int64_t j = 0; j < c->n; j++) {
            double sum = accumulate ? c->y[i * c->ldy + j] : 0;
            for (int64_t q = 0; q < c->k; q++)
                sum += round_if(c->compute, c->x[i * c->ldx + q]) *
                       round_if(c->compute, c->w[j * c->k + q]);
            want[i * c->n + j] = sum;
        }
        for (int64_t q = 0; q < c->k; q++) {
            double sum = accumulate ? c->dx[i * c->ldx + q] : 0;
            for (int64_t j = 0; j < c->n; j++)
                sum += round_if(c->compute, c->dy[i * c->ldy + j]) *
                       round_if(c->compute, c->w[j * c->k + q]);
            want_dx[i * c->k + q] = sum;
        }
    }
}

/* The first n of each row of got [tokens, ld] are `want`, the others as they were `before`. */
static void check_rows(int64_t tokens, int64_t n, int64_t ld, const float *got, const double *want,
                       const float *before)
{
    float *dense = malloc((size_t)(tokens * n) * sizeof *dense);
    for (int64_t i = 0; i < tokens; i++) {
        memcpy(dense + i * n, got + i * ld, (size_t)n * sizeof *dense);
        for (int64_t j = n; j < ld; j++)
            ck_assert(got[i * ld + j] == before[i * ld + j]);
    }
    ck_assert_double_lt(test_error(tokens * n, dense, want), 1e-6);
    free(dense);
}

static void check_linear(struct device_test *s, kt_dtype dtype, kt_compute compute, int64_t t,
                         int64_t n, int64_t k)
{
    int64_t ldx = k + 3, ldy = n + 5;
    double *wv = malloc((size_t)(n * k) * sizeof *wv);
    double *want = malloc((size_t)(t * n) * 8), *want_dx = malloc((size_t)(t * k) * 8);
    float *got = malloc((size_t)(t * ldy) * 4), *got_dx = malloc((size_t)(t * ldx) * 4);
    struct kt_weight w = {
        .data = make_weight(dtype, 1, n * k, wv), .dtype = dtype, .rows = n, .cols = k};
    struct linear_case c = {t,
                            n,
                            k,
                            ldx,
                            ldy,
                            compute,
                            wv,
                            test_random(2, t * ldx),
                            test_random(3, t * ldy),
                            test_random(4, t * ldy),
                            test_random(5, t * ldx)};
    float *x = device_floats(s, t * ldx, c.x), *dy = device_floats(s, t * ldy, c.dy);
    float *y = device_floats(s, t * ldy, c.y), *dx = device_floats(s, t * ldx, c.dx);
    struct kt_linear_args forward = {device_weight(s, &w), compute, t, kt_view_f32(x, ldx),
                                     kt_view_f32(y, ldy),  false};
    struct kt_linear_args backward = {forward.weight,       compute, t, kt_view_f32(dy, ldy),
                                      kt_view_f32(dx, ldx), false};
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        forward.accumulate = backward.accumulate = accumulate;
        expect_linear(&c, accumulate, want, want_dx);
        device_run(s, KT_OP_LINEAR_FORWARD, &forward);
        device_run(s, KT_OP_LINEAR_BACKWARD, &backward);
        check_rows(t, n, ldy, device_get(s, t * ldy, y, got), want, c.y);
        check_rows(t, k, ldx, device_get(s, t * ldx, dx, got_dx), want_dx, c.dx);
        memcpy(c.y, got, (size_t)(t * ldy) * 4), memcpy(c.dx, got_dx, (size_t)(t * ldx) * 4);
    }
    device_free_blocks(s);
    free((void *)w.data), free(wv), free(want), free(want_dx), free(got), free(got_dx);
    free(c.x), free(c.y), free(c.dy), free(c.dx);
}

START_TEST(linears_of_every_dtype)
{
    static const int64_t shapes[][3] = {{1, 5, 7},     {3, 64, 33},   {17, 31, 129}, {40, 200, 9},
                                        {300, 65, 70}, {2, 130, 700}, {12, 33, 555}};
    struct device_test s = device_setting(_i);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++)
            for (int compute = 0; compute < 2; compute++)
                check_linear(&s, (kt_dtype)dtype, (kt_compute)compute, shapes[i][0], shapes[i][1],
                             shapes[i][2]);
    device_close(&s);
}
END_TEST

START_TEST(gemm_in_every_transposition)
{
    static const int64_t shapes[][3] = {{5, 7, 9}, {64, 8, 300}, {8, 130, 513}, {257, 4, 1},
                                        {1, 1, 1}, {3, 5, 0},    {70, 140, 65}};
    struct device_test s = device_setting(_i);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * 8; i++) {
        int64_t m = shapes[i / 8][0], n = shapes[i / 8][1], k = shapes[i / 8][2];
        bool trans_a = i & 1, trans_b = i >> 1 & 1, accumulate = i >> 2 & 1;
        int64_t lda = (trans_a ? m : k) + 1, ldb = (trans_b ? k : n) + 2;
        int64_t size_a = (trans_a ? k : m) * lda, size_b = (trans_b ? n : k) * ldb;
        float *a = test_random(1, size_a), *b = test_random(2, size_b), *c = test_random(3, m * n);
        double *want = test_widen(m * n, c);
        for (int64_t r = 0; r < m; r++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t q = 0; q < k; q++)
                    sum += (double)a[trans_a ? q * lda + r : r * lda + q] *
                           b[trans_b ? j * ldb + q : q * ldb + j];
                want[r * n + j] = (accumulate ? want[r * n + j] : 0) + 0.75 * sum;
            }
        struct kt_gemm_args g = {trans_a,
                                 trans_b,
                                 m,
                                 n,
                                 k,
                                 0.75f,
                                 kt_view_f32(device_floats(&s, size_a, a), lda),
                                 kt_view_f32(device_floats(&s, size_b, b), ldb),
                                 kt_view_f32(device_floats(&s, m * n, c), n),
                                 accumulate};
        device_run(&s, KT_OP_GEMM, &g);
        ck_assert_double_lt(test_error(m * n, device_get(&s, m * n, g.c.data, c), want), 1e-6);
        device_free_blocks(&s);
        free(a), free(b), free(c), free(want);
    }
    device_close(&s);
}
END_TEST

START_TEST(rope_rotates_pairs_and_back)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    enum { TOKENS = 3, HEADS = 2, DIM = 8, HEAD = 11, STRIDE = HEADS * HEAD };
    float cos[5 * DIM / 2], sin[5 * DIM / 2];
    int32_t positions[TOKENS] = {4, 0, 2};
    for (int i = 0; i < 5 * DIM / 2; i++) {
        cos[i] = cosf(0.3f * (float)i);
        sin[i] = sinf(0.3f * (float)i);
    }
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        float *x = test_random(1, TOKENS * STRIDE), *before = test_random(1, TOKENS * STRIDE);
        struct kt_rope_args r = {.tokens = TOKENS,
                                 .x = kt_view_f32(device_floats(&s, TOKENS * STRIDE, x), STRIDE),
                                 .head_stride = HEAD,
                                 .num_heads = HEADS,
                                 .rope_dim = DIM,
                                 .interleaved = interleaved,
                                 .cos = device_floats(&s, 5 * DIM / 2, cos),
                                 .sin = device_floats(&s, 5 * DIM / 2, sin),
                                 .rows = device_ints(&s, TOKENS, positions)};
        device_run(&s, KT_OP_ROPE, &r);
        device_get(&s, TOKENS * STRIDE, r.x.data, x);
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < HEADS; h++)
                for (int i = 0; i < DIM / 2; i++) {
                    int base = t * STRIDE + h * HEAD, at = positions[t] * DIM / 2 + i;
                    int first = base + (interleaved ? 2 * i : i);
                    int second = base + (interleaved ? 2 * i + 1 : i + DIM / 2);
                    ck_assert_float_eq_tol(
                        x[first], before[first] * cos[at] - before[second] * sin[at], 1e-6f);
                    ck_assert_float_eq_tol(
                        x[second], before[first] * sin[at] + before[second] * cos[at], 1e-6f);
                }
        ck_assert(x[DIM] == before[DIM]);
        r.inverse = true;
        device_run(&s, KT_OP_ROPE, &r);
        device_get(&s, TOKENS * STRIDE, r.x.data, x);
        for (int i = 0; i < TOKENS * STRIDE; i++)
            ck_assert_float_eq_tol(x[i], before[i], 1e-6f);
        free(x), free(before);
    }
    device_close(&s);
}
END_TEST

enum { TOKENS = 37, DIM = 45, LD = 50 };

START_TEST(copies_and_sums)
{
    struct device_test s = device_setting(_i);
    float *x = test_random(1, TOKENS * LD), *before = test_random(2, TOKENS * LD);
    float y[TOKENS * LD];
    struct kt_rows_args a = {.tokens = TOKENS,
                             .dim = DIM,
                             .alpha = 0.5f,
                             .x = kt_view_f32(device_floats(&s, TOKENS * LD, x), LD),
                             .y = kt_view_f32(device_floats(&s, TOKENS * LD, before), LD),
                             .accumulate = true};
    device_run(&s, KT_OP_ADD, &a);
    device_get(&s, TOKENS * LD, a.y.data, y);
    for (int i = 0; i < TOKENS * LD; i++)
        ck_assert_float_eq_tol(y[i], before[i] + (i % LD < DIM ? 0.5f * x[i] : 0), 1e-6f);
    a.alpha = 2;
    a.accumulate = false;
    device_run(&s, KT_OP_ADD, &a);
    device_get(&s, TOKENS * LD, a.y.data, y);
    for (int i = 0; i < TOKENS * LD; i++)
        ck_assert(y[i] == (i % LD < DIM ? 2 * x[i] : before[i]));
    a.x.ld = 0; /* the same row for every token */
    device_run(&s, KT_OP_ADD, &a);
    device_get(&s, TOKENS * LD, a.y.data, y);
    for (int i = 0; i < TOKENS * LD; i++)
        ck_assert(y[i] == (i % LD < DIM ? 2 * x[i % LD] : before[i]));
    free(x), free(before);
    device_close(&s);
}
END_TEST

/* Rows apart from each other, one behind another, and all as one row. */
START_TEST(zeros_and_conversions)
{
    static const int64_t shapes[][3] = {
        {TOKENS, DIM, LD}, {TOKENS, LD, LD}, {1, TOKENS * LD, TOKENS * LD}};
    struct device_test s = device_setting(_i);
    float *x = test_random(1, TOKENS * LD), *before = test_random(2, TOKENS * LD);
    float y[TOKENS * LD];
    x[3] = NAN;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t tokens = shapes[i][0], dim = shapes[i][1], ld = shapes[i][2];
        struct kt_view packed = {
            .data = device_random(&s, 3, TOKENS * LD / 2), .ld = ld, .dtype = KT_DTYPE_BF16};
        struct kt_view from = kt_view_f32(device_floats(&s, TOKENS * LD, x), ld);
        struct kt_view to = kt_view_f32(device_floats(&s, TOKENS * LD, before), ld);
        struct kt_rows_args pack = {.tokens = tokens, .dim = dim, .x = from, .y = packed};
        struct kt_rows_args unpack = {.tokens = tokens, .dim = dim, .x = packed, .y = to};
        device_run(&s, KT_OP_CONVERT, &pack);
        device_run(&s, KT_OP_CONVERT, &unpack);
        device_get(&s, TOKENS * LD, to.data, y);
        for (int64_t k = 0; k < TOKENS * LD; k++) {
            float want = k % ld < dim ? kt_bf16_to_f32(kt_f32_to_bf16(x[k])) : before[k];
            ck_assert(y[k] == want || (isnan(y[k]) && isnan(want)));
        }
        device_run(&s, KT_OP_ZERO, &unpack);
        device_get(&s, TOKENS * LD, to.data, y);
        for (int64_t k = 0; k < TOKENS * LD; k++)
            ck_assert(y[k] == (k % ld < dim ? 0 : before[k]));
        device_free_blocks(&s);
    }
    free(x), free(before);
    device_close(&s);
}
END_TEST

START_TEST(embeddings)
{
    struct device_test s = device_setting(_i);
    float *before = test_random(2, TOKENS * LD), x[TOKENS * LD];
    int32_t ids[TOKENS];
    for (int t = 0; t < TOKENS; t++)
        ids[t] = t * 7 % 20;
    for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++) {
        double values[20 * DIM];
        struct kt_weight table = {.data = make_weight((kt_dtype)dtype, 3, 20 * DIM, values),
                                  .dtype = (kt_dtype)dtype,
                                  .rows = 20,
                                  .cols = DIM};
        struct kt_embedding_args a = {device_weight(&s, &table), TOKENS,
                                      device_ints(&s, TOKENS, ids),
                                      kt_view_f32(device_floats(&s, TOKENS * LD, before), LD)};
        device_run(&s, KT_OP_EMBEDDING, &a);
        device_get(&s, TOKENS * LD, a.x.data, x);
        for (int i = 0; i < TOKENS * LD; i++)
            ck_assert((double)x[i] ==
                      (i % LD < DIM ? values[ids[i / LD] * DIM + i % LD] : (double)before[i]));
        free((void *)table.data);
    }
    free(before);
    device_close(&s);
}
END_TEST

/* Runs it, and reads y. */
static void drop(struct device_test *s, struct kt_dropout_args *a, uint64_t key, bool accumulate,
                 struct kt_view y, float *host)
{
    a->key = key;
    a->accumulate = accumulate;
    a->y = y;
    device_run(s, KT_OP_DROPOUT, a);
    device_get(s, a->tokens * a->dim, y.data, host);
}

START_TEST(dropout_is_a_mask_of_its_key)
{
    enum { ROWS = 40, COLS = 501, ALL = ROWS * COLS };
    struct device_test s = device_open(device_name(_i), 2, 0);
    float *x = malloc(ALL * 4), *y = malloc(ALL * 4), *z = malloc(ALL * 4);
    int64_t dropped = 0, same = 0;
    for (int i = 0; i < ALL; i++)
        x[i] = 1;
    struct kt_dropout_args a = {
        .tokens = ROWS, .dim = COLS, .p = 0.25f, .x = kt_view_f32(device_floats(&s, ALL, x), COLS)};
    struct kt_view at_y = kt_view_f32(device_floats(&s, ALL, NULL), COLS);
    struct kt_view at_z = kt_view_f32(device_floats(&s, ALL, NULL), COLS);
    drop(&s, &a, 7, false, at_y, y);
    drop(&s, &a, 8, false, at_z, z);
    for (int i = 0; i < ALL; i++) {
        ck_assert(y[i] == 0 || fabsf(y[i] - 1 / 0.75f) < 1e-6f);
        dropped += y[i] == 0;
        same += y[i] == z[i];
    }
    ck_assert_double_lt(fabs((double)dropped / ALL - 0.25), 0.01);
    ck_assert_double_lt(fabs((double)same / ALL - (0.75 * 0.75 + 0.25 * 0.25)), 0.02);
    drop(&s, &a, 7, true, at_z, z);
    drop(&s, &a, 8, false, a.x, x);
    for (int i = 0; i < ALL; i++)
        ck_assert_float_eq_tol(z[i], x[i] + y[i], 1e-6f);
    free(x), free(y), free(z);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device", .timeout = 120),
        LOOP(linears_of_every_dtype, num_device_runs()),
        LOOP(gemm_in_every_transposition, num_device_runs()),
        LOOP(rope_rotates_pairs_and_back, num_devices()),
        LOOP(copies_and_sums, num_device_runs()),
        LOOP(zeros_and_conversions, num_device_runs()),
        LOOP(embeddings, num_device_runs()),
        LOOP(dropout_is_a_mask_of_its_key, num_devices()),
    };
    return RUN_TESTS("device", tests);
}
