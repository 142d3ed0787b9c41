/* SPDX-License-Identifier: Apache-2.0 */
/* The experts backend "amx" against "reference": with emulated tiles anywhere, with real ones where
 * the processor has them. Weights, activations and results each end where a page begins that may
 * not be touched. */
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/amx/experts.h"
#include "compare.h"
#include "core/dtype.h"

enum { MAX_EXPERTS = 20, MAX_BUFFERS = 512 };

static const struct {
    const char *name;
    uint32_t isa_mask;
} builds[] = {
    {"amx-emulated", KT_ISA_AVX512_BF16},
    {"amx-emulated", 0},
    {"amx", 0},
};

enum { BUILDS = sizeof builds / sizeof *builds };

enum routing { SPREAD, ALL_TO_ONE, TWICE_IN_A_ROW };

struct shape {
    int32_t experts, hidden, inter, tokens, topk;
    enum routing routing;
};

static const struct shape shapes[] = {
    {4, 64, 64, 1, 2, SPREAD},
    {3, 96, 32, 15, 1, ALL_TO_ONE},
    {3, 64, 96, 16, 1, ALL_TO_ONE},
    {3, 160, 64, 17, 1, ALL_TO_ONE},
    {5, 64, 130, 31, 3, SPREAD},
    {5, 72, 64, 33, 3, TWICE_IN_A_ROW},
    {2, 131, 45, 300, 2, TWICE_IN_A_ROW},
    {20, 33, 17, 40, 4, SPREAD},
    {3, 160, 257, 290, 1, ALL_TO_ONE},
    {16, 192, 96, 60, 6, SPREAD},
    {1, 1, 1, 1, 1, SPREAD},
    {2, 520, 300, 20, 2, SPREAD},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* -- memory that ends at a page that may not be touched -----------------------------------------
 */

static struct {
    char *pages;
    size_t bytes;
} buffers[MAX_BUFFERS];
static int num_buffers;

static void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes + page - 1) / page * page;
    char *pages =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(pages != MAP_FAILED);
    ck_assert_int_eq(mprotect(pages + size, page, PROT_NONE), 0);
    ck_assert_int_lt(num_buffers, MAX_BUFFERS);
    buffers[num_buffers].pages = pages;
    buffers[num_buffers++].bytes = size + page;
    return pages + size - bytes;
}

static void free_buffers(void)
{
    while (num_buffers > 0) {
        num_buffers--;
        munmap(buffers[num_buffers].pages, buffers[num_buffers].bytes);
    }
}

static float *guarded_random(uint64_t seed, int64_t n)
{
    float *x = guarded((size_t)n * sizeof *x);
    test_fill(seed, n, x);
    return x;
}

/* -- one layer ----------------------------------------------------------------------------------
 */

struct problem {
    struct kt_weight weights[KT_EXPERT_LINEARS][MAX_EXPERTS];
    struct kt_expert_layer layer;
    struct kt_expert_batch batch;
    float *dy;
};

static void *random_bf16(uint64_t seed, int64_t n, float scale)
{
    float *full = test_random(seed, n);
    uint16_t *half = guarded((size_t)n * sizeof *half);
    for (int64_t i = 0; i < n; i++)
        half[i] = kt_f32_to_bf16(full[i] * scale);
    free(full);
    return half;
}

static int32_t choose_expert(const struct shape *s, int64_t slot)
{
    int64_t token = slot / s->topk, j = slot % s->topk;
    if (s->routing == ALL_TO_ONE)
        return s->experts / 2;
    if (s->routing == TWICE_IN_A_ROW)
        return (int32_t)((token + j / 2) % s->experts);
    /* Expert 1 gets nothing where there are others, the first gets most. */
    int64_t e = token % 3 == 0 ? j : token * 5 + j;
    e %= s->experts;
    return e == 1 ? 0 : (int32_t)e;
}

static void make_problem(struct problem *p, const struct shape *s)
{
    memset(p, 0, sizeof *p);
    p->layer = (struct kt_expert_layer){
        .num_experts = s->experts, .hidden_size = s->hidden, .intermediate_size = s->inter};
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        p->layer.weights[which] = p->weights[which];
        for (int e = 0; e < s->experts; e++) {
            int64_t rows = which == KT_EXPERT_DOWN ? s->hidden : s->inter;
            int64_t cols = which == KT_EXPERT_DOWN ? s->inter : s->hidden;
            p->weights[which][e] =
                (struct kt_weight){.data = random_bf16((uint64_t)(100 * which + e), rows * cols,
                                                       2 / sqrtf((float)cols)),
                                   .dtype = KT_DTYPE_BF16,
                                   .rows = rows,
                                   .cols = cols};
        }
    }
    int64_t slots = (int64_t)s->tokens * s->topk;
    int32_t *ids = guarded((size_t)slots * sizeof *ids);
    for (int64_t i = 0; i < slots; i++)
        ids[i] = choose_expert(s, i);
    p->batch = (struct kt_expert_batch){.compute = KT_COMPUTE_BF16,
                                        .training = 1,
                                        .tokens = s->tokens,
                                        .topk = s->topk,
                                        .topk_ids = ids,
                                        .topk_weights = guarded_random(3, slots),
                                        .x = guarded_random(1, (int64_t)s->tokens * s->hidden)};
    p->dy = guarded_random(2, (int64_t)s->tokens * s->hidden);
}

