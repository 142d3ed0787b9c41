/* SPDX-License-Identifier: Apache-2.0 */
/* Operations of rows on every device against the CPU, in the sizes of models: rows that are aligned
 * and that are not, wide ones, and views of BF16 where a device takes them, whose numbers the CPU
 * has in float32. */
#include "device_fixture.h"
#include "main.h"

enum { TWINS = 2 };

/* The CPU, and the device that is tested. */
struct twins {
    struct device_test on[TWINS];
};

/* The same [rows, ld] on both. */
struct operand {
    int64_t rows, ld;
    struct kt_view on[TWINS];
};

static struct twins open_twins(int i)
{
    return (struct twins){{device_open("cpu", 2, 0), device_open(device_name(i), 2, 0)}};
}

static void free_operands(struct twins *t)
{
    for (int i = 0; i < TWINS; i++)
        device_free_blocks(&t->on[i]);
}

static void close_twins(struct twins *t)
{
    for (int i = 0; i < TWINS; i++)
        device_close(&t->on[i]);
}

/* Uniform in [-size, size), rounded to what `dtype` holds; BF16 on the second alone. */
static struct operand put(struct twins *t, uint64_t seed, int64_t rows, int64_t ld, float size,
                          kt_dtype dtype)
{
    int64_t n = rows * ld;
    struct operand o = {.rows = rows, .ld = ld};
    float *x = test_random(seed, n);
    uint16_t *half = malloc((size_t)n * sizeof *half);
    for (int64_t i = 0; i < n; i++) {
        x[i] *= size;
        half[i] = kt_f32_to_bf16(x[i]);
        if (dtype == KT_DTYPE_BF16)
            x[i] = kt_bf16_to_f32(half[i]);
    }
    o.on[0] = kt_view_f32(device_floats(&t->on[0], n, x), ld);
    o.on[1] = kt_view_f32(NULL, ld);
    o.on[1].dtype = dtype;
    o.on[1].data = device_put(&t->on[1], KT_MEMORY_DEVICE, (uint64_t)(n * kt_view_element(dtype)),
                              dtype == KT_DTYPE_BF16 ? (const void *)half : x);
    free(x), free(half);
    return o;
}

static struct operand put_f32(struct twins *t, uint64_t seed, int64_t rows, int64_t ld, float size)
{
    return put(t, seed, rows, ld, size, KT_DTYPE_F32);
}

static float *get(struct twins *t, const struct operand *o, int which)
{
    int64_t n = o->rows * o->ld;
    float *x = malloc((size_t)n * sizeof *x);
    const struct kt_view *view = &o->on[which];
    if (view->dtype == KT_DTYPE_F32)
        return device_get(&t->on[which], n, view->data, x);
    uint16_t *half = malloc((size_t)n * sizeof *half);
    device_get_bytes(&t->on[which], (uint64_t)n * sizeof *half, view->data, half);
    for (int64_t i = 0; i < n; i++)
        x[i] = kt_bf16_to_f32(half[i]);
    free(half);
    return x;
}

/* They hold the same to rounding, and the same exactly behind the first `dim` of each row. */
static void check_same(struct twins *t, const struct operand *o, int64_t dim)
{
    int64_t n = o->rows * o->ld;
    float *want = get(t, o, 0), *got = get(t, o, 1);
    double *wide = test_widen(n, want);
    ck_assert_double_lt(test_error(n, got, wide), o->on[1].dtype == KT_DTYPE_BF16 ? 2.5e-3 : 1e-6);
    for (int64_t i = 0; i < n; i++)
        ck_assert(i % o->ld < dim || got[i] == want[i]);
    free(want), free(got), free(wide);
}

static bool takes_bf16(const struct twins *t)
{
    const struct kt_device *dev = t->on[1].dev;
    struct kt_rows_args a = {.x = {.dtype = KT_DTYPE_BF16}, .y = {.dtype = KT_DTYPE_BF16}};
    return dev->ops->supports(dev, KT_OP_ADD, &a);
}

