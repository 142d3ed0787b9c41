/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that a device is given together: the same bits as one after another. */
#include "device_fixture.h"
#include "main.h"

enum { COUNT = 61, MOST_TOKENS = 6, MOST_DIM = 320, ROOM = MOST_TOKENS * MOST_DIM };

/** Runs `count` operations in scratch of as much as the largest was measured to take. */
static void run_together(struct device_test *s, enum kt_op op, int32_t count, const void *args)
{
    struct kt_tally tally = {0};
    kt_run_all(&(struct kt_runner){s->dev, &tally}, op, count, args);
    ck_assert_uint_eq(tally.operations[op], (uint64_t)count);
    ck_assert_int_eq(kt_device_reserve_scratch(s->dev, tally.scratch), KT_OK);
    kt_run_all(&s->run, op, count, args);
}

static int64_t dim_of(int i)
{
    return 8 * (1 + i * 7 % (MOST_DIM / 8));
}

/** Views of the i-th operation in blocks that hold those of all. */
static struct kt_view part(float *block, int i, int64_t ld)
{
    return kt_view_f32(block + (int64_t)i * ROOM, ld);
}

static void expect_same(struct device_test *s, const float *a, const float *b)
{
    int64_t n = (int64_t)COUNT * ROOM;
    size_t bytes = (size_t)n * sizeof(float);
    float *x = device_get(s, n, a, malloc(bytes)), *y = device_get(s, n, b, malloc(bytes));
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(memcmp(&x[i], &y[i], sizeof *x) == 0, "operation %d: %g and %g",
                      (int)(i / ROOM), (double)x[i], (double)y[i]);
    free(x), free(y);
}

/** Weights of two types, tokens few and more, sums and results. */
static void fill_linears(struct device_test *s, kt_compute compute, float *x, float *y,
                         struct kt_linear_args *a)
{
    void *floats = device_random(s, 5, (int64_t)MOST_DIM * MOST_DIM);
    float *bits = test_random(6, (int64_t)MOST_DIM * MOST_DIM);
    for (int64_t i = 0; i < (int64_t)MOST_DIM * MOST_DIM; i++)
        ((uint16_t *)bits)[i] = kt_f32_to_bf16(bits[i]);
    void *halves = device_floats(s, (int64_t)MOST_DIM * MOST_DIM / 2, bits);
    for (int i = 0; i < COUNT; i++) {
        bool narrow = i % 20 < 12;
        a[i] = (struct kt_linear_args){.weight = {.data = narrow ? halves : floats,
                                                  .dtype = narrow ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                                                  .rows = dim_of(i + 3) - i % 3,
                                                  .cols = dim_of(i)},
                                       .compute = compute,
                                       .tokens = i % 11 == 10 ? MOST_TOKENS : i % 4,
                                       .x = part(x, i, MOST_DIM),
                                       .y = part(y, i, MOST_DIM),
                                       .accumulate = i % 5 == 0};
    }
    free(bits);
}

START_TEST(linears_together_are_the_same_bits)
{
    struct device_test s = device_open(device_name(_i / 4), 2, 0);
    enum kt_op op = _i % 2 ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD;
    struct kt_linear_args a[COUNT];
    float *x = device_random(&s, 1, (int64_t)COUNT * ROOM);
    float *together = device_random(&s, 2, (int64_t)COUNT * ROOM);
    float *alone = device_random(&s, 2, (int64_t)COUNT * ROOM);
    kt_compute compute = _i / 2 % 2 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    fill_linears(&s, compute, x, together, a);
    run_together(&s, op, COUNT, a);
    for (int i = 0; i < COUNT; i++) {
        a[i].y = part(alone, i, MOST_DIM);
        device_run(&s, op, &a[i]);
    }
    expect_same(&s, together, alone);
    device_close(&s);
}
END_TEST

START_TEST(products_together_are_the_same_bits)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    struct kt_gemm_args g[COUNT];
    float *x = device_random(&s, 1, (int64_t)COUNT * ROOM);
    float *b = device_random(&s, 3, (int64_t)MOST_DIM * MOST_DIM);
    float *together = device_random(&s, 2, (int64_t)COUNT * ROOM);
    float *alone = device_random(&s, 2, (int64_t)COUNT * ROOM);
    for (int i = 0; i < COUNT; i++)
        g[i] = (struct kt_gemm_args){.trans_b = i % 2,
                                     .m = i % 13 == 12 ? MOST_TOKENS : i % 5,
                                     .n = i % 3 ? 8 : dim_of(i),
                                     .k = i % 7 < 4 ? 8 : dim_of(i + 1),
                                     .alpha = 0.5f,
                                     .a = part(x, i, MOST_DIM),
                                     .b = kt_view_f32(b, MOST_DIM),
                                     .c = part(together, i, MOST_DIM),
                                     .accumulate = i % 3 == 0};
    run_together(&s, KT_OP_GEMM, COUNT, g);
    for (int i = 0; i < COUNT; i++) {
        g[i].c = part(alone, i, MOST_DIM);
        device_run(&s, KT_OP_GEMM, &g[i]);
    }
    expect_same(&s, together, alone);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_together", .timeout = 60),
        LOOP(linears_together_are_the_same_bits, 4 * num_devices()),
        LOOP(products_together_are_the_same_bits, num_devices()),
    };
    return RUN_TESTS("device_together", tests);
}
