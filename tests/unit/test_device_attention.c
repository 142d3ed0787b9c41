/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of every device against its formula in double precision and the differences of that,
 * and that bits do not depend on the number of threads. */
#include "device_fixture.h"
#include "main.h"

struct attention_shape {
    int32_t heads, kv_heads, qk, shared, v, window;
    int32_t cu_q[4], cu_k[4];
};

/* The inputs on the host, dense: [token, head, dim]. */
struct attention_case {
    const struct attention_shape *shape;
    struct kt_attention_args a; /* without addresses of a device */
    int64_t nq, nk, ns, nv, no;
    double *q, *k, *ks, *v, *d_o;
    double *out; /* filled by the loss */
};

static double attention_loss(void *arg)
{
    struct attention_case *c = arg;
    const struct kt_attention_args *a = &c->a;
    int32_t own = a->qk_dim - a->shared_dim, group = a->num_heads / a->num_kv_heads;
    double loss = 0, *p = malloc((size_t)a->keys.host[a->keys.num] * sizeof *p);
    for (int32_t s = 0; s < a->queries.num; s++)
        for (int64_t t = a->queries.host[s]; t < a->queries.host[s + 1]; t++)
            for (int32_t h = 0; h < a->num_heads; h++) {
                const double *q = c->q + (t * a->num_heads + h) * a->qk_dim;
                double *o = c->out + (t * a->num_heads + h) * a->v_dim, sum = 0;
                int64_t last = t - a->queries.host[s + 1] + a->keys.host[s + 1];
                memset(o, 0, (size_t)a->v_dim * sizeof *o);
                for (int64_t j = a->keys.host[s]; j <= last; j++) {
                    double score = 0;
                    for (int32_t i = 0; i < own; i++)
                        score += q[i] * c->k[(j * a->num_kv_heads + h / group) * own + i];
                    for (int32_t i = 0; i < a->shared_dim; i++)
                        score += q[own + i] * c->ks[j * a->shared_dim + i];
                    p[j] = a->window && j <= last - a->window ? 0 : exp(score * (double)a->scale);
                    sum += p[j];
                }
                for (int32_t i = 0; i < a->v_dim; i++) {
                    for (int64_t j = a->keys.host[s]; j <= last; j++)
                        o[i] += p[j] / sum * c->v[(j * a->num_kv_heads + h / group) * a->v_dim + i];
                    loss += o[i] * c->d_o[(t * a->num_heads + h) * a->v_dim + i];
                }
            }
    free(p);
    return loss;
}

static const struct attention_shape attention_shapes[] = {
    {2, 2, 12, 4, 8, 0, {0, 5, 6, 13}, {0, 5, 6, 13}},    /* MLA, training */
    {4, 2, 8, 0, 8, 0, {0, 3, 3, 20}, {0, 3, 3, 20}},     /* grouped queries, empty sequence */
    {2, 1, 9, 0, 5, 3, {0, 7, 9, 10}, {0, 7, 9, 10}},     /* window */
    {3, 1, 20, 0, 16, 0, {0, 1, 2, 3}, {0, 9, 26, 27}},   /* decoding over a cache */
    {2, 2, 24, 8, 16, 0, {0, 4, 37, 37}, {0, 6, 45, 45}}, /* longer, with a prefix */
};

static double *random_doubles(uint64_t seed, int64_t n, float factor)
{
    float *x = test_random(seed, n);
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
    double *wide = test_widen(n, x);
    free(x);
    return wide;
}

static struct attention_case open_case(const struct attention_shape *shape)
{
    int64_t tq = shape->cu_q[3], tk = shape->cu_k[3];
    struct attention_case c = {.shape = shape,
                               .nq = tq * shape->heads * shape->qk,
                               .nk = tk * shape->kv_heads * (shape->qk - shape->shared),
                               .ns = tk * shape->shared,
                               .nv = tk * shape->kv_heads * shape->v,
                               .no = tq * shape->heads * shape->v};
    c.a = (struct kt_attention_args){.num_heads = shape->heads,
                                     .num_kv_heads = shape->kv_heads,
                                     .qk_dim = shape->qk,
                                     .shared_dim = shape->shared,
                                     .v_dim = shape->v,
                                     .window = shape->window,
                                     .scale = 0.7f,
                                     .queries = {3, shape->cu_q, NULL},
                                     .keys = {3, shape->cu_k, NULL}};
    c.q = random_doubles(1, c.nq, 5);
    c.k = random_doubles(2, c.nk, 1), c.ks = random_doubles(3, c.ns, 1);
    c.v = random_doubles(4, c.nv, 1), c.d_o = random_doubles(6, c.no, 1);
    c.out = malloc((size_t)c.no * sizeof *c.out);
    attention_loss(&c);
    return c;
}

