/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <kt/kt.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/context.h"
#include "core/dtype.h"
#include "core/memory.h"
#include "core/random.h"

static kt_context *new_context(int32_t threads, uint64_t limit)
{
    kt_context_options options;
    kt_context *ctx;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = threads;
    options.memory_limit = limit;
    ck_assert_int_eq(kt_context_create(&options, &ctx), KT_OK);
    return ctx;
}

static void mark(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        ((int *)arg)[i]++;
}

START_TEST(parallel_for_visits_each_item_once)
{
    for (int32_t threads = 1; threads <= 5; threads++) {
        kt_context *ctx = new_context(threads, 0);
        for (int64_t n = 0; n < 200; n += 13) {
            int *seen = calloc((size_t)n + 1, sizeof *seen);
            kt_parallel_for(ctx->pool, n, 7, mark, seen);
            for (int64_t i = 0; i < n; i++)
                ck_assert_int_eq(seen[i], 1);
            ck_assert_int_eq(seen[n], 0);
            free(seen);
        }
        kt_context_free(ctx);
    }
}
END_TEST

static void count(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)thread;
    atomic_fetch_add((_Atomic int64_t *)arg, end - begin);
}

START_TEST(a_job_sees_no_other_jobs_work)
{
    kt_context *ctx = new_context(5, 0);
    for (int64_t job = 0; job < 20000; job++) {
        _Atomic int64_t counted = 0;
        kt_parallel_for(ctx->pool, job % 9, 1, count, &counted);
        ck_assert_int_eq(counted, job % 9);
        if (job % 5000 == 0)
            usleep(1000); /* long enough for workers to fall asleep */
    }
    kt_context_free(ctx);
}
END_TEST

START_TEST(bf16_rounds_to_nearest_even)
{
    ck_assert_uint_eq(kt_f32_to_bf16(1.0f), 0x3f80);
    ck_assert_uint_eq(kt_f32_to_bf16(0x1.01p0f), 0x3f80); /* tie to even, down */
    ck_assert_uint_eq(kt_f32_to_bf16(0x1.03p0f), 0x3f82); /* tie to even, up */
    ck_assert(isnan(kt_bf16_to_f32(kt_f32_to_bf16(NAN))));
    ck_assert(isinf(kt_bf16_to_f32(kt_f32_to_bf16(3.4e38f))));
}
END_TEST

START_TEST(f16_widens_every_value)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float got = kt_f16_to_f32((uint16_t)h);
        int exponent = (h >> 10) & 31, mantissa = h & 1023;
        double want = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31)
            want = mantissa ? (double)NAN : (double)INFINITY;
        if (h & 0x8000)
            want = -want;
        ck_assert(isnan(want) ? isnan(got) : (double)got == want);
    }
}
END_TEST

/* Known-answer vectors published with Random123. */
START_TEST(philox_known_answers)
{
    uint32_t out[4];
    kt_philox(0, 0, 0, out);
    ck_assert_uint_eq(out[0], 0x6627e8d5u);
    ck_assert_uint_eq(out[3], 0x9b00dbd8u);
    kt_philox(~0ull, ~0ull, ~0ull, out);
    ck_assert_uint_eq(out[0], 0x408f276du);
    ck_assert_uint_eq(out[3], 0x6d5451fdu);
}
END_TEST

START_TEST(memory_limit_and_overflow_are_errors)
{
    kt_context *ctx = new_context(1, 1 << 20);
    void *p, *q;
    ck_assert_int_eq(kt_buffer_alloc(ctx, 1000, 4, "a", &p), KT_OK);
    ck_assert_uint_ge(kt_context_memory_used(ctx), 4000);
    ck_assert_int_eq(kt_buffer_alloc(ctx, 1 << 20, 4, "b", &q), KT_ERROR_OUT_OF_MEMORY);
    ck_assert_ptr_null(q);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "limit"));
    ck_assert_int_eq(kt_buffer_alloc(ctx, UINT64_MAX / 2, 4, "c", &q), KT_ERROR_OUT_OF_MEMORY);
    kt_buffer_free(ctx, p);
    ck_assert_uint_eq(kt_context_memory_used(ctx), 0);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core");
    TCase *tc = tcase_create("core");
    tcase_add_test(tc, parallel_for_visits_each_item_once);
    tcase_add_test(tc, a_job_sees_no_other_jobs_work);
    tcase_add_test(tc, bf16_rounds_to_nearest_even);
    tcase_add_test(tc, f16_widens_every_value);
    tcase_add_test(tc, philox_known_answers);
    tcase_add_test(tc, memory_limit_and_overflow_are_errors);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