struct outcome {
    float *y, *dx, *dtw;
};

struct setting {
    const char *name;
    uint32_t isa_mask;
    int32_t threads;
    int small; /* groups of one block, small blocks and chunks */
    int32_t nodes;
    int keeps; /* gate and up products of forward */
};

/* Results start from numbers that the sums must keep. */
static struct outcome run(const struct problem *p, const struct setting *with)
{
    struct kt_experts *experts;
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = with->threads;
    options.isa_mask = with->isa_mask;
    kt_context *ctx = machine_context(&options, with->nodes);
    ck_assert_int_eq(kt_experts_open(ctx, with->name, &experts), KT_OK);
    if (with->small) {
        struct kt_amx_experts *amx = (struct kt_amx_experts *)experts;
        amx->group_bytes = 1;
        amx->forward_tiles = 3, amx->backward_tiles = 2;
        amx->forward_chunk = 64, amx->backward_chunk = 32;
    }
    int64_t n = p->batch.tokens * p->layer.hidden_size, slots = p->batch.tokens * p->batch.topk;
    struct outcome o = {guarded_random(4, n), guarded_random(5, n), guarded_random(6, slots)};
    struct kt_expert_batch batch = p->batch;
    if (with->keeps)
        batch.kept = guarded((size_t)(slots * 2 * p->layer.intermediate_size) * sizeof(float));
    ck_assert_int_eq(experts->ops->forward(experts, &p->layer, &batch, o.y), KT_OK);
    ck_assert_int_eq(experts->ops->backward(experts, &p->layer, &batch, p->dy, o.dx, o.dtw), KT_OK);
    ck_assert_uint_le(
        kt_context_memory_peak(ctx),
        experts->ops->scratch_bytes(experts, &p->layer, p->batch.tokens, p->batch.topk) + 256);
    kt_experts_close(experts);
    ck_assert_uint_eq(kt_context_memory_used(ctx), 0);
    kt_context_free(ctx);
    return o;
}

static struct outcome run_reference(const struct problem *p)
{
    struct problem full = *p;
    full.batch.compute = KT_COMPUTE_F32;
    return run(&full, &(struct setting){.name = "reference", .threads = 2, .nodes = 1});
}

static void check_close(int64_t n, const float *got, const float *want, double tolerance)
{
    double *wide = test_widen(n, want);
    ck_assert_double_lt(test_error(n, got, wide), tolerance);
    free(wide);
}

/* Without the processor for it there is nothing to run; amx_is_absent_or_chosen checks that case.
 */
static int can_run(int build)
{
    kt_context *ctx = test_context(1, builds[build].isa_mask);
    struct kt_experts *experts;
    kt_status status = kt_experts_open(ctx, builds[build].name, &experts);
    kt_experts_close(experts);
    kt_context_free(ctx);
    return status == KT_OK;
}

START_TEST(agrees_with_reference)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!can_run(build))
        return;
    make_problem(&p, s);
    struct outcome want = run_reference(&p);
    for (int small = 0; small < 2; small++) {
        struct setting with = {builds[build].name, builds[build].isa_mask, 2, small, 1, 0};
        struct outcome got = run(&p, &with);
        int64_t n = (int64_t)s->tokens * s->hidden;
        with.keeps = 1;
        struct outcome kept = run(&p, &with);
        ck_assert(memcmp(got.y, kept.y, (size_t)n * sizeof(float)) == 0);
        ck_assert(memcmp(got.dx, kept.dx, (size_t)n * sizeof(float)) == 0);
        check_close(n, got.y, want.y, 5e-3);
        check_close(n, got.dx, want.dx, 5e-3);
        check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 5e-3);
    }
    free_buffers();
}
END_TEST

static void round_to_bf16(int64_t n, const float *x)
{
    float *values = (float *)x;
    for (int64_t i = 0; i < n; i++)
        values[i] = kt_bf16_to_f32(kt_f32_to_bf16(values[i]));
}

/* With x and dy that bfloat16 holds, nothing on the way to d(topk_weights) is rounded. */
START_TEST(topk_gradients_are_those_of_float32)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!can_run(build))
        return;
    make_problem(&p, s);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.batch.x);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.dy);
    struct setting with = {builds[build].name, builds[build].isa_mask, 2, 0, 1, 0};
    struct outcome want = run_reference(&p), got = run(&p, &with);
    check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 1e-5);
    free_buffers();
}
END_TEST

