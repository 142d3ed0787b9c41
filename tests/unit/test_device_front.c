/* SPDX-License-Identifier: Apache-2.0 */
/* The front of devices: what it measures and refuses, that scratch is as large as was said, and how
 * devices are opened. */
#include "backends/cpu/cpu.h"
#include "core/memory.h"
#include "device_fixture.h"
#include "main.h"

enum { MAX_THREADS = SANITIZED ? 2 : 4 };

/* -- scratch ----------------------------------------------------------------------------------- */

/* Runs an operation in exactly as much scratch as the device says that it takes. `blind` are the
 * same arguments without addresses. */
static void check_scratch(struct device_test *s, enum kt_op op, const void *args, const void *blind)
{
    uint64_t bytes = s->dev->ops->scratch_bytes(s->dev, op, args);
    ck_assert_uint_eq(s->dev->ops->scratch_bytes(s->dev, op, blind), bytes);
    s->dev->ops->run[op](s->dev, args, device_put(s, KT_MEMORY_SCRATCH, bytes, NULL));
    device_free_blocks(s);
}

/* What the numbers are does not matter. */
static struct kt_view any(struct device_test *s, int64_t rows, int64_t ld)
{
    return kt_view_f32(device_floats(s, rows * ld, NULL), ld);
}

static void scratch_of_linear(struct device_test *s, kt_dtype dtype, kt_compute compute, int64_t t,
                              int64_t n, int64_t k)
{
    enum { BLOCK = 128 };
    for (int backward = 0; backward < 2; backward++) {
        struct kt_linear_args args = {.weight = {.dtype = dtype, .rows = n, .cols = k},
                                      .compute = compute,
                                      .tokens = t,
                                      .x = any(s, t, backward ? n : k),
                                      .y = any(s, t, backward ? k : n),
                                      .accumulate = backward};
        if (dtype == KT_DTYPE_F8_E4M3) {
            args.weight.scale_rows = args.weight.scale_cols = BLOCK;
            args.weight.scale_ld = (k + BLOCK - 1) / BLOCK;
            args.weight.scale = any(s, n / BLOCK + 1, args.weight.scale_ld).data;
        }
        struct kt_linear_args blind = args;
        blind.x.data = blind.y.data = NULL;
        args.weight.data =
            device_put(s, KT_MEMORY_DEVICE, (uint64_t)n * kt_format_row_bytes(dtype, k), NULL);
        check_scratch(s, backward ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD, &args, &blind);
    }
}

static void scratch_of_gemm(struct device_test *s, bool trans_a, bool trans_b, int64_t m, int64_t n,
                            int64_t k)
{
    struct kt_gemm_args args = {trans_a,
                                trans_b,
                                m,
                                n,
                                k,
                                1,
                                any(s, trans_a ? k : m, trans_a ? m : k),
                                any(s, trans_b ? n : k, trans_b ? k : n),
                                any(s, m, n),
                                false};
    struct kt_gemm_args blind = args;
    blind.a.data = blind.b.data = blind.c.data = NULL;
    check_scratch(s, KT_OP_GEMM, &args, &blind);
}

static void scratch_of_router(struct device_test *s, int32_t num_experts)
{
    enum { TOKENS = 100, TOPK = 3 };
    int64_t n = (int64_t)TOKENS * num_experts, k = TOKENS * TOPK;
    struct kt_router r = {
        KT_SCORING_SIGMOID, KT_GROUP_MAX, num_experts, TOPK, num_experts, 3, 1, 1.0f, NULL};
    struct kt_router_args blind = {.router = r, .tokens = TOKENS}, args = blind;
    args.logits = device_random(s, 1, n);
    args.ids = device_ints(s, k, NULL);
    args.weights = device_floats(s, k, NULL);
    check_scratch(s, KT_OP_ROUTER_FORWARD, &args, &blind);
    int32_t ids[TOKENS * TOPK] = {0};
    args.logits = device_random(s, 1, n);
    args.ids = device_ints(s, k, ids);
    args.dweights = device_random(s, 2, k);
    args.dlogits = device_floats(s, n, NULL);
    check_scratch(s, KT_OP_ROUTER_BACKWARD, &args, &blind);
}

