/* SPDX-License-Identifier: Apache-2.0 */
/* Every operation of the CPU device against its formula in double precision, every backward against
 * central differences of that formula, and one thread against several. */
#include "backend/device.h"
#include "compare.h"
#include "weights/dtype.h"
#include "main.h"

static const struct settings {
    int32_t threads;
    uint32_t isa_mask;
} settings[] = {
    {1, 0}, {2, 0}, {5, 0}, {2, KT_ISA_AVX512_BF16}, {2, KT_ISA_AVX512}, {2, KT_ISA_AVX2},
};

enum { SETTINGS = sizeof settings / sizeof *settings };

struct setup {
    kt_context *ctx;
    struct kt_device *dev;
};

static struct setup open_setting(int i)
{
    struct setup s = {.ctx = test_context(settings[i].threads, settings[i].isa_mask)};
    ck_assert_int_eq(kt_device_open(s.ctx, "cpu", &s.dev), KT_OK);
    return s;
}

static struct setup open_device(int32_t threads)
{
    struct setup s = {.ctx = test_context(threads, 0)};
    ck_assert_int_eq(kt_device_open(s.ctx, "cpu", &s.dev), KT_OK);
    return s;
}

static void close_device(struct setup *s)
{
    kt_device_close(s->dev);
    ck_assert_uint_eq(kt_context_memory_used(s->ctx), 0);
    kt_context_free(s->ctx);
}

/* The bytes of a weight matrix in `dtype`, and its exact values in `values`. */
static void *make_weight(kt_dtype dtype, uint64_t seed, int64_t n, double *values)
{
    uint16_t *half = malloc((size_t)n * 4);
    float *full = (float *)(void *)half;
    float *x = test_random(seed, n);
    for (int64_t i = 0; i < n; i++) {
        if (dtype == KT_DTYPE_F32) {
            full[i] = x[i];
            values[i] = x[i];
        } else if (dtype == KT_DTYPE_BF16) {
            half[i] = kt_f32_to_bf16(x[i]);
            values[i] = kt_bf16_to_f32(half[i]);
        } else { /* any finite half-precision number of moderate size */
            half[i] = (uint16_t)(((uint32_t)i * 40503u & 0x83ffu) | (10u + (uint32_t)i % 6) << 10);
            values[i] = kt_f16_to_f32(half[i]);
        }
    }
    free(x);
    return half;
}

static double round_if(kt_compute compute, double x)
{
    return compute == KT_COMPUTE_BF16 ? kt_bf16_to_f32(kt_f32_to_bf16((float)x)) : x;
}

static void check_linear(struct setup *s, kt_dtype dtype, kt_compute compute, int64_t t, int64_t n,
                         int64_t k)
{
    double *wv = malloc((size_t)(n * k) * sizeof *wv), *want = malloc((size_t)(t * n) * 8);
    double *want_dx = calloc((size_t)(t * k), sizeof *want_dx);
    struct kt_weight w = {
        .data = make_weight(dtype, 1, n * k, wv), .dtype = dtype, .rows = n, .cols = k};
    int64_t ldx = k + 3, ldy = n + 5;
    float *x = test_random(2, t * ldx), *y = test_random(3, t * ldy), *dy = test_random(4, t * ldy);
    float *dx = test_random(5, t * ldx), *got = malloc((size_t)(t * n) * 4);
    float *got_dx = malloc((size_t)(t * k) * 4);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        for (int64_t i = 0; i < t; i++) {
            for (int64_t j = 0; j < n; j++) {
                double sum = accumulate ? y[i * ldy + j] : 0;
                for (int64_t q = 0; q < k; q++)
                    sum += round_if(compute, x[i * ldx + q]) * round_if(compute, wv[j * k + q]);
                want[i * n + j] = sum;
            }
            for (int64_t q = 0; q < k; q++) {
                double sum = accumulate ? dx[i * ldx + q] : 0;
                for (int64_t j = 0; j < n; j++)
                    sum += round_if(compute, dy[i * ldy + j]) * round_if(compute, wv[j * k + q]);
                want_dx[i * k + q] = sum;
            }
        }
        float beyond_y = y[n], beyond_dx = dx[k];
        ck_assert_int_eq(
            s->dev->ops->linear_forward(s->dev, &w, compute, t, x, ldx, accumulate, y, ldy), KT_OK);
        ck_assert_int_eq(
            s->dev->ops->linear_backward(s->dev, &w, compute, t, dy, ldy, accumulate, dx, ldx),
            KT_OK);
        ck_assert(y[n] == beyond_y && dx[k] == beyond_dx);
        for (int64_t i = 0; i < t; i++) {
            memcpy(got + i * n, y + i * ldy, (size_t)n * 4);
            memcpy(got_dx + i * k, dx + i * ldx, (size_t)k * 4);
        }
        ck_assert_double_lt(test_error(t * n, got, want), 1e-6);
        ck_assert_double_lt(test_error(t * k, got_dx, want_dx), 1e-6);
    }
    free((void *)w.data);
    free(wv), free(want), free(want_dx), free(x), free(y), free(dy), free(dx), free(got);
    free(got_dx);
}