static void close_case(struct attention_case *c)
{
    free(c->q), free(c->k), free(c->ks), free(c->v), free(c->d_o), free(c->out);
}

/* Numbers that are exact in float32, on the device. */
static struct kt_view put(struct device_test *s, int64_t n, const double *from, int64_t ld)
{
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)from[i];
    struct kt_view view = kt_view_f32(device_floats(s, n, x), ld);
    free(x);
    return view;
}

static struct kt_view put_random(struct device_test *s, uint64_t seed, int64_t n, int64_t ld)
{
    return kt_view_f32(device_random(s, seed, n), ld);
}

static struct kt_attention_args place(struct device_test *s, const struct attention_case *c,
                                      kt_compute compute)
{
    const struct attention_shape *shape = c->shape;
    struct kt_attention_args a = c->a;
    a.compute = compute;
    a.queries = device_offsets(s, 3, shape->cu_q), a.keys = device_offsets(s, 3, shape->cu_k);
    a.q_head_stride = shape->qk, a.k_head_stride = shape->qk - shape->shared;
    a.v_head_stride = a.o_head_stride = shape->v;
    a.q = put(s, c->nq, c->q, shape->heads * shape->qk);
    a.k = put(s, c->nk, c->k, shape->kv_heads * a.k_head_stride);
    a.v = put(s, c->nv, c->v, shape->kv_heads * shape->v);
    a.o = put_random(s, 5, c->no, shape->heads * shape->v);
    a.d_o = put(s, c->no, c->d_o, a.o.ld);
    a.dq = put_random(s, 7, c->nq, a.q.ld), a.dk = put_random(s, 7, c->nk, a.k.ld);
    a.dv = put_random(s, 7, c->nv, a.v.ld);
    if (shape->shared) {
        a.k_shared = put(s, c->ns, c->ks, shape->shared);
        a.dk_shared = put_random(s, 7, c->ns, shape->shared);
    }
    a.lse = device_random(s, 8, (int64_t)shape->cu_q[3] * shape->heads);
    return a;
}

enum { GRADIENTS = 4 }; /* dq, dk, dk_shared, dv */

/* The inputs that have a gradient: where the loss reads them, and where the device writes it. */
struct gradient {
    int64_t n;
    double *x;
    const float *got; /* NULL = none */
};

static void list_gradients(const struct attention_case *c, const struct kt_attention_args *a,
                           struct gradient list[GRADIENTS])
{
    list[0] = (struct gradient){c->nq, c->q, a->dq.data};
    list[1] = (struct gradient){c->nk, c->k, a->dk.data};
    list[2] = (struct gradient){c->ns, c->ks, a->dk_shared.data};
    list[3] = (struct gradient){c->nv, c->v, a->dv.data};
}

/* Forward and backward; the result of forward has an error below `tolerance`. */
static void run_attention(struct device_test *s, const struct attention_case *c,
                          const struct kt_attention_args *a, double tolerance)
{
    float *o = malloc((size_t)c->no * sizeof *o);
    device_run(s, KT_OP_ATTENTION_FORWARD, a);
    ck_assert_double_lt(test_error(c->no, device_get(s, c->no, a->o.data, o), c->out), tolerance);
    device_run(s, KT_OP_ATTENTION_BACKWARD, a);
    free(o);
}

static void check_small(struct device_test *s, const struct attention_case *c,
                        double *const want[GRADIENTS])
{
    struct kt_attention_args a = place(s, c, KT_COMPUTE_F32);
    struct gradient list[GRADIENTS];
    list_gradients(c, &a, list);
    run_attention(s, c, &a, 1e-6);
    for (int i = 0; i < GRADIENTS; i++) {
        float *got = malloc((size_t)(list[i].n + 1) * sizeof *got);
        if (list[i].got)
            device_get(s, list[i].n, list[i].got, got);
        ck_assert_double_lt(test_error(list[i].n, got, want[i]), 1e-5);
        free(got);
    }
    a.lse = NULL;
    device_run(s, KT_OP_ATTENTION_FORWARD, &a);
}

enum { SHAPES = sizeof attention_shapes / sizeof *attention_shapes };