static void place_attention(struct device_test *s, struct kt_attention_args *a)
{
    int64_t nq = a->queries.host[a->queries.num], nk = a->keys.host[a->keys.num];
    int64_t own = a->qk_dim - a->shared_dim, q = a->num_heads * a->qk_dim;
    int64_t o = a->num_heads * a->v_dim, k = a->num_kv_heads * own;
    int64_t v = a->num_kv_heads * a->v_dim;
    a->queries = device_offsets(s, a->queries.num, a->queries.host);
    a->keys = device_offsets(s, a->keys.num, a->keys.host);
    a->q = any(s, nq, q);
    a->k = any(s, nk, k);
    a->v = any(s, nk, v);
    a->o = any(s, nq, o);
    a->k_shared = any(s, nk, a->shared_dim);
    a->lse = device_random(s, 6, nq * a->num_heads);
    a->d_o = any(s, nq, o);
    a->dq = any(s, nq, q);
    a->dk = any(s, nk, k);
    a->dv = any(s, nk, v);
    a->dk_shared = any(s, nk, a->shared_dim);
    a->q_head_stride = a->qk_dim, a->k_head_stride = own;
    a->v_head_stride = a->o_head_stride = a->v_dim;
}

static void scratch_of_attention(struct device_test *s, struct kt_attention_args blind)
{
    for (int backward = 0; backward < 2; backward++) {
        struct kt_attention_args args = blind;
        place_attention(s, &args);
        check_scratch(s, backward ? KT_OP_ATTENTION_BACKWARD : KT_OP_ATTENTION_FORWARD, &args,
                      &blind);
    }
}

/* A part of what follows is one of few rows, or columns, or both; large enough to be cut into
 * blocks; or, of attention, of few queries and many keys. */
START_TEST(scratch_is_enough)
{
    static const int64_t shapes[][3] = {{1, 256, 512}, {7, 12, 256},    {300, 8, 1024},
                                        {8, 300, 512}, {150, 257, 300}, {70, 140, 2304},
                                        {3, 5, 0},     {0, 64, 256}};
    static const int32_t one[] = {0, 150}, three[] = {0, 70, 70, 210}, long_keys[] = {0, 1500};
    static const int32_t decode[] = {0, 1}, decode_two[] = {0, 1, 2}, keys_two[] = {0, 40, 2000};
    struct device_test s = device_open(device_name(_i / MAX_THREADS), _i % MAX_THREADS + 1, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        for (int trans = 0; trans < 4; trans++)
            scratch_of_gemm(&s, trans & 1, trans & 2, m, n, k);
        for (int compute = 0; compute < 2 && k && k % 256 == 0; compute++) {
            scratch_of_linear(&s, KT_DTYPE_F32, (kt_compute)compute, m, n, k);
            scratch_of_linear(&s, KT_DTYPE_F8_E4M3, (kt_compute)compute, m, n, k);
            scratch_of_linear(&s, KT_DTYPE_Q4_K, (kt_compute)compute, m, n, k);
        }
    }
    scratch_of_router(&s, 5);
    scratch_of_router(&s, 160);
    for (int compute = 0; compute < 2; compute++) {
        struct kt_attention_args a = {.num_heads = 4,
                                      .num_kv_heads = 2,
                                      .qk_dim = 24,
                                      .v_dim = 20,
                                      .scale = 0.1f,
                                      .compute = (kt_compute)compute};
        a.queries.num = a.keys.num = 1;
        a.queries.host = a.keys.host = one;
        scratch_of_attention(&s, a);
        a.queries.host = decode, a.keys.host = long_keys;
        scratch_of_attention(&s, a);
        a.num_kv_heads = 4;
        a.shared_dim = 8;
        a.queries.num = a.keys.num = 2;
        a.queries.host = decode_two, a.keys.host = keys_two;
        scratch_of_attention(&s, a);
        a.queries.num = a.keys.num = 3;
        a.queries.host = a.keys.host = three;
        scratch_of_attention(&s, a);
    }
    device_close(&s);
}
END_TEST

static void grows(const struct device_test *s, enum kt_op op, const void *args, uint64_t *before)
{
    uint64_t bytes = s->dev->ops->scratch_bytes(s->dev, op, args);
    ck_assert_uint_ge(bytes, *before);
    *before = bytes;
}

