/* SPDX-License-Identifier: Apache-2.0 */
/* The device that behaves like a GPU finds what it is there to find: addresses that the host
 * follows, operands that are not the device's, waits that are missing. */
#include "backends/cpu_far/far.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/registry.h"
#include "compare.h"

enum { N = 64, TRIES = 200 };

struct far {
    kt_context *ctx;
    struct kt_device *dev;
    struct kt_runner run;
};

static struct far far_open(uint64_t seed)
{
    struct far f = {.ctx = test_context(2, 0)};
    ck_assert_int_eq(kt_device_open(f.ctx, "cpu-far:3", &f.dev), KT_OK);
    ck_assert_str_eq(f.dev->ops->name, "cpu-far:3");
    ck_assert(!kt_device_is_host(f.dev));
    kt_cpu_far_seed(f.dev, seed);
    f.run.device = f.dev;
    return f;
}

/** Everything of the device is gone, freed or not. */
static void far_close(struct far *f)
{
    kt_device_close(f->dev);
    ck_assert_uint_eq(kt_context_memory_used(f->ctx), 0);
    kt_context_free(f->ctx);
}

static void *take(struct far *f, enum kt_memory kind, uint64_t bytes, const char *what)
{
    void *memory;
    ck_assert_int_eq(f->dev->ops->alloc(f->dev, kind, bytes, what, &memory), KT_OK);
    ck_assert_uint_eq((uintptr_t)memory % 64, 0);
    return memory;
}

static float *take_floats(struct far *f, enum kt_memory kind, int64_t n)
{
    return take(f, kind, (uint64_t)n * sizeof(float), "floats");
}

static void give(struct far *f, enum kt_memory kind, void *memory)
{
    f->dev->ops->free(f->dev, kind, memory);
}

static kt_status sync_queue(struct far *f, enum kt_queue queue)
{
    return kt_run_sync(&f->run, kt_run_mark(&f->run, queue));
}

static void add(struct far *f, float alpha, const float *x, float *y)
{
    kt_run_add(
        &f->run,
        &(struct kt_rows_args){
            .tokens = 1, .dim = N, .alpha = alpha, .x = kt_view_f32(x, N), .y = kt_view_f32(y, N)});
}

static void copy_in(struct far *f, float *to, const float *from)
{
    kt_run_copy(&f->run, KT_QUEUE_IN, to, from, N * sizeof *to);
}

/* x and y of the device, and what goes in and comes out. */
struct operands {
    float *x, *y, *in, *out;
};

static struct operands take_operands(struct far *f)
{
    struct operands o = {take_floats(f, KT_MEMORY_DEVICE, N), take_floats(f, KT_MEMORY_DEVICE, N),
                         take_floats(f, KT_MEMORY_PINNED, N), take_floats(f, KT_MEMORY_PINNED, N)};
    for (int i = 0; i < N; i++)
        o.in[i] = (float)i;
    return o;
}

static void give_operands(struct far *f, struct operands *o)
{
    for (int queue = 0; queue < KT_QUEUES; queue++)
        sync_queue(f, (enum kt_queue)queue);
    give(f, KT_MEMORY_DEVICE, o->x);
    give(f, KT_MEMORY_DEVICE, o->y);
    give(f, KT_MEMORY_PINNED, o->in);
    give(f, KT_MEMORY_PINNED, o->out);
}

/** y = 2 x is what came out. */
static bool doubled(const float *out)
{
    for (int i = 0; i < N; i++)
        if (out[i] != 2 * (float)i)
            return false;
    return true;
}

static int signal_of_child(void (*body)(void *), void *arg)
{
    int status;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* sanitizers have a handler */
        body(arg);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void read_byte(void *arg)
{
    (void)*(volatile char *)arg;
}

static void write_byte(void *arg)
{
    *(volatile char *)arg = 1;
}

START_TEST(host_cannot_follow_addresses)
{
    static const enum kt_memory kinds[] = {KT_MEMORY_DEVICE, KT_MEMORY_SCRATCH};
    struct far f = far_open(1);
    for (int i = 0; i < 2; i++) {
        char *memory = take(&f, kinds[i], 100, "bytes");
        ck_assert_int_eq(signal_of_child(read_byte, memory), SIGSEGV);
        ck_assert_int_eq(signal_of_child(write_byte, memory + 99), SIGSEGV);
        give(&f, kinds[i], memory);
        ck_assert_int_eq(signal_of_child(read_byte, memory), SIGSEGV);
    }
    char *pinned = take(&f, KT_MEMORY_PINNED, 100, "bytes");
    ck_assert_int_eq(signal_of_child(write_byte, pinned + 99), 0);
    give(&f, KT_MEMORY_PINNED, pinned);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_COMPUTE), KT_OK);
    far_close(&f);
}
END_TEST