/* F32, then BF16 in all views, then BF16 in what is read, or written, alone. */
enum { MIXES = 4 };

static kt_dtype read_as(int mix)
{
    return mix == 1 || mix == 2 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

static kt_dtype written_as(int mix)
{
    return mix == 1 || mix == 3 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

static int num_mixes(const struct twins *t)
{
    return takes_bf16(t) ? MIXES : 1;
}

/* tokens, dim, ld */
static const int64_t shapes[][3] = {
    {3, 64, 64}, {5, 4100, 4104}, {2, 7168, 7168}, {300, 12, 16}, {7, 333, 333}, {9, 60, 61},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

START_TEST(sums_and_zeros)
{
    struct twins t = open_twins(_i);
    for (int i = 0; i < SHAPES * num_mixes(&t); i++) {
        const int64_t *s = shapes[i % SHAPES], mix = i / SHAPES;
        struct operand x = put(&t, 1, s[0], s[2], 1, read_as((int)mix));
        struct operand y = put(&t, 2, s[0], s[2], 1, written_as((int)mix));
        for (int accumulate = 1; accumulate >= 0; accumulate--) {
            for (int k = 0; k < TWINS; k++) {
                struct kt_rows_args a = {s[0], s[1], 0.3f, x.on[k], y.on[k], accumulate};
                device_run(&t.on[k], KT_OP_ADD, &a);
            }
            check_same(&t, &y, s[1]);
        }
        for (int k = 0; k < TWINS; k++) {
            struct kt_rows_args a = {.tokens = s[0], .dim = s[1], .y = y.on[k]};
            device_run(&t.on[k], KT_OP_ZERO, &a);
        }
        check_same(&t, &y, s[1]);
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

/* The mask is the CPU's, bit by bit. */
START_TEST(dropout_drops_the_same)
{
    struct twins t = open_twins(_i);
    for (int i = 0; i < SHAPES * num_mixes(&t); i++) {
        const int64_t *s = shapes[i % SHAPES], mix = i / SHAPES, n = s[0] * s[2];
        struct operand x = put(&t, 1, s[0], s[2], 1, read_as((int)mix));
        struct operand y = put(&t, 2, s[0], s[2], 1, written_as((int)mix));
        for (int accumulate = 1; accumulate >= 0; accumulate--) {
            for (int k = 0; k < TWINS; k++) {
                struct kt_dropout_args a = {s[0], s[1],    0.3f,    1ull << 40 | 7,
                                            NULL, x.on[k], y.on[k], accumulate};
                device_run(&t.on[k], KT_OP_DROPOUT, &a);
            }
            check_same(&t, &y, s[1]);
        }
        float *want = get(&t, &y, 0), *got = get(&t, &y, 1);
        for (int64_t k = 0; k < n; k++)
            ck_assert((want[k] == 0) == (got[k] == 0) && (mix || want[k] == got[k]));
        free(want), free(got);
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

START_TEST(norms)
{
    static const int64_t dims[][2] = {{128, 128},   {1024, 1024}, {1028, 1032}, {7168, 7168},
                                      {8996, 8996}, {1030, 1031}, {2500, 2501}};
    enum { TOKENS = 11, DIMS = sizeof dims / sizeof *dims };
    struct twins t = open_twins(_i);
    for (int i = 0; i < DIMS * num_mixes(&t); i++) {
        int64_t dim = dims[i % DIMS][0], ld = dims[i % DIMS][1];
        int mix = i / DIMS;
        struct operand x = put(&t, 1, TOKENS, ld, 1, read_as(mix));
        struct operand dy = put(&t, 2, TOKENS, ld, 1, read_as(mix));
        struct operand weight = put_f32(&t, 4, 1, dim, 1);
        for (int run = 0; run < 3; run++) {
            struct operand y = put(&t, 3, TOKENS, ld, 1, written_as(mix));
            for (int k = 0; k < TWINS; k++) {
                struct kt_norm_args a = {.tokens = TOKENS,
                                         .dim = dim,
                                         .eps = 1e-6f,
                                         .weight = weight.on[k].data,
                                         .x = x.on[k],
                                         .dy = dy.on[k],
                                         .y = y.on[k],
                                         .accumulate = run == 1};
                device_run(&t.on[k], run ? KT_OP_NORM_BACKWARD : KT_OP_NORM_FORWARD, &a);
            }
            check_same(&t, &y, dim);
        }
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

START_TEST(gated_units)
{
    struct twins t = open_twins(_i);
    for (int i = 0; i < SHAPES * num_mixes(&t); i++) {
        const int64_t *s = shapes[i % SHAPES], mix = i / SHAPES;
        struct operand gate = put(&t, 1, s[0], s[1], 9, written_as((int)mix));
        struct operand up = put(&t, 2, s[0], s[1], 1, written_as((int)mix));
        struct operand h = put(&t, 3, s[0], s[1], 1, read_as((int)mix));
        struct operand dh = put(&t, 4, s[0], s[1], 1, read_as((int)mix));
        struct kt_glu_args a = {.activation = KT_ACTIVATION_SILU, .tokens = s[0], .dim = s[1]};
        for (int backward = 0; backward < 2; backward++) {
            for (int k = 0; k < TWINS; k++) {
                a.gate = a.dgate = gate.on[k];
                a.up = a.dup = up.on[k];
                a.h = h.on[k], a.dh = dh.on[k];
                device_run(&t.on[k], backward ? KT_OP_GLU_BACKWARD : KT_OP_GLU_FORWARD, &a);
            }
            if (backward)
                check_same(&t, &gate, s[1]), check_same(&t, &up, s[1]);
            else
                check_same(&t, &h, s[1]);
        }
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

START_TEST(rotations)
{
    static const int32_t kinds[][4] = {/* rope_dim, head_stride, heads, interleaved */
                                       {64, 192, 5, 1},
                                       {64, 64, 1, 1},
                                       {128, 128, 3, 0},
                                       {6, 10, 2, 1},
                                       {6, 11, 70, 0}};
    enum { TOKENS = 300, PLACES = 50, KINDS = sizeof kinds / sizeof *kinds };
    struct twins t = open_twins(_i);
    int32_t rows[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        rows[i] = i * 7 % PLACES;
    for (int i = 0; i < KINDS * num_mixes(&t); i++) {
        const int32_t *kind = kinds[i % KINDS], half = kind[0] / 2;
        int64_t ld = kind[1] * kind[2] + 4;
        struct operand cosine = put_f32(&t, 2, PLACES, half, 1);
        struct operand sine = put_f32(&t, 3, PLACES, half, 1);
        for (int inverse = 0; inverse < 2; inverse++) {
            struct operand x = put(&t, 1, TOKENS, ld, 1, written_as(i / KINDS));
            for (int k = 0; k < TWINS; k++) {
                struct kt_rope_args a = {.tokens = TOKENS,
                                         .x = x.on[k],
                                         .head_stride = kind[1],
                                         .num_heads = kind[2],
                                         .rope_dim = kind[0],
                                         .interleaved = kind[3],
                                         .inverse = inverse,
                                         .cos = cosine.on[k].data,
                                         .sin = sine.on[k].data,
                                         .rows = device_ints(&t.on[k], TOKENS, rows)};
                device_run(&t.on[k], KT_OP_ROPE, &a);
            }
            check_same(&t, &x, ld - 4);
        }
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

START_TEST(losses)
{
    static const int64_t vocabs[] = {40, 5000, 9999};
    enum { TOKENS = 6, VOCABS = sizeof vocabs / sizeof *vocabs };
    struct twins t = open_twins(_i);
    int32_t targets[TOKENS] = {0, -100, 39, 3, 17, -1};
    for (int i = 0; i < VOCABS * (takes_bf16(&t) ? 2 : 1); i++) {
        int64_t vocab = vocabs[i % VOCABS];
        kt_dtype dtype = i / VOCABS ? KT_DTYPE_BF16 : KT_DTYPE_F32;
        struct operand logits = put(&t, 1, TOKENS, vocab, 12, dtype);
        struct operand gradient = put_f32(&t, 2, 1, TOKENS, 1);
        struct operand logprobs = put_f32(&t, 3, 1, TOKENS, 1);
        for (int backward = 0; backward < 2; backward++) {
            for (int k = 0; k < TWINS; k++) {
                struct kt_cross_entropy_args a = {TOKENS,
                                                  vocab,
                                                  logits.on[k],
                                                  device_ints(&t.on[k], TOKENS, targets),
                                                  backward ? (const float *)gradient.on[k].data
                                                           : NULL,
                                                  logprobs.on[k].data};
                device_run(&t.on[k], KT_OP_CROSS_ENTROPY, &a);
            }
            check_same(&t, &logprobs, TOKENS);
        }
        check_same(&t, &logits, vocab);
        free_operands(&t);
    }
    close_twins(&t);
}
END_TEST

/* Logits on a coarse grid, so that many are equal: the choice among equals is the same. */
static void put_logits(struct twins *t, int64_t n, const float *at[TWINS])
{
    float *x = test_random(1, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * 12) / 4;
    for (int k = 0; k < TWINS; k++)
        at[k] = device_floats(&t->on[k], n, x);
    free(x);
}

START_TEST(routes)
{
    static const struct kt_router routers[] = {
        {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 256, 8, 8, 4, 1, 2.5f, NULL},
        {KT_SCORING_SOFTMAX, KT_GROUP_MAX, 160, 6, 8, 3, 0, 16.0f, NULL},
        {KT_SCORING_SOFTMAX, KT_GROUP_NONE, 128, 8, 1, 1, 1, 1.0f, NULL},
        {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 5, 3, 5, 2, 1, 1.0f, NULL},
    };
    enum { TOKENS = 101 };
    struct kt_router r = routers[_i % 4];
    struct twins t = open_twins(_i / 4);
    int64_t n = (int64_t)TOKENS * r.num_experts, chosen = (int64_t)TOKENS * r.topk;
    int32_t *ids[TWINS];
    const float *logits[TWINS];
    struct operand weights = put_f32(&t, 2, TOKENS, r.topk, 1);
    struct operand dweights = put_f32(&t, 3, TOKENS, r.topk, 1);
    struct operand dlogits = put_f32(&t, 4, TOKENS, r.num_experts, 1);
    struct operand bias = put_f32(&t, 5, 1, r.num_experts, 0.2f);
    put_logits(&t, n, logits);
    for (int k = 0; k < TWINS; k++) {
        if (r.scoring == KT_SCORING_SIGMOID && r.num_experts > 5)
            r.correction_bias = bias.on[k].data;
        struct kt_router_args a = {.router = r,
                                   .tokens = TOKENS,
                                   .logits = logits[k],
                                   .ids = device_ints(&t.on[k], chosen, NULL),
                                   .weights = weights.on[k].data,
                                   .dweights = dweights.on[k].data,
                                   .dlogits = dlogits.on[k].data};
        device_run(&t.on[k], KT_OP_ROUTER_FORWARD, &a);
        device_run(&t.on[k], KT_OP_ROUTER_BACKWARD, &a);
        ids[k] = malloc((size_t)chosen * sizeof *ids[k]);
        device_get_bytes(&t.on[k], (uint64_t)chosen * sizeof *ids[k], a.ids, ids[k]);
    }
    ck_assert(memcmp(ids[0], ids[1], (size_t)chosen * sizeof *ids[0]) == 0);
    check_same(&t, &weights, r.topk);
    check_same(&t, &dlogits, r.num_experts);
    free(ids[0]), free(ids[1]);
    close_twins(&t);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_twins", .timeout = 120),
        LOOP(sums_and_zeros, num_devices()),
        LOOP(dropout_drops_the_same, num_devices()),
        LOOP(norms, num_devices()),
        LOOP(gated_units, num_devices()),
        LOOP(rotations, num_devices()),
        LOOP(losses, num_devices()),
        LOOP(routes, 4 * num_devices()),
    };
    return RUN_TESTS("device_twins", tests);
}