/* As many keys as queries where a sequence is trained on, one query where a token is generated. */
static void attention_grows(const struct device_test *s, kt_compute compute, bool generates)
{
    uint64_t before[2] = {0};
    for (int32_t tokens = 1; tokens < 100000; tokens += 1 + tokens / 5) {
        int32_t queries[] = {0, generates ? 1 : tokens}, keys[] = {0, tokens};
        struct kt_attention_args a = {.num_heads = 4,
                                      .num_kv_heads = 4,
                                      .qk_dim = 192,
                                      .v_dim = 128,
                                      .compute = compute,
                                      .queries = {1, queries, NULL},
                                      .keys = {1, keys, NULL}};
        grows(s, KT_OP_ATTENTION_FORWARD, &a, &before[0]);
        if (!generates)
            grows(s, KT_OP_ATTENTION_BACKWARD, &a, &before[1]);
    }
}

/* So that what was reserved for many tokens serves fewer. */
START_TEST(fewer_tokens_take_no_more_scratch)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    for (int compute = 0; compute < 2; compute++) {
        uint64_t before[5] = {0};
        struct kt_view f32 = {NULL, 1, KT_DTYPE_F32};
        for (int64_t tokens = 1; tokens < 100000; tokens += 1 + tokens / 50) {
            struct kt_linear_args l = {
                .weight = {.dtype = KT_DTYPE_BF16, .rows = 1500, .cols = 7168},
                .compute = (kt_compute)compute,
                .tokens = tokens,
                .x = f32,
                .y = f32};
            struct kt_gemm_args down = {false, true, tokens, 8, 7168, 1, f32, f32, f32, false};
            struct kt_gemm_args da = {true, false, 64, 7168, tokens, 1, f32, f32, f32, true};
            struct kt_gemm_args db = {true, false, 7168, 64, tokens, 1, f32, f32, f32, true};
            grows(&s, KT_OP_LINEAR_FORWARD, &l, &before[0]);
            grows(&s, KT_OP_LINEAR_BACKWARD, &l, &before[1]);
            grows(&s, KT_OP_GEMM, &down, &before[2]);
            grows(&s, KT_OP_GEMM, &da, &before[3]);
            grows(&s, KT_OP_GEMM, &db, &before[4]);
        }
        attention_grows(&s, (kt_compute)compute, false);
        attention_grows(&s, (kt_compute)compute, true);
    }
    device_close(&s);
}
END_TEST

/* -- what the front does ----------------------------------------------------------------------- */

enum { TOKENS = 30, ROWS = 50, COLS = 70 };

static struct kt_linear_args linear(struct device_test *s)
{
    struct kt_weight w = {.data = device_random(s, 1, ROWS * COLS),
                          .dtype = KT_DTYPE_F32,
                          .rows = ROWS,
                          .cols = COLS};
    return (struct kt_linear_args){.weight = w,
                                   .tokens = TOKENS,
                                   .x = kt_view_f32(device_random(s, 2, TOKENS * COLS), COLS),
                                   .y = kt_view_f32(device_random(s, 3, TOKENS * ROWS), ROWS)};
}

/* Told at every sync, with the device's name. */
static void check_refused(struct device_test *s, const char *why)
{
    kt_mark mark = kt_run_mark(&s->run, KT_QUEUE_COMPUTE);
    ck_assert_int_eq(kt_run_sync(&s->run, mark), KT_ERROR_INTERNAL);
    ck_assert_ptr_nonnull(strstr(kt_last_error(s->ctx), why));
    ck_assert_ptr_nonnull(strstr(kt_last_error(s->ctx), s->dev->ops->name));
    ck_assert_int_eq(kt_run_sync(&s->run, mark), KT_ERROR_INTERNAL);
    for (int i = 0; i < s->num_blocks; i++) /* guards cannot be read any more */
        s->dev->ops->free(s->dev, s->blocks[i].kind, s->blocks[i].memory);
    s->num_blocks = 0;
    device_close(s);
}