static void expect_failure(struct far *f, const char *sentence)
{
    ck_assert_int_eq(sync_queue(f, KT_QUEUE_COMPUTE), KT_ERROR_INTERNAL);
    ck_assert_msg(strstr(kt_last_error(f->ctx), sentence), "%s", kt_last_error(f->ctx));
    ck_assert_ptr_nonnull(strstr(kt_last_error(f->ctx), "cpu-far:3"));
}

START_TEST(operands_must_be_of_the_device)
{
    static const char *const sentences[] = {
        "add: x is not memory of this device",
        "add: y is not memory of this device",
        "add: x is memory of the host",
        "add: x is 256 bytes from byte 4 of \"floats\" on, which has 256 bytes",
        "add: x is not memory of this device",
        "copy: the target is not memory of this device",
        "copy: the source is not memory of this device",
        "free: not memory of this device",
    };
    struct far f = far_open(1);
    struct operands o = take_operands(&f);
    float host[N], *gone = take_floats(&f, KT_MEMORY_DEVICE, N);
    give(&f, KT_MEMORY_DEVICE, gone);
    switch (_i) {
    case 0:
        add(&f, 2, host, o.y);
        break;
    case 1:
        add(&f, 2, o.x, host);
        break;
    case 2:
        add(&f, 2, o.in, o.y);
        break;
    case 3:
        add(&f, 2, o.x + 1, o.y);
        break;
    case 4:
        add(&f, 2, gone, o.y);
        break;
    case 5:
        copy_in(&f, host, o.in);
        break;
    case 6:
        copy_in(&f, o.x, gone);
        break;
    default:
        give(&f, KT_MEMORY_DEVICE, gone);
    }
    expect_failure(&f, sentences[_i]);
    add(&f, 2, o.x, gone); /* later failures and work that is in order change nothing */
    add(&f, 2, o.x, o.y);
    expect_failure(&f, sentences[_i]);
    give_operands(&f, &o);
    far_close(&f);
}
END_TEST

/* Every address that an operation with these arguments follows is missed when it is the host's. */
static void check_operands(struct far *f, enum kt_op op, const void *args)
{
    const struct kt_far_operand *operands = kt_far_operands[op];
    char *copy = malloc(kt_op_args_size(op)), expected[128], host[8];
    for (int i = 0; operands[i].name; i++) {
        void *address = host;
        memcpy(copy, args, kt_op_args_size(op));
        memcpy(copy + operands[i].offset, &address, sizeof address);
        snprintf(expected, sizeof expected, "%s: %s is not memory", kt_op_name(op),
                 operands[i].name);
        kt_far(f->dev)->failure[0] = 0;
        kt_run(&f->run, op, copy);
        expect_failure(f, expected);
    }
    kt_far(f->dev)->failure[0] = 0;
    kt_run(&f->run, op, args);
    ck_assert_int_eq(sync_queue(f, KT_QUEUE_COMPUTE), KT_OK);
    free(copy);
}

