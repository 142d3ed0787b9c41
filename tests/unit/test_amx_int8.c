/* SPDX-License-Identifier: Apache-2.0 */
/* The experts backend "amx-int8" against the same arithmetic in plain C, against "reference", and
 * against "amx" where it does not multiply in INT8: with emulated tiles anywhere, with real ones
 * where the processor has them. */
#include <float.h>

#include "config.h"
#include "expert_problem.h"
#include "main.h"

static const struct build {
    const char *name, *bf16; /* and the backend that it is but for INT8 */
    uint32_t isa_mask;
} builds[] = {
    {"amx-int8-emulated", "amx-emulated", KT_ISA_AVX512_BF16},
    {"amx-int8-emulated", "amx-emulated", 0},
    {"amx-int8", "amx", 0},
};

enum { BUILDS = sizeof builds / sizeof *builds };

static const struct shape shapes[] = {
    {4, 64, 64, 1, 2, SPREAD},
    {3, 128, 32, 15, 1, ALL_TO_ONE},
    {3, 64, 96, 16, 1, ALL_TO_ONE},
    {3, 192, 64, 17, 1, ALL_TO_ONE},
    {5, 64, 130, 31, 3, SPREAD},
    {5, 72, 64, 33, 3, TWICE_IN_A_ROW},
    {2, 131, 45, 300, 2, TWICE_IN_A_ROW},
    {20, 33, 17, 40, 4, SPREAD},
    {3, 160, 257, 290, 1, ALL_TO_ONE},
    {16, 192, 96, 60, 6, SPREAD},
    {1, 1, 1, 1, 1, SPREAD},
    {2, 1100, 600, 20, 2, SPREAD},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

static const struct format int8_format = {KT_DTYPE_I8, 1, 1 << 20};

static struct setting setting(const struct build *b, int small, int keeps)
{
    return (struct setting){b->name, b->isa_mask, 2, small, 1, keeps, WHOLE, 0};
}

static void make_int8_problem(struct problem *p, const struct shape *s)
{
    struct problem decoded;
    make_problem(p, s);
    reformat(p, &decoded, &int8_format);
}

/* -- the arithmetic in plain C ------------------------------------------------------------------
 */

struct quantised {
    int8_t *q;
    float scale;
};

static struct quantised quantise(int64_t n, const float *x)
{
    struct quantised t = {.q = calloc((size_t)n, 1)};
    float max = 0;
    for (int64_t i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    if (max < 127 * FLT_MIN)
        return t;
    for (int64_t i = 0; i < n; i++)
        t.q[i] = (int8_t)nearbyintf(x[i] * (127 / max));
    t.scale = max / 127;
    return t;
}

static void product(const struct kt_weight *w, const struct quantised *x, float *y)
{
    for (int64_t r = 0; r < w->rows; r++) {
        int32_t sum = 0;
        for (int64_t c = 0; c < w->cols; c++)
            sum += ((const int8_t *)w->data)[r * w->cols + c] * x->q[c];
        y[r] = (float)sum * x->scale * w->scale[w->first_row + r];
    }
}

/* y and kept products of one slot, from element-wise kernels of the instruction set: sixteen lanes
 * at a time, as the backend calls them. */
static void expert(const struct problem *p, const struct kt_row_kernels *rows, int32_t e,
                   const float *x, float *kept, float *y)
{
    int64_t hidden = p->layer.hidden_size, inter = p->layer.intermediate_size;
    int64_t lanes = (inter + 15) / 16 * 16;
    float *gate = calloc((size_t)lanes, sizeof *gate), *up = calloc((size_t)lanes, sizeof *up);
    struct quantised in = quantise(hidden, x);
    product(&p->weights[KT_EXPERT_GATE][e], &in, gate);
    product(&p->weights[KT_EXPERT_UP][e], &in, up);
    memcpy(kept, gate, (size_t)inter * sizeof *gate);
    memcpy(kept + inter, up, (size_t)inter * sizeof *up);
    rows->silu_mul(lanes, gate, up, gate);
    struct quantised h = quantise(inter, gate);
    product(&p->weights[KT_EXPERT_DOWN][e], &h, y);
    free(gate), free(up), free(in.q), free(h.q);
}

static struct outcome compute_plainly(const struct problem *p, uint32_t isa_mask)
{
    int64_t hidden = p->layer.hidden_size, inter = p->layer.intermediate_size;
    int64_t slots = p->tokens * p->topk;
    struct outcome o = {.y = guarded_random(4, p->tokens * hidden),
                        .kept = guarded((size_t)(slots * 2 * inter) * sizeof(float))};
    struct kt_kernels kernels;
    kt_context *ctx = test_context(1, isa_mask);
    kt_kernels_init(&kernels, ctx->cpu.isa);
    kt_context_free(ctx);
    float *out = malloc((size_t)hidden * sizeof *out);
    for (int64_t slot = 0; slot < slots; slot++) {
        int64_t token = slot / p->topk;
        expert(p, &kernels.row, p->ids[slot], p->x + token * hidden, o.kept + slot * 2 * inter,
               out);
        for (int64_t i = 0; i < hidden; i++)
            o.y[token * hidden + i] += p->topk_weights[slot] * out[i];
    }
    free(out);
    return o;
}

/* Cut as a weight is from one that is split by rows: scales of rows before it come first. */
static void cut_rows(struct problem *p)
{
    enum { BEFORE = 3 };
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        for (int32_t e = 0; e < p->layer.num_experts; e++) {
            struct kt_weight *w = &p->weights[which][e];
            float *scale = guarded((size_t)(w->rows + BEFORE) * sizeof *scale);
            memset(scale, 0xff, BEFORE * sizeof *scale);
            memcpy(scale + BEFORE, w->scale, (size_t)w->rows * sizeof *scale);
            w->scale = scale;
            w->first_row = BEFORE;
        }
}

START_TEST(is_the_arithmetic_in_plain_c)
{
    const struct shape *s = &shapes[_i / BUILDS];
    const struct build *b = &builds[_i % BUILDS];
    struct problem p;
    if (!emulation_has_turn(_i % BUILDS, _i / BUILDS) || !experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, s);
    cut_rows(&p);
    struct outcome want = compute_plainly(&p, b->isa_mask);
    size_t kept = (size_t)s->tokens * (size_t)s->topk * 2 * (size_t)s->inter * sizeof(float);
    for (int small = 0; small < 2; small++) {
        struct setting with = setting(b, small, 1);
        struct outcome got = run(&p, &with);
        ck_assert(memcmp(got.kept, want.kept, kept) == 0);
        check_close((int64_t)s->tokens * s->hidden, got.y, want.y, 1e-6);
    }
    free_buffers();
}
END_TEST

/* -- quantising ---------------------------------------------------------------------------------
 */

static const struct {
    void (*init)(struct kt_amx_int8_kernels *kernels);
    uint32_t isa;
} packers[] = {
    {kt_amx_int8_kernels_init_c, 0},
#if defined(KT_HAVE_AMX)
    {kt_amx_int8_kernels_init_avx512bf16, KT_ISA_AVX512_BF16},
    {kt_amx_int8_kernels_init_amx, KT_ISA_AMX_INT8},
#endif
};

enum { PACKERS = sizeof packers / sizeof *packers };

/* Numbers halfway between two integers, below a largest of 127; random ones, some of them tokens
 * that are too small to be scaled, or nearly. */
static float *numbers(int64_t n, int64_t token)
{
    static const float sizes[] = {1, 1e-36f, 2e-36f, 3e38f};
    float *x = guarded_random((uint64_t)(10 + token), n);
    for (int64_t i = 0; i < n; i++)
        x[i] = token % 2 ? x[i] * sizes[token / 2 % 4] : (float)(i * 7 % 253 - 126) + 0.5f;
    if (token % 2)
        return x;
    x[n / 2] = token % 4 ? 127 : -127;
    return x;
}

static void check_columns(int64_t n, const float *const tokens[KT_AMX_TOKENS],
                          const int8_t *columns, const float *scales)
{
    for (int64_t t = 0; t < KT_AMX_TOKENS; t++) {
        struct quantised want = {0};
        if (tokens[t])
            want = quantise(n, tokens[t]);
        ck_assert(memcmp(&scales[t], &want.scale, sizeof(float)) == 0);
        for (int64_t i = 0; i < (n + 63) / 64 * 64; i++)
            ck_assert_int_eq(columns[i / 4 * 64 + t * 4 + i % 4],
                             i < n && tokens[t] ? want.q[i] : 0);
        free(want.q);
    }
}

static const int64_t lengths[] = {1, 3, 4, 15, 16, 17, 63, 64, 65, 127, 200, 333};

enum { LENGTHS = sizeof lengths / sizeof *lengths };

START_TEST(columns_are_quantised_numbers)
{
    int64_t n = lengths[_i / PACKERS], steps = (n + 63) / 64;
    struct kt_amx_int8_kernels k;
    kt_context *ctx = test_context(1, 0);
    uint32_t isa = ctx->cpu.isa;
    kt_context_free(ctx);
    if (packers[_i % PACKERS].isa & ~isa)
        return;
    packers[_i % PACKERS].init(&k);
    const float *tokens[KT_AMX_TOKENS];
    float *features = guarded((size_t)n * 16 * sizeof *features), *scales = guarded(64);
    int8_t *columns = guarded((size_t)steps * 1024);
    for (int64_t t = 0; t < KT_AMX_TOKENS; t++) {
        tokens[t] = t % 5 == 4 ? NULL : numbers(n, t);
        for (int64_t i = 0; i < n; i++)
            features[i * 16 + t] = tokens[t] ? tokens[t][i] : 0;
    }
    k.pack_columns(tokens, n, columns, scales);
    check_columns(n, tokens, columns, scales);
    memset(columns, 0xff, (size_t)steps * 1024);
    memset(scales, 0xff, 64);
    k.repack_columns(features, n, columns, scales);
    check_columns(n, tokens, columns, scales);
    free_buffers();
}
END_TEST

/* Tokens of zeros and of numbers too small to be scaled add nothing; a NaN or an infinity makes NaN
 * of its own token alone. */
START_TEST(unusual_tokens_stay_apart)
{
    static const struct shape s = {3, 72, 40, 20, 2, SPREAD};
    static const float unusual[] = {0, 1e-40f, NAN, INFINITY, -INFINITY};
    const struct build *b = &builds[_i];
    struct problem p;
    if (!experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, &s);
    struct setting with = setting(b, 0, 0);
    struct outcome usual = run(&p, &with);
    for (int64_t t = 0; t < 5; t++)
        for (int64_t i = 0; i < s.hidden; i++)
            if (t < 2 || i == 7 * t)
                p.x[t * s.hidden + i] = unusual[t];
    struct outcome got = run(&p, &with);
    float *begin = guarded_random(4, (int64_t)s.tokens * s.hidden);
    ck_assert(memcmp(got.y, begin, 2 * s.hidden * sizeof(float)) == 0);
    for (int64_t i = 2 * s.hidden; i < 5 * s.hidden; i++)
        ck_assert(isnan(got.y[i]));
    ck_assert(memcmp(got.y + 5 * s.hidden, usual.y + 5 * s.hidden,
                     (size_t)(s.tokens - 5) * s.hidden * sizeof(float)) == 0);
    free_buffers();
}
END_TEST

/* -- the backend --------------------------------------------------------------------------------
 */

/* Rounding to steps of max / 127 errs by 1 / sqrt(12) of a step (root mean square): relative to a
 * token's root mean square, of which max is c times as large, by c / 440. Uniform x has c = 1.7 and
 * errs by 0.4 %, which both gate and up pass on: 0.6 %. A product of two about normal numbers has c
 * up to 8 among 600, so h errs by up to 1.8 %. Together 1.9 %. */
START_TEST(agrees_with_reference)
{
    const struct shape *s = &shapes[_i / BUILDS];
    const struct build *b = &builds[_i % BUILDS];
    struct problem p;
    if (!emulation_has_turn(_i % BUILDS, _i / BUILDS) || !experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, s);
    struct outcome want = run_reference(&p);
    int64_t n = (int64_t)s->tokens * s->hidden, slots = (int64_t)s->tokens * s->topk;
    for (int small = 0; small < 2; small++) {
        struct setting with = setting(b, small, 0);
        struct outcome again = run(&p, &with);
        with.keeps = 1;
        struct outcome kept = run(&p, &with);
        check_same(&p, &again, &kept);
        check_close(n, kept.y, want.y, 2e-2);
        check_close(n, kept.dx, want.dx, 2e-2);
        check_close(slots, kept.dtw, want.dtw, 2e-2);
    }
    free_buffers();
}
END_TEST

/* Backward is that of "amx" at the products that forward kept. */
START_TEST(backward_begins_from_what_forward_kept)
{
    const struct shape *s = &shapes[_i / BUILDS];
    const struct build *b = &builds[_i % BUILDS];
    struct problem p;
    struct kt_experts *amx;
    if (!emulation_has_turn(_i % BUILDS, _i / BUILDS) || !experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, s);
    struct setting with = setting(b, 0, 1);
    struct outcome got = run(&p, &with);
    int64_t n = (int64_t)s->tokens * s->hidden, slots = (int64_t)s->tokens * s->topk;
    float *dx = guarded_random(5, n), *dtw = guarded_random(6, slots);
    kt_context *ctx = test_context(2, b->isa_mask);
    ck_assert_int_eq(kt_experts_open(ctx, b->bf16, &amx), KT_OK);
    struct kt_routing routing = route_problem(&p);
    test_backward(amx, call_of(&p, &routing, got.kept), p.dy, dx, dtw);
    test_unroute(&routing);
    ck_assert(memcmp(got.dx, dx, (size_t)n * sizeof(float)) == 0);
    ck_assert(memcmp(got.dtw, dtw, (size_t)slots * sizeof(float)) == 0);
    kt_experts_close(amx);
    kt_context_free(ctx);
    free_buffers();
}
END_TEST

START_TEST(bits_do_not_depend_on_threads_or_nodes)
{
    const struct shape *s = &shapes[_i / BUILDS];
    const struct build *b = &builds[_i % BUILDS];
    struct problem p;
    if (!emulation_has_turn(_i % BUILDS, _i / BUILDS) || !experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, s);
    check_same_in_all_pools(&p, setting(b, 0, 0));
    free_buffers();
}
END_TEST

START_TEST(bits_do_not_depend_on_shares)
{
    const struct shape *s = &shapes[_i / BUILDS];
    const struct build *b = &builds[_i % BUILDS];
    struct problem p;
    if (!emulation_has_turn(_i % BUILDS, _i / BUILDS) || !experts_exist(b->name, b->isa_mask))
        return;
    make_int8_problem(&p, s);
    check_same_in_all_cuts(&p, setting(b, 0, _i % 2));
    free_buffers();
}
END_TEST

/* In INT8 a token of a conversation is multiplied as those of a training step are. */
START_TEST(supports_a_token_in_int8)
{
    static const struct shape s = {4, 64, 64, 1, 2, SPREAD};
    const struct build *b = &builds[_i];
    struct problem p;
    struct kt_experts *e;
    if (!experts_exist(b->name, b->isa_mask))
        return;
    kt_context *ctx = test_context(1, b->isa_mask);
    ck_assert_int_eq(kt_experts_open(ctx, b->name, &e), KT_OK);
    make_problem(&p, &s);
    ck_assert(!e->ops->supports(e, &p.layer, KT_COMPUTE_BF16, 1, false));
    free_buffers();
    make_int8_problem(&p, &s);
    ck_assert(e->ops->supports(e, &p.layer, KT_COMPUTE_BF16, 1, false));
    ck_assert(!e->ops->supports(e, &p.layer, KT_COMPUTE_F32, 1, false));
    free_buffers();
    kt_experts_close(e);
    kt_context_free(ctx);
}
END_TEST

/* Formats that are not INT8 with a scale for each row; the last one is, but not in all matrices. */
static const struct format other_formats[] = {
    {KT_DTYPE_F8_E4M3, 128, 128}, {KT_DTYPE_I4, 1, 128},     {KT_DTYPE_F16, 0, 0},
    {KT_DTYPE_I8, 1, 64},         {KT_DTYPE_I8, 2, 1 << 20}, {KT_DTYPE_I8, 0, 0},
    {KT_DTYPE_I8, 1, 1 << 20},
};

enum { OTHER_FORMATS = sizeof other_formats / sizeof *other_formats };

START_TEST(other_weights_are_those_of_amx)
{
    static const struct shape s = {5, 72, 130, 33, 3, SPREAD};
    const struct build *b = &builds[_i / OTHER_FORMATS];
    int format = _i % OTHER_FORMATS;
    struct problem p, decoded;
    if (!experts_exist(b->name, b->isa_mask))
        return;
    make_problem(&p, &s);
    struct kt_weight plain = p.weights[KT_EXPERT_DOWN][s.experts - 1];
    struct setting with = setting(b, 0, 0);
    reformat(&p, &decoded, &other_formats[format]);
    if (format == OTHER_FORMATS - 1)
        p.weights[KT_EXPERT_DOWN][s.experts - 1] = plain;
    struct outcome got = run(&p, &with);
    with.name = b->bf16;
    struct outcome want = run(&p, &with);
    check_same(&p, &want, &got);
    free_buffers();
}
END_TEST

START_TEST(sums_that_may_not_fit_are_not_made)
{
    static const float scale;
    struct kt_weight w = {.dtype = KT_DTYPE_I8,
                          .cols = 1 << 17,
                          .scale = &scale,
                          .scale_rows = 1,
                          .scale_cols = 1 << 18};
    ck_assert_int_le((int64_t)127 * 128 * w.cols, INT32_MAX);
    ck_assert(kt_amx_is_int8(&w));
    w.cols++;
    ck_assert(!kt_amx_is_int8(&w));
}
END_TEST

START_TEST(it_is_absent_or_asked_for)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_experts *experts;
    kt_status status = kt_experts_open(ctx, "amx-int8", &experts);
    if (ctx->cpu.isa & KT_ISA_AMX_BF16 && ctx->cpu.isa & KT_ISA_AMX_INT8) {
        ck_assert_int_eq(status, KT_OK);
        ck_assert_str_eq(experts->ops->name, "amx-int8");
    } else {
        ck_assert_int_eq(status, KT_ERROR_NOT_FOUND);
        ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "AMX-INT8"));
    }
    kt_experts_close(experts);
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &experts), KT_OK);
    ck_assert_ptr_null(strstr(experts->ops->name, "int8"));
    kt_experts_close(experts);
    kt_context_free(ctx);
    ctx = test_context(1, KT_ISA_AMX_INT8);
    ck_assert_int_eq(kt_experts_open(ctx, "amx-int8", &experts), KT_ERROR_NOT_FOUND);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("amx_int8", .timeout = 120),
        LOOP(is_the_arithmetic_in_plain_c, SHAPES * BUILDS),
        LOOP(columns_are_quantised_numbers, LENGTHS * PACKERS),
        LOOP(unusual_tokens_stay_apart, BUILDS),
        LOOP(agrees_with_reference, SHAPES * BUILDS),
        LOOP(backward_begins_from_what_forward_kept, SHAPES * BUILDS),
        LOOP(bits_do_not_depend_on_threads_or_nodes, SHAPES * BUILDS),
        LOOP(bits_do_not_depend_on_shares, SHAPES * BUILDS),
        LOOP(supports_a_token_in_int8, BUILDS),
        LOOP(other_weights_are_those_of_amx, OTHER_FORMATS * BUILDS),
        TEST(sums_that_may_not_fit_are_not_made),
        TEST(it_is_absent_or_asked_for),
    };
    return RUN_TESTS("amx_int8", tests);
}