static const struct {
    int32_t threads, nodes;
} pools[] = {{2, 1}, {7, 1}, {2, 2}, {7, 3}};

START_TEST(bits_do_not_depend_on_threads_or_nodes)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!can_run(build))
        return;
    make_problem(&p, s);
    struct setting with = {builds[build].name, builds[build].isa_mask, 1, 0, 1, 0};
    struct outcome one = run(&p, &with);
    for (size_t i = 0; i < sizeof pools / sizeof *pools; i++) {
        with.threads = pools[i].threads;
        with.nodes = pools[i].nodes;
        struct outcome many = run(&p, &with);
        size_t n = (size_t)s->tokens * (size_t)s->hidden * sizeof(float);
        ck_assert(memcmp(one.y, many.y, n) == 0);
        ck_assert(memcmp(one.dx, many.dx, n) == 0);
        ck_assert(memcmp(one.dtw, many.dtw, (size_t)s->tokens * (size_t)s->topk * sizeof(float)) ==
                  0);
    }
    free_buffers();
}
END_TEST

/* -- weights in other formats -------------------------------------------------------------------
 */

static const struct {
    kt_dtype dtype;
    int64_t scale_rows, scale_cols; /* 0 = no scale */
} formats[] = {
    {KT_DTYPE_F8_E4M3, 128, 128}, {KT_DTYPE_F8_E4M3, 24, 40}, {KT_DTYPE_I8, 1, 1 << 20},
    {KT_DTYPE_I4, 1, 128},        {KT_DTYPE_F32, 0, 0},       {KT_DTYPE_F16, 0, 0},
};

enum { FORMATS = sizeof formats / sizeof *formats };

static float *random_scales(uint64_t seed, int64_t n)
{
    float *scales = guarded_random(seed, n);
    for (int64_t i = 0; i < n; i++)
        scales[i] = 0.002f * (2 + scales[i]);
    return scales;
}

/* Random elements of a format: codes of E4M3 without NaN and the largest, halves of moderate size.
 */
static void *random_elements(uint64_t seed, kt_dtype dtype, int64_t bytes)
{
    uint8_t *data = guarded((size_t)bytes);
    if (dtype == KT_DTYPE_F32) {
        float *x = (float *)(void *)data;
        test_fill(seed, bytes / 4, x);
        for (int64_t i = 0; i < bytes / 4; i++)
            x[i] *= 0.25f;
        return data;
    }
    for (int64_t i = 0; i < bytes; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(seed >> 56);
        if (dtype == KT_DTYPE_F8_E4M3)
            data[i] &= 0xcf;
        if (dtype == KT_DTYPE_F16 && i % 2)
            data[i] = (data[i] & 0x83) | 0x28;
    }
    return data;
}

/* Gives every weight of p the format, and of `full` the decoded values, rounded to bfloat16. */
static void reformat(struct problem *p, struct problem *full, int format)
{
    kt_dtype dtype = formats[format].dtype;
    *full = *p;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        p->layer.weights[which] = p->weights[which];
        full->layer.weights[which] = full->weights[which];
        for (int e = 0; e < p->layer.num_experts; e++) {
            struct kt_weight *w = &p->weights[which][e];
            uint64_t seed = (uint64_t)(100 * which + e);
            int64_t bytes = w->rows * (int64_t)kt_format_row_bytes(dtype, w->cols);
            *w = (struct kt_weight){.data = random_elements(seed, dtype, bytes),
                                    .dtype = dtype,
                                    .rows = w->rows,
                                    .cols = w->cols,
                                    .scale_rows = formats[format].scale_rows,
                                    .scale_cols = formats[format].scale_cols};
            if (w->scale_rows) {
                w->scale_ld = (w->cols + w->scale_cols - 1) / w->scale_cols;
                w->scale = random_scales(seed, (w->rows + w->scale_rows - 1) / w->scale_rows *
                                                   w->scale_ld);
            }
            float *values = guarded((size_t)(w->rows * w->cols) * sizeof *values);
            for (int64_t r = 0; r < w->rows; r++)
                kt_weight_decode(w, r, 0, w->cols, values + r * w->cols);
            round_to_bf16(w->rows * w->cols, values);
            full->weights[which][e] = (struct kt_weight){
                .data = values, .dtype = KT_DTYPE_F32, .rows = w->rows, .cols = w->cols};
        }
    }
}

