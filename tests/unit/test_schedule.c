/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "toy_model.h"
#include "training_golden.h"
#include "main.h"

START_TEST(rates_are_those_of_transformers)
{
    kt_context *ctx = toy_context(1);
    json_t *root = training_golden(), *cases = json_object_get(root, "schedules"), *c, *rate;
    size_t i, step;
    ck_assert_uint_gt(json_array_size(cases), 10);
    json_array_foreach(cases, i, c)
    {
        kt_schedule s;
        kt_schedule_init(&s, sizeof s);
        s.type = json_string_value(json_object_get(c, "type"));
        s.learning_rate = golden_number(c, "learning_rate");
        s.warmup_steps = (uint64_t)golden_number(c, "warmup_steps");
        s.total_steps = (uint64_t)golden_number(c, "total_steps");
        s.num_cycles = golden_number(c, "num_cycles");
        s.power = golden_number(c, "power");
        s.lr_end = golden_number(c, "lr_end");
        json_array_foreach(json_object_get(c, "rates"), step, rate)
        {
            double want = json_number_value(rate), got = -1;
            ck_assert_int_eq(kt_schedule_rate(ctx, &s, step, &got), KT_OK);
            ck_assert_msg(fabs(got - want) <= 1e-9 * s.learning_rate,
                          "case %zu (%s) step %zu: %.17g, not %.17g", i, s.type, step, got, want);
        }
    }
    json_decref(root);
    kt_context_free(ctx);
}
END_TEST

START_TEST(bad_schedules_are_refused)
{
    kt_context *ctx = toy_context(1);
    kt_schedule s;
    double rate;
    kt_schedule_init(&s, sizeof s);
    s.type = "cosin";
    ck_assert_int_eq(kt_schedule_rate(ctx, &s, 0, &rate), KT_ERROR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "cosin"));
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "cosine_with_restarts"));
    s.type = "polynomial";
    s.lr_end = 1;
    ck_assert_int_eq(kt_schedule_rate(ctx, &s, 0, &rate), KT_ERROR_INVALID_ARGUMENT);
    s.type = "linear";
    s.learning_rate = NAN;
    ck_assert_int_eq(kt_schedule_rate(ctx, &s, 0, &rate), KT_ERROR_INVALID_ARGUMENT);
    s.learning_rate = 1;
    const double bad[] = {-1, NAN, INFINITY, 1e300};
    for (int i = 0; i < 4; i++) {
        s.power = bad[i];
        ck_assert_int_eq(kt_schedule_rate(ctx, &s, 0, &rate), KT_ERROR_INVALID_ARGUMENT);
        s.power = 1;
        s.num_cycles = bad[i];
        ck_assert_int_eq(kt_schedule_rate(ctx, &s, 0, &rate), KT_ERROR_INVALID_ARGUMENT);
        ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "num_cycles"));
        s.num_cycles = 0;
    }
    kt_context_free(ctx);
}
END_TEST

START_TEST(permutations_are_those_of_torch)
{
    kt_context *ctx = toy_context(1);
    json_t *root = training_golden(), *c, *value;
    size_t i, j;
    json_array_foreach(json_object_get(root, "permutations"), i, c)
    {
        size_t n = (size_t)golden_number(c, "n");
        int64_t *order = calloc(n, sizeof *order);
        uint64_t seed = (uint64_t)json_integer_value(json_object_get(c, "seed")), checksum = 0;
        ck_assert_int_eq(kt_random_permutation(ctx, seed, n, order), KT_OK);
        json_array_foreach(json_object_get(c, "head"), j, value)
            ck_assert_int_eq(order[j], json_integer_value(value));
        for (j = 0; j < n; j++)
            checksum += (j + 1) * (uint64_t)order[j];
        ck_assert_uint_eq(checksum % ((uint64_t)1 << 53),
                          (uint64_t)json_integer_value(json_object_get(c, "checksum")));
        free(order);
    }
    ck_assert_int_eq(kt_random_permutation(ctx, 1, (size_t)1 << 30, NULL), KT_ERROR_UNSUPPORTED);
    json_decref(root);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        TEST(rates_are_those_of_transformers),
        TEST(bad_schedules_are_refused),
        TEST(permutations_are_those_of_torch),
    };
    return RUN_TESTS("schedule", tests);
}