START_TEST(too_little_scratch_is_refused)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    struct kt_linear_args a = linear(&s);
    a.compute = KT_COMPUTE_BF16; /* not the weight's type, so that every device takes some */
    uint64_t bytes = s.dev->ops->scratch_bytes(s.dev, KT_OP_LINEAR_FORWARD, &a);
    float before[TOKENS * ROWS], after[TOKENS * ROWS];
    device_get(&s, TOKENS * ROWS, a.y.data, before);
    ck_assert_uint_gt(bytes, 0);
    ck_assert_int_eq(kt_device_reserve_scratch(s.dev, bytes), KT_OK);
    kt_run_linear_forward(&s.run, &a);
    device_get(&s, TOKENS * ROWS, a.y.data, after);
    ck_assert(memcmp(before, after, sizeof before) != 0);
    s.dev->scratch_bytes = bytes - 1;
    kt_run_linear_forward(&s.run, &a);
    check_refused(&s, "scratch");
}
END_TEST

/* Each operation with one view in a dtype that it does not take: no device takes F16, and those of
 * the host no BF16 but in conversions. */
static void check_supports(const struct kt_device *dev, kt_dtype dtype)
{
    struct kt_view f32 = {NULL, 1, KT_DTYPE_F32}, other = {NULL, 1, dtype};
    struct kt_view f16 = {NULL, 1, KT_DTYPE_F16};
    const struct {
        enum kt_op op;
        const void *args;
    } cases[] = {
        {KT_OP_LINEAR_FORWARD, &(struct kt_linear_args){.x = other, .y = f32}},
        {KT_OP_LINEAR_BACKWARD, &(struct kt_linear_args){.x = f32, .y = other}},
        {KT_OP_GEMM, &(struct kt_gemm_args){.a = other, .b = f32, .c = f32}},
        {KT_OP_GEMM, &(struct kt_gemm_args){.a = f32, .b = f32, .c = other}},
        {KT_OP_EMBEDDING, &(struct kt_embedding_args){.x = other}},
        {KT_OP_NORM_FORWARD, &(struct kt_norm_args){.x = other, .y = f32}},
        {KT_OP_NORM_BACKWARD, &(struct kt_norm_args){.x = f32, .dy = other, .y = f32}},
        {KT_OP_ROPE, &(struct kt_rope_args){.x = other}},
        {KT_OP_ATTENTION_FORWARD, &(struct kt_attention_args){.v = other}},
        {KT_OP_ATTENTION_FORWARD, &(struct kt_attention_args){.shared_dim = 1, .k_shared = other}},
        {KT_OP_ATTENTION_BACKWARD, &(struct kt_attention_args){.dk = other}},
        {KT_OP_GLU_FORWARD, &(struct kt_glu_args){.h = other}},
        {KT_OP_GLU_BACKWARD, &(struct kt_glu_args){.dup = other}},
        {KT_OP_CROSS_ENTROPY, &(struct kt_cross_entropy_args){.logits = other}},
        {KT_OP_ADD, &(struct kt_rows_args){.x = other, .y = f32}},
        {KT_OP_ZERO, &(struct kt_rows_args){.y = other}},
        {KT_OP_DROPOUT, &(struct kt_dropout_args){.x = f32, .y = other}},
        {KT_OP_CONVERT, &(struct kt_rows_args){.x = f32, .y = f16}},
    };
    enum { CASES = sizeof cases / sizeof *cases };
    for (int i = 0; i < CASES; i++)
        ck_assert_msg(!dev->ops->supports(dev, cases[i].op, cases[i].args), "case %d", i);
}

START_TEST(unsupported_views_are_refused)
{
    struct kt_view f32 = {NULL, 1, KT_DTYPE_F32}, bf16 = {NULL, 1, KT_DTYPE_BF16};
    struct kt_attention_args shared = {.shared_dim = 1};
    struct device_test s = device_open(device_name(_i), 1, 0);
    check_supports(s.dev, KT_DTYPE_F16);
    if (device_is_cpu(s.dev->ops->name))
        check_supports(s.dev, KT_DTYPE_BF16);
    ck_assert(s.dev->ops->supports(s.dev, KT_OP_ATTENTION_FORWARD, &shared));
    ck_assert(s.dev->ops->supports(s.dev, KT_OP_ATTENTION_BACKWARD, &shared));
    ck_assert(
        s.dev->ops->supports(s.dev, KT_OP_CONVERT, &(struct kt_rows_args){.x = bf16, .y = f32}));
    struct kt_linear_args a = linear(&s);
    a.x.dtype = KT_DTYPE_F16;
    kt_run_linear_forward(&s.run, &a);
    check_refused(&s, "does not support");
}
END_TEST

