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

/* -- linears as experts have them: factors in BF16, more tokens ----------------------------------
 */

enum { EXPERTS = 27, ROWS = 136, COLS = 264, MOST_ROWS = 300 };

/** What the tests below know of an expert on the host. */
struct expert {
    int64_t tokens, first; /**< rows of x and y */
    const struct kt_weight *weight;
};

static float *random_bf16(uint64_t seed, int64_t n, uint16_t *bits)
{
    float *x = test_random(seed, n);
    for (int64_t i = 0; i < n; i++) {
        bits[i] = kt_f32_to_bf16(x[i]);
        x[i] = kt_bf16_to_f32(bits[i]);
    }
    return x;
}

/** Rows of y[t] += x[t] W^T, or x[t] W, in double, of factors rounded to BF16. */
static void add_linear(const struct expert *e, bool backward, const float *x, double *y)
{
    int64_t in = backward ? ROWS : COLS, out = backward ? COLS : ROWS;
    float row[COLS];
    for (int64_t r = 0; r < ROWS; r++) {
        kt_weight_decode(e->weight, r, 0, COLS, row);
        for (int64_t t = 0; t < e->tokens; t++)
            for (int64_t c = 0; c < COLS; c++) {
                double w = (double)kt_bf16_to_f32(kt_f32_to_bf16(row[c]));
                y[t * out + (backward ? c : r)] += w * (double)x[t * in + (backward ? r : c)];
            }
    }
}

static int64_t list_experts(const struct kt_weight *weights, struct expert *e)
{
    int64_t rows = 0;
    for (int i = 0; i < EXPERTS; i++) {
        e[i] = (struct expert){5 + i * 53 % (MOST_ROWS - 5), rows, &weights[i % 2]};
        rows += e[i].tokens;
    }
    return rows;
}

static void check_experts(struct device_test *s, bool backward, bool accumulate, kt_dtype dtype)
{
    int64_t in = backward ? ROWS : COLS, out = backward ? COLS : ROWS;
    uint16_t *bits = malloc((size_t)ROWS * COLS * sizeof *bits);
    uint16_t *y_bits = malloc((size_t)EXPERTS * MOST_ROWS * COLS * sizeof *y_bits);
    float *halves = random_bf16(4, ROWS * COLS, bits), *floats = test_random(5, ROWS * COLS);
    const struct kt_weight weights[] = {
        {.data = bits, .dtype = KT_DTYPE_BF16, .rows = ROWS, .cols = COLS},
        {.data = floats, .dtype = KT_DTYPE_F32, .rows = ROWS, .cols = COLS}};
    struct kt_weight there[] = {device_weight(s, &weights[0]), device_weight(s, &weights[1])};
    struct expert e[EXPERTS];
    struct kt_linear_args a[EXPERTS];
    int64_t rows = list_experts(weights, e), size = kt_view_element(dtype);
    uint16_t *x_bits = malloc((size_t)(rows * in) * sizeof *x_bits);
    float *x = random_bf16(6, rows * in, x_bits), *y = random_bf16(7, rows * out, y_bits);
    const void *before = dtype == KT_DTYPE_BF16 ? (void *)y_bits : (void *)y;
    void *x_there = device_put(s, KT_MEMORY_DEVICE, (uint64_t)(rows * in * 2), x_bits);
    char *y_there = device_put(s, KT_MEMORY_DEVICE, (uint64_t)(rows * out * size), before);
    double *want = test_widen(rows * out, y);
    for (int64_t i = 0; !accumulate && i < rows * out; i++)
        want[i] = 0;
    for (int i = 0; i < EXPERTS; i++) {
        int64_t first = e[i].first;
        a[i] = (struct kt_linear_args){.weight = there[i % 2],
                                       .compute = KT_COMPUTE_BF16,
                                       .tokens = e[i].tokens,
                                       .x = {(uint16_t *)x_there + first * in, in, KT_DTYPE_BF16},
                                       .y = {y_there + first * out * size, out, dtype},
                                       .accumulate = accumulate};
    }
    if (s->dev->ops->supports(s->dev, KT_OP_LINEAR_FORWARD, a)) {
        run_together(s, backward ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD, EXPERTS, a);
        device_get_bytes(s, (uint64_t)(rows * out * size), y_there, y);
        for (int64_t i = rows * out - 1; dtype == KT_DTYPE_BF16 && i >= 0; i--)
            y[i] = kt_bf16_to_f32(((uint16_t *)y)[i]);
        for (int i = 0; i < EXPERTS; i++)
            add_linear(&e[i], backward, x + e[i].first * in, want + e[i].first * out);
        double error = test_error(rows * out, y, want);
        ck_assert_double_lt(error, dtype == KT_DTYPE_BF16 ? 3e-3 : 2e-6);
    }
    free(bits), free(y_bits), free(halves), free(floats), free(x_bits), free(x), free(y),
        free(want);
}

START_TEST(linears_of_experts)
{
    struct device_test s = device_open(device_name(_i / 8), 2, 0);
    check_experts(&s, _i & 1, _i & 2, _i & 4 ? KT_DTYPE_BF16 : KT_DTYPE_F32);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_together", .timeout = 60),
        LOOP(linears_together_are_the_same_bits, 4 * num_devices()),
        LOOP(products_together_are_the_same_bits, num_devices()),
        LOOP(linears_of_experts, 8 * num_devices()),
    };
    return RUN_TESTS("device_together", tests);
}
