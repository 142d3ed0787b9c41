/* SPDX-License-Identifier: Apache-2.0 */
/* The device that behaves like a GPU finds waits that are missing: what is queued runs late, and at
 * times early. */
#include "far_fixture.h"
#include "main.h"

enum { TRIES = 200 };

/** y = 2 x is what came out. */
static bool doubled(const float *out)
{
    for (int i = 0; i < N; i++)
        if (out[i] != 2 * (float)i)
            return false;
    return true;
}

/* In -> compute -> out, with the waits that `waits` has a bit for. */
static bool runs_right(uint64_t seed, unsigned waits)
{
    struct far f = far_open(seed);
    struct operands o = take_operands(&f);
    copy_in(&f, o.x, o.in);
    if (waits & 1)
        kt_run_order(&f.run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
    add(&f, 2, o.x, o.y);
    if (waits & 2)
        kt_run_order(&f.run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    kt_run_copy(&f.run, KT_QUEUE_OUT, o.out, o.y, N * sizeof *o.out);
    if (waits & 4)
        ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    float got[N];
    memcpy(got, o.out, sizeof got);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    give_operands(&f, &o);
    far_close(&f);
    return doubled(got);
}

static int count_right(unsigned waits, int tries)
{
    int right = 0;
    for (int seed = 0; seed < tries; seed++)
        right += runs_right((uint64_t)seed, waits);
    return right;
}

START_TEST(a_missing_wait_gives_wrong_numbers)
{
    ck_assert_int_eq(count_right(7, TRIES), TRIES);
    ck_assert_int_lt(count_right(6, TRIES), TRIES * 3 / 4); /* compute does not wait for in */
    ck_assert_int_lt(count_right(5, TRIES), TRIES * 3 / 4); /* out does not wait for compute */
}
END_TEST

/* The host that does not wait reads while the device may write, so nothing runs early here. */
START_TEST(a_host_that_does_not_wait_reads_nothing)
{
    ck_assert(!runs_right(0, 3));
}
END_TEST

START_TEST(a_staging_buffer_is_read_late)
{
    struct far f = far_open(0);
    struct operands o = take_operands(&f);
    copy_in(&f, o.x, o.in);
    kt_run_order(&f.run, KT_QUEUE_OUT, KT_QUEUE_IN);
    kt_run_copy(&f.run, KT_QUEUE_OUT, o.out, o.x, N * sizeof *o.out);
    o.in[5] = -1; /* too early */
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    ck_assert(o.out[5] == -1 && o.out[6] == 6);
    copy_in(&f, o.x, o.in);
    kt_mark copied = kt_run_mark(&f.run, KT_QUEUE_IN);
    kt_run_order(&f.run, KT_QUEUE_OUT, KT_QUEUE_IN);
    kt_run_copy(&f.run, KT_QUEUE_OUT, o.out, o.x, N * sizeof *o.out);
    ck_assert_int_eq(kt_run_sync(&f.run, copied), KT_OK);
    o.in[5] = -2;
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    ck_assert(o.out[5] == -1);
    give_operands(&f, &o);
    far_close(&f);
}
END_TEST

/* A buffer that two steps use in turn: the second step's copy must wait for the first's work. */
static bool reuses_right(uint64_t seed, bool waits)
{
    struct far f = far_open(seed);
    struct operands o = take_operands(&f);
    float *other = take_floats(&f, KT_MEMORY_PINNED, N);
    for (int i = 0; i < N; i++)
        other[i] = -7;
    copy_in(&f, o.x, o.in);
    kt_run_order(&f.run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
    add(&f, 2, o.x, o.y);
    if (waits)
        kt_run_order(&f.run, KT_QUEUE_IN, KT_QUEUE_COMPUTE);
    copy_in(&f, o.x, other);
    kt_run_order(&f.run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    kt_run_copy(&f.run, KT_QUEUE_OUT, o.out, o.y, N * sizeof *o.out);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    bool right = doubled(o.out);
    give_operands(&f, &o);
    give(&f, KT_MEMORY_PINNED, other);
    far_close(&f);
    return right;
}

START_TEST(work_runs_early_too)
{
    int right = 0;
    for (int seed = 0; seed < TRIES; seed++) {
        ck_assert(reuses_right((uint64_t)seed, true));
        right += reuses_right((uint64_t)seed, false);
    }
    ck_assert_int_lt(right, TRIES);
}
END_TEST

/* More jobs than a queue holds, over more allocations than the table begins with. */
START_TEST(long_queues_and_many_allocations)
{
    enum { MANY = 3 * KT_FAR_JOBS };
    struct far f = far_open(1);
    float *list[MANY], one[N], out[MANY];
    float *pinned = take_floats(&f, KT_MEMORY_PINNED, MANY);
    for (int k = 0; k < N; k++)
        one[k] = 1;
    for (int i = 0; i < MANY; i++)
        list[i] = take_floats(&f, KT_MEMORY_DEVICE, N);
    copy_in(&f, list[0], one);
    kt_run_order(&f.run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
    for (int i = 1; i < MANY; i++) {
        add(&f, i % 2 ? 2.0f : 0.5f, list[i - 1], list[i]);
        kt_run_order(&f.run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
        kt_run_copy(&f.run, KT_QUEUE_OUT, pinned + i, list[i], sizeof *pinned);
    }
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
    memcpy(out, pinned, sizeof out);
    for (int i = 1; i < MANY; i++)
        ck_assert(out[i] == (i % 2 ? 2.0f : 1.0f));
    for (int i = 0; i < MANY; i++)
        give(&f, KT_MEMORY_DEVICE, list[i * 7 % MANY]); /* 7 and MANY have no factor in common */
    give(&f, KT_MEMORY_PINNED, pinned);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_COMPUTE), KT_OK);
    far_close(&f);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("far_queues", .timeout = 120),
        TEST(a_missing_wait_gives_wrong_numbers),
        TEST(a_host_that_does_not_wait_reads_nothing),
        TEST(a_staging_buffer_is_read_late),
        TEST(work_runs_early_too),
        TEST(long_queues_and_many_allocations),
    };
    return RUN_TESTS("far_queues", tests);
}