START_TEST(tally_counts_and_runs_nothing)
{
    static const int32_t queries[] = {0, 3, 10}, keys[] = {0, 5, 12};
    struct device_test s = device_open(device_name(_i), 2, 0);
    struct kt_tally tally = {0};
    struct kt_runner measure = {s.dev, &tally};
    struct kt_linear_args linear = {.weight = {.dtype = KT_DTYPE_BF16, .rows = ROWS, .cols = COLS},
                                    .tokens = TOKENS};
    struct kt_attention_args attention = {.num_heads = 4,
                                          .num_kv_heads = 2,
                                          .qk_dim = 12,
                                          .v_dim = 8,
                                          .queries = {2, queries, NULL},
                                          .keys = {2, keys, NULL}};
    kt_run_linear_forward(&measure, &linear);
    ck_assert_double_eq(tally.flops, 2.0 * TOKENS * ROWS * COLS);
    ck_assert_double_eq(tally.bytes, 2.0 * ROWS * COLS + 4.0 * TOKENS * (ROWS + COLS));
    ck_assert_uint_eq(tally.scratch,
                      s.dev->ops->scratch_bytes(s.dev, KT_OP_LINEAR_FORWARD, &linear));
    kt_run_linear_backward(&measure, &linear);
    ck_assert_double_eq(tally.flops, 4.0 * TOKENS * ROWS * COLS);
    tally = (struct kt_tally){0};
    /* of a sequence, half of the square of its new tokens is hidden */
    double pairs = 3 * 5 - 3 * 2 / 2.0 + 7 * 7 - 7 * 6 / 2.0;
    kt_run_attention_forward(&measure, &attention);
    ck_assert_double_eq(tally.flops, 2 * pairs * 4 * (12 + 8));
    kt_run_attention_backward(&measure, &attention);
    ck_assert_double_eq(tally.flops, (2 + 5) * pairs * 4 * (12 + 8));
    ck_assert_uint_eq(tally.operations[KT_OP_ATTENTION_FORWARD], 1);
    ck_assert_uint_eq(tally.operations[KT_OP_ATTENTION_BACKWARD], 1);
    ck_assert_uint_eq(tally.operations[KT_OP_LINEAR_FORWARD], 0);
    double before = tally.bytes, seconds = tally.seconds;
    kt_run_copy(&measure, KT_QUEUE_IN, NULL, NULL, 100);
    ck_assert_double_eq(tally.bytes, before + 200);
    ck_assert_double_eq(tally.seconds, seconds);
    ck_assert_double_eq(tally.copy_seconds, 100 / s.dev->ops->rates(s.dev, KT_COMPUTE_F32).link);
    device_wait(&s, KT_QUEUE_COMPUTE); /* measuring refuses nothing */
    device_close(&s);
}
END_TEST

/* A product of few tokens takes the time of its weight, one of many that of its multiplications, by
 * the rate of its compute mode. */
START_TEST(seconds_are_those_of_the_slower_of_products_and_memory)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    for (int compute = 0; compute < 2; compute++) {
        struct kt_rates rates = s.dev->ops->rates(s.dev, (kt_compute)compute);
        struct kt_linear_args few = {.weight = {.dtype = KT_DTYPE_BF16, .rows = 1000, .cols = 1000},
                                     .compute = (kt_compute)compute,
                                     .tokens = 1};
        struct kt_linear_args many = few;
        struct kt_tally of_few = {0}, of_many = {0};
        many.tokens = 100000;
        kt_run_linear_forward(&(struct kt_runner){s.dev, &of_few}, &few);
        kt_run_linear_forward(&(struct kt_runner){s.dev, &of_many}, &many);
        ck_assert_double_eq(of_few.seconds, of_few.bytes / rates.bytes);
        ck_assert_double_eq(of_many.seconds, of_many.flops / rates.flops);
        ck_assert_double_eq(of_many.copy_seconds, 0);
    }
    device_close(&s);
}
END_TEST

/* -- memory and opening ------------------------------------------------------------------------ */