START_TEST(formats_agree_with_their_decoded_values)
{
    const struct shape *s = &shapes[_i / BUILDS / FORMATS];
    int format = _i / BUILDS % FORMATS, build = _i % BUILDS;
    struct problem p, full;
    if (!can_run(build) || (formats[format].dtype == KT_DTYPE_I4 && (s->hidden | s->inter) % 2))
        return;
    make_problem(&p, s);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.batch.x);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.dy);
    reformat(&p, &full, format);
    struct outcome want = run_reference(&full);
    for (int small = 0; small < 2; small++) {
        struct setting with = {builds[build].name, builds[build].isa_mask, 2, small, 1, small};
        struct outcome got = run(&p, &with);
        int64_t n = (int64_t)s->tokens * s->hidden;
        check_close(n, got.y, want.y, 5e-3);
        check_close(n, got.dx, want.dx, 5e-3);
        check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 1e-5);
    }
    free_buffers();
}
END_TEST

/* -- nodes --------------------------------------------------------------------------------------
 */

enum { SPIED = 4 };

/* What the first product of each worker reads; workers wait there for each other. */
static struct {
    pthread_t workers[SPIED];
    bool came[SPIED];
    int64_t row[SPIED];
    _Atomic int32_t arrived;
    void (*forward)(const struct kt_amx_blocks *, const struct kt_amx_blocks *, int64_t,
                    const void *, int64_t, int64_t, float *, void *);
} spy;

static void wait_for_all(int32_t wanted)
{
    for (spy.arrived++; spy.arrived < wanted; sched_yield())
        ;
}

static void note_worker(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)arg, (void)begin, (void)end;
    spy.workers[thread] = pthread_self();
    wait_for_all(SPIED);
}

static void spied_forward(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next,
                          int64_t depth, const void *columns, int64_t tiles, int64_t chunk,
                          float *products, void *stage)
{
    for (int i = 0; i < SPIED; i++) {
        if (!pthread_equal(spy.workers[i], pthread_self()) || spy.came[i])
            continue;
        spy.came[i] = true;
        spy.row[i] = w->first[0];
        wait_for_all(2 * SPIED);
    }
    spy.forward(w, next, depth, columns, tiles, chunk, products, stage);
}

START_TEST(a_node_begins_with_the_rows_that_it_owns)
{
    static const struct shape s = {1, 64, 512, 16, 1, SPREAD};
    struct kt_experts *experts;
    struct problem p;
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = SPIED;
    kt_context *ctx = machine_context(&options, 2);
    ck_assert_int_eq(kt_experts_open(ctx, "amx-emulated", &experts), KT_OK);
    make_problem(&p, &s);
    kt_parallel_for(ctx->pool, SPIED, 1, note_worker, NULL);
    spy.forward = ((struct kt_amx_experts *)experts)->kernels.forward;
    ((struct kt_amx_experts *)experts)->kernels.forward = spied_forward;
    float *y = guarded_random(4, (int64_t)s.tokens * s.hidden);
    ck_assert_int_eq(experts->ops->forward(experts, &p.layer, &p.batch, y), KT_OK);
    for (int32_t i = 0; i < SPIED; i++) {
        ck_assert(spy.came[i]);
        ck_assert_int_eq(spy.row[i] / (s.inter / 2), kt_pool_node(ctx->pool, i));
    }
    kt_experts_close(experts);
    kt_context_free(ctx);
    free_buffers();
}
END_TEST

START_TEST(amx_is_absent_or_chosen)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_experts *experts, *chosen;
    kt_status status = kt_experts_open(ctx, "amx", &experts);
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &chosen), KT_OK);
    if (ctx->cpu.isa & KT_ISA_AMX_BF16) {
        ck_assert_int_eq(status, KT_OK);
        ck_assert_str_eq(chosen->ops->name, "amx");
    } else {
        ck_assert_int_eq(status, KT_ERROR_NOT_FOUND);
        ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "AMX-BF16"));
        ck_assert_str_eq(chosen->ops->name, "llamafile");
    }
    kt_experts_close(experts);
    kt_experts_close(chosen);
    kt_context_free(ctx);
    ctx = test_context(1, KT_ISA_AVX512_BF16);
    ck_assert_int_eq(kt_experts_open(ctx, "amx", &experts), KT_ERROR_NOT_FOUND);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("amx");
    TCase *tc = tcase_create("amx");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, agrees_with_reference, 0, SHAPES * BUILDS);
    tcase_add_loop_test(tc, topk_gradients_are_those_of_float32, 0, SHAPES * BUILDS);
    tcase_add_loop_test(tc, bits_do_not_depend_on_threads_or_nodes, 0, SHAPES * BUILDS);
    tcase_add_test(tc, a_node_begins_with_the_rows_that_it_owns);
    tcase_add_loop_test(tc, formats_agree_with_their_decoded_values, 0, SHAPES * FORMATS * BUILDS);
    tcase_add_test(tc, amx_is_absent_or_chosen);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