START_TEST(linears_of_every_dtype)
{
    static const int64_t shapes[][3] = {{1, 5, 7},     {3, 64, 33},   {17, 31, 129}, {40, 200, 9},
                                        {300, 65, 70}, {2, 130, 700}, {12, 33, 555}};
    struct setup s = open_setting(_i);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++)
            for (int compute = 0; compute < 2; compute++)
                check_linear(&s, (kt_dtype)dtype, (kt_compute)compute, shapes[i][0], shapes[i][1],
                             shapes[i][2]);
    close_device(&s);
}
END_TEST

START_TEST(gemm_in_every_transposition)
{
    static const int64_t shapes[][3] = {{5, 7, 9}, {64, 8, 300}, {8, 130, 513}, {257, 4, 1},
                                        {1, 1, 1}, {3, 5, 0},    {70, 140, 65}};
    struct setup s = open_setting(_i);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * 8; i++) {
        int64_t m = shapes[i / 8][0], n = shapes[i / 8][1], k = shapes[i / 8][2];
        int trans_a = i & 1, trans_b = i >> 1 & 1, accumulate = i >> 2 & 1;
        int64_t lda = (trans_a ? m : k) + 1, ldb = (trans_b ? k : n) + 2;
        float *a = test_random(1, (trans_a ? k : m) * lda);
        float *b = test_random(2, (trans_b ? n : k) * ldb), *c = test_random(3, m * n);
        double *want = test_widen(m * n, c);
        for (int64_t r = 0; r < m; r++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t q = 0; q < k; q++)
                    sum += (double)a[trans_a ? q * lda + r : r * lda + q] *
                           b[trans_b ? j * ldb + q : q * ldb + j];
                want[r * n + j] = (accumulate ? want[r * n + j] : 0) + 0.75 * sum;
            }
        struct kt_gemm g = {trans_a, trans_b, m, n, k, 0.75f, a, lda, b, ldb, accumulate, c, n};
        ck_assert_int_eq(s.dev->ops->gemm(s.dev, &g), KT_OK);
        ck_assert_double_lt(test_error(m * n, c, want), 1e-6);
        free(a), free(b), free(c), free(want);
    }
    close_device(&s);
}
END_TEST

/* -- row operations ---------------------------------------------------------------------------- */

struct rows_case {
    int64_t tokens, dim;
    double *x, *up, *weight, *dy; /* the loss is <dy, y> */
    const struct kt_router *router;
    const int32_t *ids;
};

static double rmsnorm_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *x = c->x + t * c->dim;
        double squares = 0;
        for (int64_t i = 0; i < c->dim; i++)
            squares += x[i] * x[i];
        for (int64_t i = 0; i < c->dim; i++)
            loss +=
                c->dy[t * c->dim + i] * x[i] / sqrt(squares / (double)c->dim + 1e-6) * c->weight[i];
    }
    return loss;
}

START_TEST(rmsnorm_and_its_gradient)
{
    struct setup s = open_setting(_i);
    for (int64_t dim = 1; dim < 70; dim += 17) {
        int64_t tokens = 19, n = tokens * dim;
        float *x = test_random(1, n), *dy = test_random(2, n), *weight = test_random(3, dim);
        float *y = malloc((size_t)n * 4), *dx = test_random(4, n);
        struct rows_case c = {.tokens = tokens,
                              .dim = dim,
                              .x = test_widen(n, x),
                              .weight = test_widen(dim, weight),
                              .dy = test_widen(n, dy)};
        double *want = malloc((size_t)n * 8), loss = 0;
        ck_assert_int_eq(
            s.dev->ops->rmsnorm_forward(s.dev, tokens, dim, 1e-6f, weight, x, dim, y, dim), KT_OK);
        for (int64_t i = 0; i < n; i++)
            loss += (double)y[i] * dy[i];
        ck_assert_double_lt(fabs(loss - rmsnorm_loss(&c)), 1e-5);
        test_differentiate(rmsnorm_loss, &c, n, c.x, want);
        for (int accumulate = 1; accumulate >= 0; accumulate--) {
            double *sum = test_widen(n, dx);
            for (int64_t i = 0; i < n; i++)
                sum[i] = (accumulate ? sum[i] : 0) + want[i];
            ck_assert_int_eq(s.dev->ops->rmsnorm_backward(s.dev, tokens, dim, 1e-6f, weight, x, dim,
                                                          dy, dim, accumulate, dx, dim),
                             KT_OK);
            if (dim > 1) /* of one feature the gradient is all but 0 */
                ck_assert_double_lt(test_error(n, dx, sum), 1e-5);
            free(sum);
        }
        free(x), free(dy), free(weight), free(y), free(dx), free(want);
        free(c.x), free(c.weight), free(c.dy);
    }
    close_device(&s);
}
END_TEST

