/* SPDX-License-Identifier: Apache-2.0 */
/* The device that behaves like a GPU finds addresses that the host follows and operands that are
 * not the device's. */
#include "far_fixture.h"
#include "main.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

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

START_TEST(operands_must_be_of_the_device)
{
    static const char *const sentences[] = {
        "add: x is not memory of this device",
        "add: y is not memory of this device",
        "add: x is memory of the host",
        "add: x is 256 bytes from byte 4 of \"floats\" on, which has 256 bytes",
        "add: x is not memory of this device",
        "copy: the target is not memory of this device", /* but was */
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
        copy_in(&f, gone, o.in);
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

/* C of a product on any device; `from` has A and B. */
static void multiply(kt_context *ctx, const char *name, const float *from, int64_t n, float *to)
{
    struct kt_device *dev;
    struct kt_tally tally = {0};
    float *memory[4];
    uint64_t bytes = (uint64_t)(n * n) * sizeof *to;
    ck_assert_int_eq(kt_device_open(ctx, name, &dev), KT_OK);
    struct far f = {ctx, dev, {.device = dev}};
    for (int i = 0; i < 4; i++)
        memory[i] = take_floats(&f, i < 3 ? KT_MEMORY_DEVICE : KT_MEMORY_PINNED, n * n);
    struct kt_gemm_args a = {.m = n,
                             .n = n,
                             .k = n,
                             .alpha = 0.3f,
                             .a = kt_view_f32(memory[0], n),
                             .b = kt_view_f32(memory[1], n),
                             .c = kt_view_f32(memory[2], n)};
    kt_run_gemm(&(struct kt_runner){dev, &tally}, &a);
    ck_assert_int_eq(kt_device_reserve_scratch(dev, tally.scratch), KT_OK);
    kt_run_copy(&f.run, KT_QUEUE_COMPUTE, memory[0], from, bytes);
    kt_run_copy(&f.run, KT_QUEUE_COMPUTE, memory[1], from + n * n, bytes);
    kt_run_gemm(&f.run, &a);
    kt_run_copy(&f.run, KT_QUEUE_COMPUTE, memory[3], memory[2], bytes);
    ck_assert_int_eq(sync_queue(&f, KT_QUEUE_COMPUTE), KT_OK);
    memcpy(to, memory[3], bytes);
    for (int i = 0; i < 4; i++)
        give(&f, i < 3 ? KT_MEMORY_DEVICE : KT_MEMORY_PINNED, memory[i]);
    kt_device_close(dev);
}

START_TEST(results_are_the_bits_of_cpu)
{
    enum { SIZE = 150 };
    kt_context *ctx = test_context(3, 0);
    float *from = test_random(1, 2 * SIZE * SIZE);
    float *near = test_random(2, SIZE * SIZE), *far = test_random(3, SIZE * SIZE);
    multiply(ctx, "cpu", from, SIZE, near);
    multiply(ctx, "cpu-far", from, SIZE, far);
    ck_assert_mem_eq(near, far, SIZE * SIZE * sizeof *far);
    free(from), free(near), free(far);
    kt_context_free(ctx);
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
    const struct test tests[] = {
        GROUP("far", .timeout = 120),
        TEST(host_cannot_follow_addresses),
        LOOP(operands_must_be_of_the_device, 8),
        TEST(each_operand_of_attention_is_looked_at),
        TEST(results_are_the_bits_of_cpu),
        TEST(fresh_memory_is_not_a_number),
        TEST(memory_in_use_must_not_be_freed),
        TEST(memory_beyond_the_limit_is_refused),
    };
    return RUN_TESTS("far", tests);
}
