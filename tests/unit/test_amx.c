/* SPDX-License-Identifier: Apache-2.0 */
/* The experts backend "amx" against "reference": with emulated tiles anywhere, with real ones where
 * the processor has them. Weights, activations and results each end where a page begins that may
 * not be touched. */
#include "config.h"
#include "expert_problem.h"
#include "node_spy.h"
#include "main.h"

static const struct {
    const char *name;
    uint32_t isa_mask;
} builds[] = {
    {"amx-emulated", KT_ISA_AVX512_BF16},
    {"amx-emulated", 0},
    {"amx", 0},
};

enum { BUILDS = sizeof builds / sizeof *builds };

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
    {3, 290, 260, 52, 1, ALL_TO_ONE},
    {8, 290, 260, 6, 4, SPREAD}, /* backward's widest tasks */
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Without the processor for it there is nothing to run; amx_is_absent_or_chosen checks that case.
 */
static bool can_run(int build)
{
    return experts_exist(builds[build].name, builds[build].isa_mask);
}

static bool has_turn(int build, int shape)
{
    return emulation_has_turn(build, shape) && can_run(build);
}

START_TEST(agrees_with_reference)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!has_turn(build, _i / BUILDS))
        return;
    make_problem(&p, s);
    struct outcome want = run_reference(&p);
    for (int small = 0; small < 2; small++) {
        struct setting with = {
            builds[build].name, builds[build].isa_mask, 2, small, 1, 0, WHOLE, 0};
        struct outcome got = run(&p, &with);
        int64_t n = (int64_t)s->tokens * s->hidden;
        with.keeps = 1;
        struct outcome kept = run(&p, &with);
        check_same(&p, &got, &kept);
        check_close(n, got.y, want.y, 5e-3);
        check_close(n, got.dx, want.dx, 5e-3);
        check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 5e-3);
    }
    free_buffers();
}
END_TEST

/* With x and dy that bfloat16 holds, nothing on the way to d(weights) is rounded. */
START_TEST(topk_gradients_are_those_of_float32)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!has_turn(build, _i / BUILDS))
        return;
    make_problem(&p, s);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.x);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.dy);
    struct setting with = {builds[build].name, builds[build].isa_mask, 2, 0, 1, 0, WHOLE, 0};
    struct outcome want = run_reference(&p), got = run(&p, &with);
    check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 1e-5);
    free_buffers();
}
END_TEST

START_TEST(bits_do_not_depend_on_threads_or_nodes)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!has_turn(build, _i / BUILDS))
        return;
    make_problem(&p, s);
    check_same_in_all_pools(
        &p, (struct setting){builds[build].name, builds[build].isa_mask, 1, 0, 1, 0, WHOLE, 0});
    free_buffers();
}
END_TEST

START_TEST(bits_do_not_depend_on_shares)
{
    const struct shape *s = &shapes[_i / BUILDS];
    int build = _i % BUILDS;
    struct problem p;
    if (!has_turn(build, _i / BUILDS))
        return;
    make_problem(&p, s);
    check_same_in_all_cuts(
        &p, (struct setting){builds[build].name, builds[build].isa_mask, 2, 0, 1, 0, WHOLE, 0});
    free_buffers();
}
END_TEST

/* -- weights in other formats -------------------------------------------------------------------
 */

static const struct format formats[] = {
    {KT_DTYPE_F8_E4M3, 128, 128}, {KT_DTYPE_F8_E4M3, 24, 40}, {KT_DTYPE_F8_E4M3, 64, 64},
    {KT_DTYPE_F8_E4M3, 32, 96},   {KT_DTYPE_I8, 1, 1 << 20},  {KT_DTYPE_I4, 1, 128},
};

enum { FORMATS = sizeof formats / sizeof *formats };

/* Blocks of few tokens take FP8 as it is, if its scales are those of whole blocks and steps; other
 * weights are rounded to bfloat16. */
static struct outcome run_decoded(const struct problem *p, const struct problem *rounded,
                                  const struct format *format, int small)
{
    enum { FEW_TOKENS = 4 * KT_AMX_TOKENS };
    struct problem full = *rounded;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        full.layer.weights[which] = full.weights[which];
    if (format->dtype == KT_DTYPE_F8_E4M3 && format->scale_cols % KT_AMX_STEP == 0 &&
        format->scale_rows % KT_AMX_ROWS == 0)
        decode_exactly(p, &full, small ? INT64_MAX : FEW_TOKENS);
    return run_reference(&full);
}

