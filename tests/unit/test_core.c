/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <kt/kt.h>
#include <math.h>
#include <stdlib.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "core/random.h"
#include "machine.h"
#include "main.h"

static kt_context *new_context(uint64_t limit)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    options.memory_limit = limit;
    return machine_context(&options, 1);
}

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
    kt_context *ctx = new_context(1 << 20);
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
    const struct test tests[] = {
        TEST(bf16_rounds_to_nearest_even),
        TEST(f16_widens_every_value),
        TEST(philox_known_answers),
        TEST(memory_limit_and_overflow_are_errors),
    };
    return RUN_TESTS("core", tests);
}