static double glu_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t i = 0; i < c->tokens * c->dim; i++)
        loss += c->dy[i] * c->x[i] / (1 + exp(-c->x[i])) * c->up[i];
    return loss;
}

START_TEST(glu_and_its_gradient)
{
    struct setup s = open_setting(_i);
    int64_t tokens = 3, dim = 111, n = tokens * dim;
    float *gate = test_random(1, n), *up = test_random(2, n), *dh = test_random(3, n);
    float *h = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++)
        gate[i] *= 12;
    struct rows_case c = {.tokens = tokens,
                          .dim = dim,
                          .x = test_widen(n, gate),
                          .up = test_widen(n, up),
                          .dy = test_widen(n, dh)};
    double *want_gate = malloc((size_t)n * 8), *want_up = malloc((size_t)n * 8), loss = 0;
    test_differentiate(glu_loss, &c, n, c.x, want_gate);
    test_differentiate(glu_loss, &c, n, c.up, want_up);
    s.dev->ops->glu_forward(s.dev, KT_ACTIVATION_SILU, tokens, dim, gate, up, h);
    for (int64_t i = 0; i < n; i++)
        loss += (double)h[i] * dh[i];
    ck_assert_double_lt(fabs(loss / glu_loss(&c) - 1), 1e-5);
    s.dev->ops->glu_backward(s.dev, KT_ACTIVATION_SILU, tokens, dim, gate, up, dh, gate, up);
    ck_assert_double_lt(test_error(n, gate, want_gate), 1e-5);
    ck_assert_double_lt(test_error(n, up, want_up), 1e-5);
    free(gate), free(up), free(dh), free(h), free(want_gate), free(want_up);
    free(c.x), free(c.up), free(c.dy);
    close_device(&s);
}
END_TEST

static double cross_entropy_loss(void *arg)
{
    const struct rows_case *c = arg;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        double sum = 0;
        for (int64_t i = 0; i < c->dim; i++)
            sum += exp(c->x[t * c->dim + i]);
        if (c->ids[t] >= 0)
            loss += c->dy[t] * (c->x[t * c->dim + c->ids[t]] - log(sum));
    }
    return loss;
}

START_TEST(cross_entropy_and_its_gradient)
{
    struct setup s = open_setting(_i);
    int64_t tokens = 4, vocab = 133, n = tokens * vocab;
    int32_t targets[] = {0, 132, -100, 50};
    float *logits = test_random(1, n), *dlogprobs = test_random(2, tokens), logprobs[4], again[4];
    for (int64_t i = 0; i < n; i++)
        logits[i] *= 20;
    struct rows_case c = {.tokens = tokens,
                          .dim = vocab,
                          .x = test_widen(n, logits),
                          .dy = test_widen(tokens, dlogprobs),
                          .ids = targets};
    double *want = malloc((size_t)n * 8), loss = 0;
    test_differentiate(cross_entropy_loss, &c, n, c.x, want);
    s.dev->ops->cross_entropy(s.dev, tokens, vocab, logits, vocab, targets, NULL, logprobs);
    s.dev->ops->cross_entropy(s.dev, tokens, vocab, logits, vocab, targets, dlogprobs, again);
    for (int64_t t = 0; t < tokens; t++) {
        ck_assert_float_eq_tol(logprobs[t], again[t], 1e-5f);
        loss += (double)logprobs[t] * dlogprobs[t];
    }
    ck_assert(logprobs[2] == 0);
    ck_assert_double_lt(fabs(loss / cross_entropy_loss(&c) - 1), 1e-6);
    ck_assert_double_lt(test_error(n, logits, want), 1e-5);
    free(logits), free(dlogprobs), free(want), free(c.x), free(c.dy);
    close_device(&s);
}
END_TEST

static const struct kt_router routers[] = {
    {KT_SCORING_SOFTMAX, KT_GROUP_NONE, 16, 4, 1, 1, 0, 1.0f, NULL},
    {KT_SCORING_SOFTMAX, KT_GROUP_MAX, 16, 3, 4, 2, 0, 16.0f, NULL},
    {KT_SCORING_SOFTMAX, KT_GROUP_NONE, 16, 2, 1, 1, 1, 1.0f, NULL},
    {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 16, 4, 4, 2, 1, 2.5f, NULL},
};

