/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of experts against their formulas in double precision. */
#include "core/random.h"
#include "device_fixture.h"
#include "main.h"

enum { TOKENS = 23, ROWS = 17, SLOTS = 2 * TOKENS, DIM = 37, LD = 41 };

/** Rows of an expert: every row another token and slot, in an order of its own. */
struct choice {
    int32_t index[ROWS], slots[ROWS];
    float *weights; /* [SLOTS] */
};

static struct choice choose(void)
{
    struct choice c = {.weights = test_random(7, SLOTS)};
    for (int32_t r = 0; r < ROWS; r++) {
        c.index[r] = (r * 5 + 3) % TOKENS;
        c.slots[r] = 2 * c.index[r] + r % 2;
    }
    return c;
}

static struct kt_gather_args rows_of(struct device_test *s, const struct choice *c, bool weighed)
{
    return (struct kt_gather_args){.rows = ROWS,
                                   .dim = DIM,
                                   .tokens = TOKENS,
                                   .index = device_ints(s, ROWS, c->index),
                                   .num_slots = SLOTS,
                                   .slots = device_ints(s, ROWS, c->slots),
                                   .weights = weighed ? device_floats(s, SLOTS, c->weights) : NULL};
}

/** x [rows, LD] and its view on the device */
static float *put(struct device_test *s, uint64_t seed, int64_t rows, struct kt_view *view)
{
    float *x = test_random(seed, rows * LD);
    *view = kt_view_f32(device_floats(s, rows * LD, x), LD);
    return x;
}

static void expect(struct device_test *s, const struct kt_view *view, int64_t rows,
                   const double *want)
{
    float *got = device_get(s, rows * LD, view->data, malloc((size_t)(rows * LD) * 4));
    ck_assert_double_lt(test_error(rows * LD, got, want), 1e-6);
    free(got);
}

START_TEST(gathers_rows_of_tokens)
{
    struct device_test s = device_setting(_i / 2);
    struct choice c = choose();
    bool weighed = _i % 2;
    struct kt_gather_args a = rows_of(&s, &c, weighed);
    float *x = put(&s, 1, TOKENS, &a.x), *y = put(&s, 2, ROWS, &a.y);
    double *want = test_widen(ROWS * LD, y);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < DIM; i++)
            want[r * LD + i] =
                (double)x[c.index[r] * LD + i] * (weighed ? c.weights[c.slots[r]] : 1);
    device_run(&s, KT_OP_GATHER, &a);
    expect(&s, &a.y, ROWS, want);
    free(x), free(y), free(want), free(c.weights);
    device_close(&s);
}
END_TEST

/** Without an index rows are weighed where they are. */
START_TEST(weighs_rows_in_place)
{
    struct device_test s = device_setting(_i);
    struct choice c = choose();
    struct kt_gather_args a = rows_of(&s, &c, true);
    a.index = NULL;
    float *x = put(&s, 1, ROWS, &a.x);
    a.tokens = ROWS;
    a.y = a.x;
    double *want = test_widen(ROWS * LD, x);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < DIM; i++)
            want[r * LD + i] *= c.weights[c.slots[r]];
    device_run(&s, KT_OP_GATHER, &a);
    expect(&s, &a.y, ROWS, want);
    free(x), free(want), free(c.weights);
    device_close(&s);
}
END_TEST

enum { TOPK = 3, FIRST = 4 /* rows before those that are added */ };

/** Rows of tokens among FIRST + ROWS + FIRST: some tokens have none, some several; behind the last
 * is -1. */
static void choose_rows(int32_t rows[TOKENS * TOPK])
{
    int32_t next = 0;
    for (int32_t i = 0; i < TOKENS * TOPK; i++)
        rows[i] = -1;
    for (int32_t t = 0; t < TOKENS; t++)
        for (int32_t k = 0; k < t % (TOPK + 1) && next < 2 * FIRST + ROWS; k++, next++)
            rows[t * TOPK + k] = next * 7 % (2 * FIRST + ROWS);
}