START_TEST(memory_is_aligned_and_copied)
{
    struct device_test s = device_open(device_name(_i), 2, 0);
    for (int kind = KT_MEMORY_DEVICE; kind <= KT_MEMORY_PINNED; kind++)
        for (uint64_t bytes = 0; bytes < 200; bytes += 67) {
            void *memory = device_put(&s, (enum kt_memory)kind, bytes, NULL);
            ck_assert_uint_eq((uintptr_t)memory % 64, 0);
        }
    float x[5] = {1, 2, 3, 4, 5}, y[5];
    float *at = device_floats(&s, 5, x), *copy = device_floats(&s, 5, NULL);
    kt_run_copy(&s.run, KT_QUEUE_COMPUTE, copy, at, sizeof x);
    kt_run_copy(&s.run, KT_QUEUE_COMPUTE, copy, copy, sizeof x);
    ck_assert(memcmp(device_get(&s, 5, copy, y), x, sizeof x) == 0);
    s.dev->ops->free(s.dev, KT_MEMORY_DEVICE, NULL);
    device_close(&s);
}
END_TEST

/* Said by the system, whose own sanitizers end the program instead. */
START_TEST(memory_that_is_not_there_is_an_error)
{
    struct device_test s = device_open(device_name(_i), 1, 0);
    for (int kind = KT_MEMORY_DEVICE; kind <= KT_MEMORY_PINNED && !SANITIZED; kind++) {
        void *memory = &s;
        ck_assert_int_eq(
            s.dev->ops->alloc(s.dev, (enum kt_memory)kind, 1ull << 50, "everything", &memory),
            KT_ERROR_OUT_OF_MEMORY);
        ck_assert_ptr_nonnull(strstr(kt_last_error(s.ctx), "everything"));
    }
    float x[5] = {1, 2, 3, 4, 5}, y[5];
    device_get(&s, 5, device_floats(&s, 5, x), y);
    ck_assert(memcmp(x, y, sizeof x) == 0);
    device_close(&s);
}
END_TEST

START_TEST(devices_of_a_context_have_names_and_scratch_of_their_own)
{
    struct device_test s = device_open("cpu", 2, 0);
    struct kt_device *other;
    ck_assert_int_eq(kt_device_open(s.ctx, "cpu:15", &other), KT_OK);
    ck_assert_str_eq(s.dev->ops->name, "cpu");
    ck_assert_str_eq(other->ops->name, "cpu:15");
    ck_assert(kt_device_is_host(other));
    ck_assert_int_eq(kt_device_reserve_scratch(s.dev, 1000), KT_OK);
    ck_assert_uint_eq(s.dev->scratch_bytes, 1000);
    ck_assert_ptr_null(other->scratch);
    kt_device_close(other);
    device_close(&s);
}
END_TEST

START_TEST(a_device_has_a_pool)
{
    struct device_test s = device_open("cpu", 1, 0);
    struct kt_topology topology = machine("core:4 pu:1");
    struct kt_pool *pool;
    struct kt_device *wide;
    struct kt_linear_args a = {.weight = {.dtype = KT_DTYPE_F32, .rows = ROWS, .cols = COLS},
                               .tokens = TOKENS};
    ck_assert_int_eq(kt_pool_create(&topology, 4, false, &pool), KT_OK);
    ck_assert_int_eq(kt_cpu_open_on(s.ctx, pool, "test", &wide), KT_OK);
    ck_assert_ptr_eq(kt_cpu(s.dev)->pool, s.ctx->pool);
    ck_assert_ptr_eq(kt_cpu(wide)->pool, pool);
    ck_assert_uint_gt(wide->ops->scratch_bytes(wide, KT_OP_LINEAR_FORWARD, &a),
                      s.dev->ops->scratch_bytes(s.dev, KT_OP_LINEAR_FORWARD, &a));
    kt_device_close(wide);
    kt_pool_free(pool);
    kt_topology_free(&topology);
    device_close(&s);
}
END_TEST

START_TEST(bound_scratch_is_remembered)
{
    enum { BYTES = 1 << 12 };
    struct device_test s = device_open("cpu", 2, 0);
    struct kt_bound_scratch state = {0};
    char *memory = device_put(&s, KT_MEMORY_SCRATCH, 2 * BYTES, NULL);
    kt_bind_thread_scratch(s.ctx->pool, &state, memory, BYTES);
    ck_assert(state.memory == memory && state.thread_bytes == BYTES);
    kt_bind_thread_scratch(s.ctx->pool, &state, memory, BYTES / 2);
    ck_assert(state.memory == memory && state.thread_bytes == BYTES / 2);
    device_close(&s);
}
END_TEST