static double router_loss(void *arg)
{
    const struct rows_case *c = arg;
    const struct kt_router *r = c->router;
    double loss = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *x = c->x + t * c->dim;
        double total = 0, chosen = 0;
        for (int32_t e = 0; e < r->num_experts; e++)
            total += exp(x[e]);
        for (int pass = 0; pass < 2; pass++) {
            for (int32_t j = 0; j < r->topk; j++) {
                double s = x[c->ids[t * r->topk + j]];
                s = r->scoring == KT_SCORING_SIGMOID ? 1 / (1 + exp(-s)) : exp(s) / total;
                if (pass == 0)
                    chosen += s;
                else
                    loss += c->dy[t * r->topk + j] * s / (r->norm_topk_prob ? chosen : 1) *
                            (double)r->routed_scaling_factor;
            }
        }
    }
    return loss;
}

START_TEST(router_and_its_gradient)
{
    for (size_t which = 0; which < sizeof routers / sizeof *routers; which++) {
        struct setup s = open_device(2);
        struct kt_router r = routers[which];
        int64_t tokens = 21, n = tokens * r.num_experts, k = tokens * r.topk;
        float *bias = test_random(9, r.num_experts), *logits = test_random(1, n);
        float *weights = malloc((size_t)k * 4), *dw = test_random(2, k),
              *dlogits = test_random(3, n);
        int32_t *ids = malloc((size_t)k * 4);
        if (r.scoring == KT_SCORING_SIGMOID)
            r.correction_bias = bias;
        ck_assert_int_eq(s.dev->ops->router_forward(s.dev, &r, tokens, logits, ids, weights),
                         KT_OK);
        struct rows_case c = {.tokens = tokens,
                              .dim = r.num_experts,
                              .x = test_widen(n, logits),
                              .dy = test_widen(k, dw),
                              .ids = ids,
                              .router = &r};
        double *want = malloc((size_t)n * 8), loss = 0;
        for (int64_t i = 0; i < k; i++)
            loss += (double)weights[i] * dw[i];
        ck_assert_double_lt(fabs(loss - router_loss(&c)), 1e-4);
        test_differentiate(router_loss, &c, n, c.x, want);
        ck_assert_int_eq(s.dev->ops->router_backward(s.dev, &r, tokens, logits, ids, dw, dlogits),
                         KT_OK);
        ck_assert_double_lt(test_error(n, dlogits, want), 1e-5);
        free(bias), free(logits), free(weights), free(dw), free(dlogits), free(ids);
        free(want), free(c.x), free(c.dy);
        close_device(&s);
    }
}
END_TEST

START_TEST(router_chooses_by_bias_and_group_but_weighs_by_score)
{
    struct setup s = open_device(1);
    /* groups {0,1}, {2,3}, {4,5}; sums of two: .9, 1.3, 1.1; the first group is left out */
    float logits[] = {2.1972246f, -20, 0.40546511f, 0.84729786f, -0.40546511f, 0.84729786f};
    float bias[] = {0, 0, 0, 0, 0, 0.05f}, weights[2];
    int32_t ids[2];
    struct kt_router r = {KT_SCORING_SIGMOID, KT_GROUP_TOP2_SUM, 6, 2, 3, 2, 1, 2.0f, bias};
    s.dev->ops->router_forward(s.dev, &r, 1, logits, ids, weights);
    ck_assert_int_eq(ids[0], 5); /* 0.7 + bias */
    ck_assert_int_eq(ids[1], 3);
    ck_assert_float_eq_tol(weights[0], 1.0f, 1e-6f);
    ck_assert_float_eq_tol(weights[1], 1.0f, 1e-6f);
    logits[0] = NAN;
    s.dev->ops->router_forward(s.dev, &r, 1, logits, ids, weights);
    for (int j = 0; j < 2; j++)
        ck_assert(ids[j] >= 0 && ids[j] < 6);
    close_device(&s);
}
END_TEST

START_TEST(rope_rotates_pairs_and_back)
{
    struct setup s = open_device(2);
    enum { TOKENS = 3, HEADS = 2, DIM = 8, HEAD = 11, STRIDE = HEADS * HEAD };
    float cos[5 * DIM / 2], sin[5 * DIM / 2];
    int32_t positions[TOKENS] = {4, 0, 2};
    for (int i = 0; i < 5 * DIM / 2; i++) {
        cos[i] = cosf(0.3f * (float)i);
        sin[i] = sinf(0.3f * (float)i);
    }
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        float *x = test_random(1, TOKENS * STRIDE), *before = test_random(1, TOKENS * STRIDE);
        struct kt_rope r = {x, STRIDE, HEAD, HEADS, DIM, interleaved, 0, cos, sin, positions};
        ck_assert_int_eq(s.dev->ops->rope(s.dev, &r, TOKENS), KT_OK);
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < HEADS; h++)
                for (int i = 0; i < DIM / 2; i++) {
                    int base = t * STRIDE + h * HEAD, at = positions[t] * DIM / 2 + i;
                    int first = base + (interleaved ? 2 * i : i);
                    int second = base + (interleaved ? 2 * i + 1 : i + DIM / 2);
                    ck_assert_float_eq_tol(
                        x[first], before[first] * cos[at] - before[second] * sin[at], 1e-6f);
                    ck_assert_float_eq_tol(
                        x[second], before[first] * sin[at] + before[second] * cos[at], 1e-6f);
                }
        ck_assert(x[DIM] == before[DIM]);
        r.inverse = 1;
        s.dev->ops->rope(s.dev, &r, TOKENS);
        for (int i = 0; i < TOKENS * STRIDE; i++)
            ck_assert_float_eq_tol(x[i], before[i], 1e-6f);
        free(x), free(before);
    }
    close_device(&s);
}
END_TEST