START_TEST(attention_and_its_gradient)
{
    struct attention_case c = open_case(&attention_shapes[_i]);
    struct gradient list[GRADIENTS];
    double *want[GRADIENTS];
    list_gradients(&c, &c.a, list);
    for (int i = 0; i < GRADIENTS; i++) {
        want[i] = malloc((size_t)(list[i].n + 1) * sizeof *want[i]);
        test_differentiate(attention_loss, &c, list[i].n, list[i].x, want[i]);
    }
    attention_loss(&c);
    for (int i = 0; i < num_device_runs(); i++) {
        struct device_test s = device_setting(i);
        check_small(&s, &c, want);
        device_close(&s);
    }
    for (int i = 0; i < GRADIENTS; i++)
        free(want[i]);
    close_case(&c);
}
END_TEST

static const struct attention_shape large_shapes[] = {
    {2, 2, 24, 8, 16, 0, {0, 150, 151, 420}, {0, 150, 151, 420}},
    {4, 2, 16, 0, 20, 0, {0, 140, 141, 150}, {0, 160, 161, 300}},
    {2, 1, 9, 0, 5, 70, {0, 7, 207, 500}, {0, 7, 207, 500}},
    {16, 1, 40, 8, 33, 0, {0, 1, 3, 4}, {0, 700, 1900, 1901}}, /* keys in parts */
    {80, 1, 40, 8, 33, 30, {0, 1, 4, 4}, {0, 100, 300, 300}},  /* the same of many heads */
    {4, 2, 24, 8, 16, 0, {0, 2, 2, 3}, {0, 70, 70, 150}},
};

enum { LARGE_SHAPES = sizeof large_shapes / sizeof *large_shapes };

/* Change of the loss along a random direction, in double. */
static double change_along(struct attention_case *c, int64_t n, double *x, const float *direction)
{
    const double step = 1e-5;
    double above;
    for (int64_t i = 0; i < n; i++)
        x[i] += step * direction[i];
    above = attention_loss(c);
    for (int64_t i = 0; i < n; i++)
        x[i] -= 2 * step * direction[i];
    double change = (above - attention_loss(c)) / (2 * step);
    for (int64_t i = 0; i < n; i++)
        x[i] += step * direction[i];
    return change;
}

/* A score is a sum of qk products, a result one of as many as there are keys; sums of n terms in
 * float32 have an error of about sqrt(n) roundings. */
static double sums_error(const struct attention_shape *shape)
{
    int32_t keys = 0;
    for (int i = 0; i < 3; i++)
        keys =
            shape->cu_k[i + 1] - shape->cu_k[i] > keys ? shape->cu_k[i + 1] - shape->cu_k[i] : keys;
    return fmax(1e-6, sqrt(shape->qk + keys) * 0x1p-24);
}

static void check_large(struct device_test *s, const struct attention_case *c, kt_compute compute,
                        const double change[GRADIENTS])
{
    struct kt_attention_args a = place(s, c, compute);
    struct gradient list[GRADIENTS];
    list_gradients(c, &a, list);
    run_attention(s, c, &a, compute ? 1e-2 : sums_error(c->shape));
    for (int i = 0; i < GRADIENTS; i++) {
        int64_t n = list[i].got ? list[i].n : 0;
        float *direction = test_random(99, n), *got = malloc((size_t)(n + 1) * sizeof *got);
        double slope = 0, norm = 0;
        if (n)
            device_get(s, n, list[i].got, got);
        for (int64_t k = 0; k < n; k++) {
            slope += (double)got[k] * direction[k];
            norm += (double)got[k] * got[k];
        }
        ck_assert_double_le(fabs(slope - change[i]), (compute ? 2e-2 : 1e-5) * sqrt(norm));
        free(direction), free(got);
    }
}

START_TEST(attention_over_many_blocks)
{
    struct attention_case c = open_case(&large_shapes[_i]);
    struct gradient list[GRADIENTS];
    double change[GRADIENTS];
    list_gradients(&c, &c.a, list);
    for (int i = 0; i < GRADIENTS; i++) {
        float *direction = test_random(99, list[i].n);
        change[i] = list[i].n ? change_along(&c, list[i].n, list[i].x, direction) : 0;
        free(direction);
    }
    attention_loss(&c);
    for (int i = 0; i < 2 * num_device_runs(); i++) {
        struct device_test s = device_setting(i / 2);
        check_large(&s, &c, (kt_compute)(i % 2), change);
        device_close(&s);
    }
    close_case(&c);
}
END_TEST

/* Of absorbed MLA, which generates and has no backward. */
static const struct attention_shape generating_shapes[] = {
    {16, 1, 576, 0, 512, 0, {0, 1, 3, 4}, {0, 90, 400, 401}},
    {48, 1, 576, 0, 512, 0, {0, 1, 1, 5}, {0, 3, 3, 130}},
};