START_TEST(formats_agree_with_their_decoded_values)
{
    const struct shape *s = &shapes[_i / BUILDS / FORMATS];
    int format = _i / BUILDS % FORMATS, build = _i % BUILDS;
    struct problem p, full;
    if (!has_turn(build, _i / BUILDS / FORMATS) ||
        (SANITIZED && (format + _i / BUILDS / FORMATS) % 3) ||
        (formats[format].dtype == KT_DTYPE_I4 && (s->hidden | s->inter) % 2))
        return;
    make_problem(&p, s);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.x);
    round_to_bf16((int64_t)s->tokens * s->hidden, p.dy);
    reformat(&p, &full, &formats[format]);
    for (int keeps = 0; keeps < 2; keeps++) {
        int small = formats[format].dtype == KT_DTYPE_F8_E4M3 ? 2 * keeps : keeps;
        struct outcome want = run_decoded(&p, &full, &formats[format], small);
        struct setting with = {
            builds[build].name, builds[build].isa_mask, 2, small, 1, keeps, WHOLE, 0};
        struct outcome got = run(&p, &with);
        int64_t n = (int64_t)s->tokens * s->hidden;
        check_close(n, got.y, want.y, 5e-3);
        check_close(n, got.dx, want.dx, 5e-3);
        check_close((int64_t)s->tokens * s->topk, got.dtw, want.dtw, 1e-5);
    }
    free_buffers();
}
END_TEST

static bool supports(int build, const struct problem *p)
{
    struct kt_experts *experts;
    kt_context *ctx = test_context(1, builds[build].isa_mask);
    ck_assert_int_eq(kt_experts_open(ctx, builds[build].name, &experts), KT_OK);
    bool answer =
        experts->ops->supports(experts, &p->layer, p->compute, p->tokens, !p->conversation);
    kt_experts_close(experts);
    kt_context_free(ctx);
    return answer;
}

START_TEST(supports_what_tiles_are_for)
{
    static const struct shape one = {16, 192, 96, 1, 6, SPREAD}, two = {16, 192, 96, 2, 6, SPREAD};
    static const struct format half = {KT_DTYPE_F16, 0, 0}, single = {KT_DTYPE_F32, 0, 0};
    static const float a[1];
    struct kt_lora_pair lora[MAX_EXPERTS] = {0};
    struct problem p, full;
    if (!can_run(_i))
        return;
    make_problem(&p, &one);
    ck_assert(supports(_i, &p));
    p.conversation = true;
    ck_assert(!supports(_i, &p));
    free_buffers();
    make_problem(&p, &two);
    p.conversation = true;
    ck_assert(supports(_i, &p));
    p.compute = KT_COMPUTE_F32;
    ck_assert(!supports(_i, &p));
    p.compute = KT_COMPUTE_BF16;
    p.layer.lora[KT_EXPERT_DOWN] = lora;
    ck_assert(supports(_i, &p));
    lora[3].a = a;
    ck_assert(!supports(_i, &p));
    p.layer.lora[KT_EXPERT_DOWN] = NULL;
    reformat(&p, &full, &half);
    ck_assert(!supports(_i, &p));
    reformat(&p, &full, &single);
    ck_assert(!supports(_i, &p));
    free_buffers();
}
END_TEST

/* -- nodes --------------------------------------------------------------------------------------
 */

static void (*real_forward)(const struct kt_amx_blocks *, const struct kt_amx_blocks *, int64_t,
                            const void *, int64_t, int64_t, float *, void *);

static void spied_forward(const struct kt_amx_blocks *w, const struct kt_amx_blocks *next,
                          int64_t depth, const void *columns, int64_t tiles, int64_t chunk,
                          float *products, void *stage)
{
    spy_note(0, w->first[0]);
    real_forward(w, next, depth, columns, tiles, chunk, products, stage);
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
    spy_on(ctx->pool);
    real_forward = ((struct kt_amx_experts *)experts)->kernels.forward;
    ((struct kt_amx_experts *)experts)->kernels.forward = spied_forward;
    float *y = guarded_random(4, (int64_t)s.tokens * s.hidden);
    struct kt_routing routing = route_problem(&p);
    test_forward(experts, call_of(&p, &routing, NULL), y);
    test_unroute(&routing);
    spy_check_homes(ctx->pool, 0, s.inter);
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
        ck_assert_str_eq(chosen->ops->name, "cpu");
    }
    kt_experts_close(experts);
    kt_experts_close(chosen);
    kt_context_free(ctx);
    ctx = test_context(1, KT_ISA_AVX512_BF16);
    ck_assert_int_eq(kt_experts_open(ctx, "amx", &experts), KT_ERROR_NOT_FOUND);
    kt_context_free(ctx);
}
END_TEST

/* A processor may have AMX that the compiler of this build does not know. */
START_TEST(auto_is_there_whatever_the_processor_has)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_experts *experts;
#if !defined(KT_HAVE_AMX)
    ctx->cpu.isa |= KT_ISA_AMX_BF16 | KT_ISA_AMX_INT8;
#endif
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &experts), KT_OK);
    kt_experts_close(experts);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("amx", .timeout = 120),
        LOOP(agrees_with_reference, SHAPES * BUILDS),
        LOOP(topk_gradients_are_those_of_float32, SHAPES * BUILDS),
        LOOP(bits_do_not_depend_on_threads_or_nodes, SHAPES * BUILDS),
        LOOP(bits_do_not_depend_on_shares, SHAPES * BUILDS),
        LOOP(supports_what_tiles_are_for, BUILDS),
        TEST(a_node_begins_with_the_rows_that_it_owns),
        LOOP(formats_agree_with_their_decoded_values, SHAPES * FORMATS * BUILDS),
        TEST(amx_is_absent_or_chosen),
        TEST(auto_is_there_whatever_the_processor_has),
    };
    return RUN_TESTS("amx", tests);
}