START_TEST(copies_and_sums)
{
    struct setup s = open_setting(_i);
    enum { TOKENS = 37, DIM = 45, LD = 50 };
    float *x = test_random(1, TOKENS * LD), *y = test_random(2, TOKENS * LD);
    float *before = test_random(2, TOKENS * LD);
    s.dev->ops->add(s.dev, TOKENS, DIM, 0.5f, x, LD, 1, y, LD);
    for (int i = 0; i < TOKENS * LD; i++)
        ck_assert_float_eq_tol(y[i], before[i] + (i % LD < DIM ? 0.5f * x[i] : 0), 1e-6f);
    s.dev->ops->add(s.dev, TOKENS, DIM, 2, x, LD, 0, y, LD);
    ck_assert(y[DIM - 1] == 2 * x[DIM - 1] && y[DIM] == before[DIM]);

    uint16_t *packed = malloc(TOKENS * LD * 2);
    s.dev->ops->pack_bf16(s.dev, TOKENS * LD, x, packed);
    s.dev->ops->unpack_bf16(s.dev, TOKENS * LD, packed, y);
    for (int i = 0; i < TOKENS * LD; i++)
        ck_assert(y[i] == kt_bf16_to_f32(kt_f32_to_bf16(x[i])));

    int32_t ids[TOKENS];
    for (int t = 0; t < TOKENS; t++)
        ids[t] = t * 7 % 20;
    for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++) {
        double values[20 * DIM];
        struct kt_weight table = {.data = make_weight((kt_dtype)dtype, 3, 20 * DIM, values),
                                  .dtype = (kt_dtype)dtype,
                                  .rows = 20,
                                  .cols = DIM};
        s.dev->ops->embedding(s.dev, &table, TOKENS, ids, y, LD);
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < DIM; i++)
                ck_assert((double)y[t * LD + i] == values[ids[t] * DIM + i]);
        free((void *)table.data);
    }
    free(x), free(y), free(before), free(packed);
    close_device(&s);
}
END_TEST

START_TEST(dropout_is_a_mask_of_its_key)
{
    struct setup s = open_device(2);
    enum { TOKENS = 40, DIM = 501 };
    float *x = malloc(TOKENS * DIM * 4), *y = malloc(TOKENS * DIM * 4),
          *z = malloc(TOKENS * DIM * 4);
    int64_t dropped = 0, same = 0;
    for (int i = 0; i < TOKENS * DIM; i++)
        x[i] = 1;
    s.dev->ops->dropout(s.dev, 0.25f, 7, TOKENS, DIM, x, DIM, 0, y, DIM);
    s.dev->ops->dropout(s.dev, 0.25f, 8, TOKENS, DIM, x, DIM, 0, z, DIM);
    for (int i = 0; i < TOKENS * DIM; i++) {
        ck_assert(y[i] == 0 || fabsf(y[i] - 1 / 0.75f) < 1e-6f);
        dropped += y[i] == 0;
        same += y[i] == z[i];
    }
    ck_assert_double_lt(fabs((double)dropped / (TOKENS * DIM) - 0.25), 0.01);
    ck_assert_double_lt(fabs((double)same / (TOKENS * DIM) - (0.75 * 0.75 + 0.25 * 0.25)), 0.02);
    s.dev->ops->dropout(s.dev, 0.25f, 7, TOKENS, DIM, x, DIM, 1, z, DIM);
    s.dev->ops->dropout(s.dev, 0.25f, 8, TOKENS, DIM, x, DIM, 0, x, DIM);
    for (int i = 0; i < TOKENS * DIM; i++)
        ck_assert_float_eq_tol(z[i], x[i] + y[i], 1e-6f);
    free(x), free(y), free(z);
    close_device(&s);
}
END_TEST

/* -- attention --------------------------------------------------------------------------------- */

struct attention_case {
    struct kt_attention a;
    int64_t queries, keys;
    double *q, *k, *ks, *v, *d_o; /* dense: [token, head, dim] */
    double *out;                  /* filled by the loss */
};