enum { GENERATING_SHAPES = sizeof generating_shapes / sizeof *generating_shapes };

START_TEST(attention_of_few_queries)
{
    struct attention_case c = open_case(&generating_shapes[_i]);
    attention_loss(&c);
    for (int i = 0; i < 2 * num_device_runs(); i++) {
        struct device_test s = device_setting(i / 2);
        struct kt_attention_args a = place(&s, &c, (kt_compute)(i % 2));
        double tolerance = i % 2 ? 1e-2 : sums_error(c.shape);
        float *o = malloc((size_t)c.no * sizeof *o);
        device_run(&s, KT_OP_ATTENTION_FORWARD, &a);
        ck_assert_double_lt(test_error(c.no, device_get(&s, c.no, a.o.data, o), c.out), tolerance);
        free(o);
        device_close(&s);
    }
    close_case(&c);
}
END_TEST

enum { T = 150, N = 300, K = 260, HEADS = 2, HEAD = 65, WIDE = HEADS * HEAD };
enum { TOTAL = T * N + T * K + 4 * T * WIDE + T * HEADS };

static void run_all(struct device_test *s, float *out)
{
    static const int32_t offsets[] = {0, 50, T};
    struct test_weight w = test_weight(KT_DTYPE_BF16, 1, N, K);
    float *x = device_random(s, 2, T * K), *dy = device_random(s, 3, T * N);
    float *results = device_floats(s, TOTAL, NULL);
    float *o = results + T * N + T * K, *dq = o + T * WIDE, *dk = dq + T * WIDE;
    struct kt_linear_args forward = {.weight = device_weight(s, &w.w),
                                     .compute = KT_COMPUTE_BF16,
                                     .tokens = T,
                                     .x = kt_view_f32(x, K),
                                     .y = kt_view_f32(results, N)};
    struct kt_linear_args backward = {.weight = forward.weight,
                                      .compute = KT_COMPUTE_F32,
                                      .tokens = T,
                                      .x = kt_view_f32(dy, N),
                                      .y = kt_view_f32(results + T * N, K)};
    struct kt_attention_args a = {.num_heads = HEADS,
                                  .num_kv_heads = HEADS,
                                  .qk_dim = HEAD,
                                  .v_dim = HEAD,
                                  .scale = 0.1f,
                                  .queries = device_offsets(s, 2, offsets),
                                  .keys = device_offsets(s, 2, offsets),
                                  .q = kt_view_f32(x, WIDE),
                                  .q_head_stride = HEAD,
                                  .k = kt_view_f32(x + 10, WIDE),
                                  .k_head_stride = HEAD,
                                  .v = kt_view_f32(x + 20, WIDE),
                                  .v_head_stride = HEAD,
                                  .o = kt_view_f32(o, WIDE),
                                  .o_head_stride = HEAD,
                                  .lse = dk + 2 * T * WIDE,
                                  .d_o = kt_view_f32(dy, WIDE),
                                  .dq = kt_view_f32(dq, WIDE),
                                  .dk = kt_view_f32(dk, WIDE),
                                  .dv = kt_view_f32(dk + T * WIDE, WIDE)};
    device_run(s, KT_OP_LINEAR_FORWARD, &forward);
    device_run(s, KT_OP_LINEAR_BACKWARD, &backward);
    device_run(s, KT_OP_ATTENTION_FORWARD, &a);
    device_run(s, KT_OP_ATTENTION_BACKWARD, &a);
    device_get(s, TOTAL, results, out);
    test_weight_free(&w);
}

START_TEST(bits_do_not_depend_on_devices_threads_or_repetition)
{
    float *first = malloc(TOTAL * sizeof *first), *again = malloc(TOTAL * sizeof *again);
    for (int i = 0; i < 4 * num_devices(); i++) {
        int32_t threads = i % 4 < 2 ? 1 : i % 4;
        struct device_test s = device_open(device_name(i / 4), threads, 0);
        run_all(&s, i ? again : first);
        ck_assert(!i || memcmp(first, again, TOTAL * sizeof *first) == 0);
        device_close(&s);
    }
    free(first), free(again);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_attention", .timeout = 120),
        LOOP(attention_and_its_gradient, SHAPES),
        LOOP(attention_over_many_blocks, LARGE_SHAPES),
        LOOP(attention_of_few_queries, GENERATING_SHAPES),
        TEST(bits_do_not_depend_on_devices_threads_or_repetition),
    };
    return RUN_TESTS("device_attention", tests);
}