START_TEST(each_operand_of_attention_is_looked_at)
{
    enum { HEADS = 2, QK = 12, SHARED = 4, V = 8, TOKENS = 5 };
    static const int32_t offsets[] = {0, TOKENS};
    struct far f = far_open(1);
    int32_t *cu = take(&f, KT_MEMORY_DEVICE, sizeof offsets, "offsets");
    float *x = take_floats(&f, KT_MEMORY_DEVICE, TOKENS * HEADS * QK);
    float *y = take_floats(&f, KT_MEMORY_DEVICE, TOKENS * HEADS * QK);
    struct kt_view in = kt_view_f32(x, HEADS * QK), out = kt_view_f32(y, HEADS * QK);
    struct kt_attention_args a = {.num_heads = HEADS,
                                  .num_kv_heads = HEADS,
                                  .qk_dim = QK,
                                  .shared_dim = SHARED,
                                  .v_dim = V,
                                  .scale = 1,
                                  .queries = {1, offsets, cu},
                                  .keys = {1, offsets, cu},
                                  .q = in,
                                  .k = in,
                                  .k_shared = in,
                                  .v = in,
                                  .o = out,
                                  .q_head_stride = QK,
                                  .k_head_stride = QK - SHARED,
                                  .v_head_stride = V,
                                  .o_head_stride = V,
                                  .lse = take_floats(&f, KT_MEMORY_DEVICE, HEADS * TOKENS),
                                  .d_o = in,
                                  .dq = out,
                                  .dk = out,
                                  .dk_shared = out,
                                  .dv = out};
    kt_run_copy(&f.run, KT_QUEUE_COMPUTE, cu, offsets, sizeof offsets);
    for (int op = KT_OP_ATTENTION_FORWARD; op <= KT_OP_ATTENTION_BACKWARD; op++) {
        struct kt_tally tally = {0};
        kt_run(&(struct kt_runner){f.dev, &tally}, (enum kt_op)op, &a);
        ck_assert_int_eq(kt_device_reserve_scratch(f.dev, tally.scratch), KT_OK);
        check_operands(&f, (enum kt_op)op, &a);
    }
    give(&f, KT_MEMORY_DEVICE, cu);
    give(&f, KT_MEMORY_DEVICE, x);
    give(&f, KT_MEMORY_DEVICE, y);
    give(&f, KT_MEMORY_DEVICE, a.lse);
    far_close(&f);
}
END_TEST

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

START_TEST(fresh_memory_is_not_a_number)
{
    static const enum kt_memory kinds[] = {KT_MEMORY_DEVICE, KT_MEMORY_SCRATCH, KT_MEMORY_PINNED};
    struct far f = far_open(1);
    float *out = take_floats(&f, KT_MEMORY_PINNED, N);
    for (int i = 0; i < 3; i++) {
        float *memory = take_floats(&f, kinds[i], N);
        kt_run_copy(&f.run, KT_QUEUE_OUT, out, memory, N * sizeof *out);
        ck_assert_int_eq(sync_queue(&f, KT_QUEUE_OUT), KT_OK);
        for (int k = 0; k < N; k++)
            ck_assert(isnan(out[k]));
        memset(out, 0, N * sizeof *out);
        give(&f, kinds[i], memory);
    }
    give(&f, KT_MEMORY_PINNED, out);
    far_close(&f);
}
END_TEST

START_TEST(memory_in_use_must_not_be_freed)
{
    struct far f = far_open(0);
    struct operands o = take_operands(&f);
    copy_in(&f, o.x, o.in);
    give(&f, KT_MEMORY_DEVICE, take_floats(&f, KT_MEMORY_DEVICE, N)); /* which nobody uses */
    give(&f, KT_MEMORY_DEVICE, NULL);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_COMPUTE), KT_OK);
    give(&f, KT_MEMORY_PINNED, o.in);
    expect_failure(&f, "free: work that is queued still uses \"floats\"");
    o.in = NULL;
    give_operands(&f, &o);
    far_close(&f);
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

START_TEST(memory_beyond_the_limit_is_refused)
{
    struct far f = far_open(1);
    void *memory;
    f.ctx->options.memory_limit = 1 << 20;
    ck_assert_int_eq(f.dev->ops->alloc(f.dev, KT_MEMORY_DEVICE, 2 << 20, "too much", &memory),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_ptr_nonnull(strstr(kt_last_error(f.ctx), "too much"));
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_COMPUTE), KT_OK);
    far_close(&f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("far");
    TCase *t = tcase_create("far");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, host_cannot_follow_addresses);
    tcase_add_loop_test(t, operands_must_be_of_the_device, 0, 8);
    tcase_add_test(t, each_operand_of_attention_is_looked_at);
    tcase_add_test(t, a_missing_wait_gives_wrong_numbers);
    tcase_add_test(t, a_host_that_does_not_wait_reads_nothing);
    tcase_add_test(t, a_staging_buffer_is_read_late);
    tcase_add_test(t, work_runs_early_too);
    tcase_add_test(t, fresh_memory_is_not_a_number);
    tcase_add_test(t, memory_in_use_must_not_be_freed);
    tcase_add_test(t, long_queues_and_many_allocations);
    tcase_add_test(t, memory_beyond_the_limit_is_refused);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