static double attention_loss(void *arg)
{
    struct attention_case *c = arg;
    const struct kt_attention *a = &c->a;
    int32_t own = a->qk_dim - a->shared_dim, group = a->num_heads / a->num_kv_heads;
    double loss = 0, *p = malloc((size_t)c->keys * sizeof *p);
    for (int32_t s = 0; s < a->num_sequences; s++)
        for (int64_t t = a->cu_seqlens_q[s]; t < a->cu_seqlens_q[s + 1]; t++)
            for (int32_t h = 0; h < a->num_heads; h++) {
                const double *q = c->q + (t * a->num_heads + h) * a->qk_dim;
                double *o = c->out + (t * a->num_heads + h) * a->v_dim, sum = 0;
                int64_t last = t - a->cu_seqlens_q[s + 1] + a->cu_seqlens_k[s + 1];
                memset(o, 0, (size_t)a->v_dim * sizeof *o);
                for (int64_t j = a->cu_seqlens_k[s]; j <= last; j++) {
                    double score = 0;
                    for (int32_t i = 0; i < own; i++)
                        score += q[i] * c->k[(j * a->num_kv_heads + h / group) * own + i];
                    for (int32_t i = 0; i < a->shared_dim; i++)
                        score += q[own + i] * c->ks[j * a->shared_dim + i];
                    p[j] = a->window && j <= last - a->window ? 0 : exp(score * (double)a->scale);
                    sum += p[j];
                }
                for (int32_t i = 0; i < a->v_dim; i++) {
                    for (int64_t j = a->cu_seqlens_k[s]; j <= last; j++)
                        o[i] += p[j] / sum * c->v[(j * a->num_kv_heads + h / group) * a->v_dim + i];
                    loss += o[i] * c->d_o[(t * a->num_heads + h) * a->v_dim + i];
                }
            }
    free(p);
    return loss;
}

struct attention_shape {
    int32_t heads, kv_heads, qk, shared, v, window;
    int32_t cu_q[4], cu_k[4];
};

static const struct attention_shape attention_shapes[] = {
    {2, 2, 12, 4, 8, 0, {0, 5, 6, 13}, {0, 5, 6, 13}},    /* MLA, training */
    {4, 2, 8, 0, 8, 0, {0, 3, 3, 20}, {0, 3, 3, 20}},     /* grouped queries, empty sequence */
    {2, 1, 9, 0, 5, 3, {0, 7, 9, 10}, {0, 7, 9, 10}},     /* window */
    {3, 1, 20, 0, 16, 0, {0, 1, 2, 3}, {0, 9, 26, 27}},   /* decoding over a cache */
    {2, 2, 24, 8, 16, 0, {0, 4, 37, 37}, {0, 6, 45, 45}}, /* longer, with a prefix */
};

struct attention_data {
    struct attention_case c;
    int64_t nq, nk, ns, nv, no;
    float *q, *k, *ks, *v, *o, *d_o, *dq, *dk, *dks, *dv, *lse;
    struct kt_attention_grad g;
};

static struct attention_data open_attention(const struct attention_shape *shape, kt_compute compute)
{
    int64_t tq = shape->cu_q[3], tk = shape->cu_k[3];
    int32_t own = shape->qk - shape->shared;
    struct attention_data d = {.nq = tq * shape->heads * shape->qk,
                               .nk = tk * shape->kv_heads * own,
                               .ns = tk * shape->shared,
                               .nv = tk * shape->kv_heads * shape->v,
                               .no = tq * shape->heads * shape->v};
    d.q = test_random(1, d.nq), d.k = test_random(2, d.nk), d.ks = test_random(3, d.ns);
    d.v = test_random(4, d.nv), d.o = test_random(5, d.no), d.d_o = test_random(6, d.no);
    d.dq = test_random(7, d.nq), d.dk = test_random(7, d.nk), d.dks = test_random(7, d.ns);
    d.dv = test_random(7, d.nv), d.lse = test_random(8, tq * shape->heads);
    for (int64_t i = 0; i < d.nq; i++)
        d.q[i] *= 5;
    d.g = (struct kt_attention_grad){d.d_o, d.dq, d.dk, shape->shared ? d.dks : NULL, d.dv};
    d.c.a = (struct kt_attention){.num_heads = shape->heads,
                                  .num_kv_heads = shape->kv_heads,
                                  .qk_dim = shape->qk,
                                  .shared_dim = shape->shared,
                                  .v_dim = shape->v,
                                  .window = shape->window,
                                  .scale = 0.7f,
                                  .num_sequences = 3,
                                  .cu_seqlens_q = shape->cu_q,
                                  .cu_seqlens_k = shape->cu_k,
                                  .compute = compute,
                                  .q = d.q,
                                  .q_stride = shape->heads * shape->qk,
                                  .q_head_stride = shape->qk,
                                  .k = d.k,
                                  .k_stride = shape->kv_heads * own,
                                  .k_head_stride = own,
                                  .k_shared = shape->shared ? d.ks : NULL,
                                  .k_shared_stride = shape->shared,
                                  .v = d.v,
                                  .v_stride = shape->kv_heads * shape->v,
                                  .v_head_stride = shape->v,
                                  .o = d.o,
                                  .o_stride = shape->heads * shape->v,
                                  .o_head_stride = shape->v,
                                  .lse = d.lse};
    d.c.queries = tq, d.c.keys = tk;
    d.c.q = test_widen(d.nq, d.q), d.c.k = test_widen(d.nk, d.k), d.c.ks = test_widen(d.ns, d.ks);
    d.c.v = test_widen(d.nv, d.v), d.c.d_o = test_widen(d.no, d.d_o);
    d.c.out = malloc((size_t)d.no * sizeof *d.c.out);
    return d;
}