START_TEST(adds_rows_to_tokens)
{
    struct device_test s = device_setting(_i / 2);
    struct choice c = choose();
    int32_t token_rows[TOKENS * TOPK];
    bool weighed = _i % 2;
    struct kt_gather_args a = rows_of(&s, &c, weighed);
    float *x = put(&s, 1, ROWS, &a.x), *y = put(&s, 2, TOKENS, &a.y);
    double *want = test_widen(TOKENS * LD, y);
    choose_rows(token_rows);
    a.topk = TOPK;
    a.token_rows = device_ints(&s, TOKENS * TOPK, token_rows);
    a.first_row = FIRST;
    for (int k = 0; k < TOKENS * TOPK; k++) {
        int32_t r = token_rows[k] - FIRST;
        for (int i = 0; i < DIM && r >= 0 && r < ROWS; i++)
            want[k / TOPK * LD + i] +=
                (double)x[r * LD + i] * (weighed ? c.weights[c.slots[r]] : 1);
    }
    device_run(&s, KT_OP_SCATTER_ADD, &a);
    expect(&s, &a.y, TOKENS, want);
    free(x), free(y), free(want), free(c.weights);
    device_close(&s);
}
END_TEST

START_TEST(weighs_gradients_and_finds_those_of_weights)
{
    struct device_test s = device_setting(_i);
    struct choice c = choose();
    struct kt_weigh_args a = {.rows = ROWS,
                              .dim = DIM,
                              .num_slots = SLOTS,
                              .slots = device_ints(&s, ROWS, c.slots),
                              .weights = device_floats(&s, SLOTS, c.weights)};
    float *h = put(&s, 1, ROWS, &a.h), *dh = put(&s, 2, ROWS, &a.dh);
    float *dweights = test_random(3, SLOTS);
    double *want = test_widen(ROWS * LD, dh), *want_weights = test_widen(SLOTS, dweights);
    a.dweights = device_floats(&s, SLOTS, dweights);
    for (int r = 0; r < ROWS; r++) {
        want_weights[c.slots[r]] = 0;
        for (int i = 0; i < DIM; i++) {
            want_weights[c.slots[r]] += (double)h[r * LD + i] * dh[r * LD + i];
            want[r * LD + i] *= c.weights[c.slots[r]];
        }
    }
    device_run(&s, KT_OP_WEIGH, &a);
    expect(&s, &a.dh, ROWS, want);
    device_get(&s, SLOTS, a.dweights, dweights);
    ck_assert_double_lt(test_error(SLOTS, dweights, want_weights), 1e-6);
    free(h), free(dh), free(dweights), free(want), free(want_weights), free(c.weights);
    device_close(&s);
}
END_TEST

/** The mask of a row is that of its token. */
START_TEST(dropout_follows_an_index)
{
    struct device_test s = device_setting(_i);
    struct choice c = choose();
    struct kt_dropout_args a = {
        .tokens = ROWS, .dim = DIM, .p = 0.4f, .key = 99, .index = device_ints(&s, ROWS, c.index)};
    float *x = put(&s, 1, ROWS, &a.x), *y = put(&s, 2, ROWS, &a.y), row[DIM];
    double *want = test_widen(ROWS * LD, y);
    for (int r = 0; r < ROWS; r++) {
        kt_dropout_row(a.p, a.key, c.index[r], 0, DIM, x + r * LD, false, row);
        for (int i = 0; i < DIM; i++)
            want[r * LD + i] = row[i];
    }
    device_run(&s, KT_OP_DROPOUT, &a);
    expect(&s, &a.y, ROWS, want);
    free(x), free(y), free(want), free(c.weights);
    device_close(&s);
}
END_TEST

/** An expert that no token chose. */
START_TEST(no_rows_is_nothing)
{
    struct device_test s = device_setting(_i);
    struct kt_view none = {.dtype = KT_DTYPE_F32};
    device_run(&s, KT_OP_GATHER, &(struct kt_gather_args){.dim = DIM, .x = none, .y = none});
    device_run(&s, KT_OP_SCATTER_ADD, &(struct kt_gather_args){.dim = DIM, .x = none, .y = none});
    device_run(&s, KT_OP_WEIGH, &(struct kt_weigh_args){.dim = DIM, .h = none, .dh = none});
    device_wait(&s, KT_QUEUE_COMPUTE);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        LOOP(gathers_rows_of_tokens, 2 * num_device_runs()),
        LOOP(weighs_rows_in_place, num_device_runs()),
        LOOP(adds_rows_to_tokens, 2 * num_device_runs()),
        LOOP(weighs_gradients_and_finds_those_of_weights, num_device_runs()),
        LOOP(dropout_follows_an_index, num_device_runs()),
        LOOP(no_rows_is_nothing, num_device_runs()),
    };
    return RUN_TESTS("device_gather", tests);
}
