/* SPDX-License-Identifier: Apache-2.0 */
/* Queues of every device: work goes through all three of them, in buffers that are used again, with
 * no more waits than a program needs. */
#include "device_fixture.h"
#include "main.h"

enum { ROUNDS = 900, SLOTS = 3, N = 5000 };

/* A round's buffers, and the points at which they may be used again. */
struct slot {
    float *in, *out; /* pinned */
    float *x, *y;
    kt_mark read, computed, written;
};

static float *pinned(struct device_test *s)
{
    return device_put(s, KT_MEMORY_PINNED, N * sizeof(float), NULL);
}

static void queue_round(struct device_test *s, struct slot *slot, int round)
{
    for (int i = 0; i < N; i++)
        slot->in[i] = (float)(round + i);
    kt_run_wait(&s->run, KT_QUEUE_IN, slot->computed);
    kt_run_copy(&s->run, KT_QUEUE_IN, slot->x, slot->in, N * sizeof(float));
    kt_run_order(&s->run, KT_QUEUE_COMPUTE, KT_QUEUE_IN);
    kt_run_wait(&s->run, KT_QUEUE_COMPUTE, slot->written);
    kt_run_add(&s->run, &(struct kt_rows_args){.tokens = 1,
                                               .dim = N,
                                               .alpha = 2,
                                               .x = kt_view_f32(slot->x, N),
                                               .y = kt_view_f32(slot->y, N)});
    slot->computed = kt_run_mark(&s->run, KT_QUEUE_COMPUTE);
    kt_run_wait(&s->run, KT_QUEUE_OUT, slot->computed);
    kt_run_copy(&s->run, KT_QUEUE_OUT, slot->out, slot->y, N * sizeof(float));
    slot->written = kt_run_mark(&s->run, KT_QUEUE_OUT);
}

static void check_round(struct device_test *s, const struct slot *slot, int round)
{
    ck_assert_int_eq(kt_run_sync(&s->run, slot->written), KT_OK);
    int wrong = 0;
    for (int i = 0; i < N; i++)
        wrong += slot->out[i] != (float)(2 * (round + i));
    ck_assert_msg(!wrong, "round %d: %d elements are wrong", round, wrong);
}

START_TEST(buffers_go_round)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    struct slot slots[SLOTS] = {0};
    kt_mark first = 0;
    for (int k = 0; k < SLOTS; k++)
        slots[k] = (struct slot){.in = pinned(&s),
                                 .out = pinned(&s),
                                 .x = device_floats(&s, N, NULL),
                                 .y = device_floats(&s, N, NULL)};
    for (int round = 0; round < ROUNDS; round++) {
        struct slot *slot = &slots[round % SLOTS];
        if (round >= SLOTS)
            check_round(&s, slot, round - SLOTS);
        queue_round(&s, slot, round);
        first = first ? first : slot->computed;
    }
    kt_run_wait(&s.run, KT_QUEUE_IN, first); /* a point that passed long ago */
    ck_assert_int_eq(kt_run_sync(&s.run, first), KT_OK);
    for (int round = ROUNDS - SLOTS; round < ROUNDS; round++)
        check_round(&s, &slots[round % SLOTS], round);
    device_close(&s);
}
END_TEST

/* The host may write over memory that is not pinned once the copy is done, and read what was copied
 * to it. */
START_TEST(any_memory_of_the_host_will_do)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    float *host = malloc(N * sizeof *host), *at = device_floats(&s, N, NULL);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++)
            host[i] = (float)(round * i);
        kt_run_copy(&s.run, KT_QUEUE_IN, at, host, N * sizeof *host);
        device_wait(&s, KT_QUEUE_IN);
        memset(host, 0, N * sizeof *host);
        kt_run_copy(&s.run, KT_QUEUE_OUT, host, at, N * sizeof *host);
        device_wait(&s, KT_QUEUE_OUT);
        for (int i = 0; i < N; i++)
            ck_assert(host[i] == (float)(round * i));
    }
    free(host);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_queues", .timeout = 120),
        LOOP(buffers_go_round, num_devices()),
        LOOP(any_memory_of_the_host_will_do, num_devices()),
    };
    return RUN_TESTS("device_queues", tests);
}