static void close_attention(struct attention_data *d)
{
    free(d->q), free(d->k), free(d->ks), free(d->v), free(d->o), free(d->d_o), free(d->dq);
    free(d->dk), free(d->dks), free(d->dv), free(d->lse);
    free(d->c.q), free(d->c.k), free(d->c.ks), free(d->c.v), free(d->c.d_o), free(d->c.out);
}

static void check_gradient(struct attention_case *c, int64_t n, double *x, const float *got)
{
    double *want = malloc((size_t)(n + 1) * sizeof *want);
    test_differentiate(attention_loss, c, n, x, want);
    ck_assert_double_lt(test_error(n, got, want), 1e-5);
    free(want);
}

START_TEST(attention_and_its_gradient)
{
    for (size_t i = 0; i < sizeof attention_shapes / sizeof *attention_shapes; i++) {
        struct setup s = open_setting(_i);
        struct attention_data d = open_attention(&attention_shapes[i], KT_COMPUTE_F32);
        ck_assert_int_eq(s.dev->ops->attention_forward(s.dev, &d.c.a), KT_OK);
        attention_loss(&d.c);
        ck_assert_double_lt(test_error(d.no, d.o, d.c.out), 1e-6);
        ck_assert_int_eq(s.dev->ops->attention_backward(s.dev, &d.c.a, &d.g), KT_OK);
        check_gradient(&d.c, d.nq, d.c.q, d.dq);
        check_gradient(&d.c, d.nk, d.c.k, d.dk);
        check_gradient(&d.c, d.ns, d.c.ks, d.dks);
        check_gradient(&d.c, d.nv, d.c.v, d.dv);
        d.c.a.lse = NULL;
        ck_assert_int_eq(s.dev->ops->attention_forward(s.dev, &d.c.a), KT_OK);
        close_attention(&d);
        close_device(&s);
    }
}
END_TEST

static const struct attention_shape large_shapes[] = {
    {2, 2, 24, 8, 16, 0, {0, 150, 151, 420}, {0, 150, 151, 420}},
    {4, 2, 16, 0, 20, 0, {0, 140, 141, 150}, {0, 160, 161, 300}},
    {2, 1, 9, 0, 5, 70, {0, 7, 207, 500}, {0, 7, 207, 500}},
    {16, 1, 40, 8, 33, 0, {0, 1, 3, 4}, {0, 700, 1900, 1901}}, /* keys in parts */
};

/* Against the change of the loss along random directions, in double. */
static void check_direction(struct attention_case *c, int64_t n, double *x, const float *gradient,
                            double tolerance)
{
    const double step = 1e-5;
    float *direction = test_random(99, n);
    double slope = 0, norm = 0, change;
    for (int64_t i = 0; i < n; i++) {
        slope += (double)gradient[i] * direction[i];
        norm += (double)gradient[i] * gradient[i];
        x[i] += step * direction[i];
    }
    change = attention_loss(c);
    for (int64_t i = 0; i < n; i++)
        x[i] -= 2 * step * direction[i];
    change = (change - attention_loss(c)) / (2 * step);
    for (int64_t i = 0; i < n; i++)
        x[i] += step * direction[i];
    ck_assert_double_le(fabs(slope - change), tolerance * sqrt(norm));
    free(direction);
}

START_TEST(attention_over_many_blocks)
{
    for (size_t i = 0; i < sizeof large_shapes / sizeof *large_shapes; i++) {
        struct setup s = open_setting(_i / 2);
        kt_compute compute = (kt_compute)(_i % 2);
        struct attention_data d = open_attention(&large_shapes[i], compute);
        double tolerance = compute == KT_COMPUTE_BF16 ? 2e-2 : 1e-5;
        ck_assert_int_eq(s.dev->ops->attention_forward(s.dev, &d.c.a), KT_OK);
        attention_loss(&d.c);
        ck_assert_double_lt(test_error(d.no, d.o, d.c.out), compute ? 1e-2 : 1e-6);
        ck_assert_int_eq(s.dev->ops->attention_backward(s.dev, &d.c.a, &d.g), KT_OK);
        check_direction(&d.c, d.nq, d.c.q, d.dq, tolerance);
        check_direction(&d.c, d.nk, d.c.k, d.dk, tolerance);
        check_direction(&d.c, d.ns, d.c.ks, d.dks, tolerance);
        check_direction(&d.c, d.nv, d.c.v, d.dv, tolerance);
        close_attention(&d);
        close_device(&s);
    }
}
END_TEST