START_TEST(unknown_devices_and_memory_limits_are_errors)
{
    static const char *const unknown[] = {"tpu:0",  "cpu:16", "cpu:", "cpu:1x", "cpu: 1",
                                          "cpu:-1", "cpux",   "cp",   "",       "cpu:0000"};
    kt_context_options options;
    kt_context *ctx;
    struct kt_device *dev;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    options.memory_limit = 4096;
    ck_assert_int_eq(kt_context_create(&options, &ctx), KT_OK);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        ck_assert_int_eq(kt_device_open(ctx, unknown[i], &dev), KT_ERROR_NOT_FOUND);
        ck_assert_ptr_null(dev);
        ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), unknown[i]));
    }
    ck_assert_int_eq(kt_device_open(ctx, "cpu:0", &dev), KT_OK);
    struct kt_linear_args a = {.weight = {.dtype = KT_DTYPE_F32, .rows = 100, .cols = 100},
                               .tokens = 100,
                               .x = {NULL, 100, KT_DTYPE_F32},
                               .y = {NULL, 100, KT_DTYPE_F32}};
    uint64_t bytes = dev->ops->scratch_bytes(dev, KT_OP_LINEAR_FORWARD, &a);
    ck_assert_int_eq(kt_device_reserve_scratch(dev, bytes), KT_ERROR_OUT_OF_MEMORY);
    a.tokens = 0;
    kt_run_linear_forward(&(struct kt_runner){dev, NULL}, &a);
    ck_assert_int_eq(kt_run_sync(&(struct kt_runner){dev, NULL}, 0), KT_OK);
    kt_device_close(dev);
    kt_context_free(ctx);
}
END_TEST

struct hoard {
    struct kt_device *dev;
    void *blocks[2];
};

/** Gives up one block of 1000 bytes at a time. */
static bool give_up(void *owner, uint64_t bytes)
{
    struct hoard *hoard = owner;
    (void)bytes;
    for (int i = 0; i < 2; i++) {
        if (!hoard->blocks[i])
            continue;
        kt_device_free(hoard->dev, KT_MEMORY_DEVICE, hoard->blocks[i], 1000);
        hoard->blocks[i] = NULL;
        return true;
    }
    return false;
}

/** What has room only when everything that can be given up is. */
START_TEST(memory_is_reclaimed_until_it_is_enough)
{
    struct device_test s = device_open(device_name(_i), 1, 0);
    struct hoard hoard = {s.dev, {NULL, NULL}};
    void *memory, *more = &s;
    s.dev->limit = 2500;
    s.dev->owner = &hoard;
    s.dev->reclaim = give_up;
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(
            kt_device_alloc(s.dev, KT_MEMORY_DEVICE, 1000, "a hoard", &hoard.blocks[i]), KT_OK);
    ck_assert_int_eq(kt_device_alloc(s.dev, KT_MEMORY_DEVICE, 2400, "a test", &memory), KT_OK);
    ck_assert(!hoard.blocks[0] && !hoard.blocks[1]);
    ck_assert_int_eq(kt_device_alloc(s.dev, KT_MEMORY_DEVICE, 200, "a test", &more),
                     KT_ERROR_OUT_OF_MEMORY);
    kt_device_free(s.dev, KT_MEMORY_DEVICE, memory, 2400);
    ck_assert_uint_eq(s.dev->allocated, 0);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_front", .timeout = 120),
        LOOP(scratch_is_enough, num_devices() * MAX_THREADS),
        LOOP(fewer_tokens_take_no_more_scratch, num_devices()),
        LOOP(too_little_scratch_is_refused, num_devices()),
        LOOP(unsupported_views_are_refused, num_devices()),
        LOOP(tally_counts_and_runs_nothing, num_devices()),
        LOOP(seconds_are_those_of_the_slower_of_products_and_memory, num_devices()),
        LOOP(memory_is_aligned_and_copied, num_devices()),
        LOOP(memory_that_is_not_there_is_an_error, num_devices()),
        LOOP(memory_is_reclaimed_until_it_is_enough, num_devices()),
        TEST(devices_of_a_context_have_names_and_scratch_of_their_own),
        TEST(a_device_has_a_pool),
        TEST(bound_scratch_is_remembered),
        TEST(unknown_devices_and_memory_limits_are_errors),
    };
    return RUN_TESTS("device_front", tests);
}