/* -- bits -------------------------------------------------------------------------------------- */

START_TEST(bits_do_not_depend_on_threads_or_repetition)
{
    enum { T = 150, N = 300, K = 260, HEADS = 2, HEAD = 65 };
    double *values = malloc(N * K * sizeof *values);
    void *data = make_weight(KT_DTYPE_BF16, 1, N * K, values);
    struct kt_weight w = {.data = data, .dtype = KT_DTYPE_BF16, .rows = N, .cols = K};
    int32_t cu[] = {0, 50, T};
    float *x = test_random(2, T * K), *dy = test_random(3, T * N), *first = NULL;
    enum { TOTAL = T * N + T * K + 4 * T * HEADS * HEAD + T * HEADS };
    for (int run = 0; run < 4; run++) {
        struct setup s = open_device(run < 2 ? 1 : run);
        float *out = malloc(TOTAL * sizeof *out), *at = out + T * N + T * K;
        float *o = at, *dq = o + T * 130, *dk = dq + T * 130, *dv = dk + T * 130;
        s.dev->ops->linear_forward(s.dev, &w, KT_COMPUTE_BF16, T, x, K, 0, out, N);
        s.dev->ops->linear_backward(s.dev, &w, KT_COMPUTE_F32, T, dy, N, 0, out + T * N, K);
        struct kt_attention a = {.num_heads = HEADS,
                                 .num_kv_heads = HEADS,
                                 .qk_dim = HEAD,
                                 .v_dim = HEAD,
                                 .scale = 0.1f,
                                 .num_sequences = 2,
                                 .cu_seqlens_q = cu,
                                 .cu_seqlens_k = cu,
                                 .q = x,
                                 .q_stride = K,
                                 .q_head_stride = HEAD,
                                 .k = x + 10,
                                 .k_stride = 130,
                                 .k_head_stride = HEAD,
                                 .v = x + 20,
                                 .v_stride = 130,
                                 .v_head_stride = HEAD,
                                 .o = o,
                                 .o_stride = 130,
                                 .o_head_stride = HEAD,
                                 .lse = dv + T * 130};
        a.q_stride = 130;
        struct kt_attention_grad g = {dy, dq, dk, NULL, dv};
        s.dev->ops->attention_forward(s.dev, &a);
        s.dev->ops->attention_backward(s.dev, &a, &g);
        if (first)
            ck_assert(memcmp(first, out, TOTAL * sizeof *out) == 0);
        if (first)
            free(out);
        else
            first = out;
        close_device(&s);
    }
    free(values), free(data), free(x), free(dy), free(first);
}
END_TEST

START_TEST(unknown_devices_and_memory_limits_are_errors)
{
    kt_context_options options;
    kt_context *ctx;
    struct kt_device *dev;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    options.memory_limit = 4096;
    ck_assert_int_eq(kt_context_create(&options, &ctx), KT_OK);
    ck_assert_int_eq(kt_device_open(ctx, "tpu:0", &dev), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "tpu:0"));
    ck_assert_int_eq(kt_device_open(ctx, "cpu:0", &dev), KT_OK);
    float *x = test_random(1, 100 * 100), *y = test_random(2, 100 * 100);
    struct kt_weight w = {.data = x, .dtype = KT_DTYPE_F32, .rows = 100, .cols = 100};
    ck_assert_int_eq(dev->ops->linear_forward(dev, &w, KT_COMPUTE_F32, 100, x, 100, 0, y, 100),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_int_eq(dev->ops->linear_forward(dev, &w, KT_COMPUTE_F32, 0, x, 100, 0, y, 100),
                     KT_OK);
    kt_device_close(dev);
    kt_context_free(ctx);
    free(x), free(y);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device", .timeout = 120),
        LOOP(linears_of_every_dtype, SETTINGS),
        LOOP(gemm_in_every_transposition, SETTINGS),
        LOOP(rmsnorm_and_its_gradient, SETTINGS),
        LOOP(glu_and_its_gradient, SETTINGS),
        LOOP(cross_entropy_and_its_gradient, SETTINGS),
        TEST(router_and_its_gradient),
        TEST(router_chooses_by_bias_and_group_but_weighs_by_score),
        TEST(rope_rotates_pairs_and_back),
        LOOP(copies_and_sums, SETTINGS),
        TEST(dropout_is_a_mask_of_its_key),
        LOOP(attention_and_its_gradient, SETTINGS),
        LOOP(attention_over_many_blocks, 2 * SETTINGS),
        TEST(bits_do_not_depend_on_threads_or_repetition),
        TEST(unknown_devices_and_memory_limits_are_errors),
    };
    return RUN_TESTS("device", tests);
}
