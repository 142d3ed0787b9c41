/* SPDX-License-Identifier: Apache-2.0 */
/* Linears and embeddings of every device with weights in every format, against kt_weight_decode and
 * products in double precision, on every instruction set. */
#include "device_fixture.h"
#include "main.h"

static const struct setting {
    const char *device;
    int32_t threads;
    uint32_t isa_mask;
} settings[] = {{"cpu", 1, 0},
                {"cpu:1", 3, 0},
                {"cpu", 2, KT_ISA_AVX512_BF16},
                {"cpu", 2, KT_ISA_AVX512},
                {"cpu", 2, KT_ISA_AVX2}};

static int num_settings(void)
{
    return device_asked_for() ? 1 : (int)(sizeof settings / sizeof *settings);
}

static struct device_test open_setting(int i)
{
    const struct setting *set = &settings[i];
    const char *device = device_asked_for() ? device_asked_for() : set->device;
    return device_open(device, set->threads, set->isa_mask);
}

static const kt_dtype dtypes[] = {KT_DTYPE_BF16, KT_DTYPE_F8_E4M3, KT_DTYPE_I8,   KT_DTYPE_I4,
                                  KT_DTYPE_Q8_0, KT_DTYPE_Q4_0,    KT_DTYPE_Q4_K, KT_DTYPE_Q6_K};

enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static const int64_t token_counts[] = {1, 2, 5, 13, 15, 16, 17, 25, 31, 33, 37, 70};

enum { COUNTS = sizeof token_counts / sizeof *token_counts, MOST = 70 };

struct problem {
    kt_compute compute;
    struct test_weight weight;
    int64_t n, k, ldx, ldy;
    float *x, *dy;
    double *y, *dx; /* for all tokens, without accumulation */
    double *exact;  /* y of the first token and weights that are not rounded */
};

static double round_if(kt_compute compute, double x)
{
    return compute == KT_COMPUTE_BF16 ? kt_bf16_to_f32(kt_f32_to_bf16((float)x)) : x;
}

static struct problem open_problem(kt_dtype dtype, kt_compute compute, int64_t n, int64_t k)
{
    struct problem p = {.compute = compute,
                        .weight = test_weight(dtype, 1, n, k),
                        .n = n,
                        .k = k,
                        .ldx = k + 3,
                        .ldy = n + 5};
    float *row = malloc((size_t)k * sizeof *row);
    p.x = test_random(2, MOST * p.ldx), p.dy = test_random(3, MOST * p.ldy);
    p.exact = calloc((size_t)n, sizeof *p.exact);
    p.y = calloc((size_t)(MOST * n), sizeof *p.y), p.dx = calloc((size_t)(MOST * k), sizeof *p.dx);
    for (int64_t j = 0; j < n; j++) {
        kt_weight_decode(&p.weight.w, j, 0, k, row);
        for (int64_t q = 0; q < k; q++) {
            double w = round_if(compute, row[q]);
            p.exact[j] += round_if(compute, p.x[q]) * (double)row[q];
            for (int64_t t = 0; t < MOST; t++) {
                p.y[t * n + j] += round_if(compute, p.x[t * p.ldx + q]) * w;
                p.dx[t * k + q] += round_if(compute, p.dy[t * p.ldy + j]) * w;
            }
        }
    }
    free(row);
    return p;
}

static void close_problem(struct problem *p)
{
    free(p->x), free(p->dy), free(p->y), free(p->dx), free(p->exact);
    test_weight_free(&p->weight);
}

/* got [tokens, ld] holds `want`, plus `before` where it was added to; nothing beyond n. */
static void check_rows(int64_t tokens, int64_t n, const float *got, int64_t ld, const double *want,
                       const float *before, bool accumulate)
{
    double difference = 0, norm = 0;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t j = 0; j < ld; j++) {
            if (j >= n) {
                ck_assert(got[t * ld + j] == before[t * ld + j]);
                continue;
            }
            double sum = want[t * n + j] + (accumulate ? before[t * ld + j] : 0);
            difference += pow(got[t * ld + j] - sum, 2);
            norm += sum * sum;
        }
    }
    ck_assert_double_le(sqrt(difference / norm), 1e-6);
}

/* On the CPU one token's products with FP8 and INT4 are made of the codes, which bfloat16 holds,
 * not of their products with the scales. */
static bool is_exact(const struct device_test *s, const struct problem *p, int64_t tokens)
{
    kt_dtype dtype = p->weight.w.dtype;
    return tokens == 1 && (dtype == KT_DTYPE_F8_E4M3 || dtype == KT_DTYPE_I4) &&
           device_is_cpu(s->dev->ops->name) && (s->ctx->cpu.isa & KT_ISA_AVX512_VBMI);
}

static void check_problem(struct device_test *s, const struct kt_weight *w, const struct problem *p,
                          int64_t tokens, bool accumulate)
{
    const double *want = is_exact(s, p, tokens) ? p->exact : p->y;
    float *before_y = test_random(4, tokens * p->ldy), *before_dx = test_random(5, tokens * p->ldx);
    float *y = malloc((size_t)(tokens * p->ldy) * 4), *dx = malloc((size_t)(tokens * p->ldx) * 4);
    struct kt_linear_args a = {
        .weight = *w, .compute = p->compute, .tokens = tokens, .accumulate = accumulate};
    a.x = kt_view_f32(device_floats(s, tokens * p->ldx, p->x), p->ldx);
    a.y = kt_view_f32(device_floats(s, tokens * p->ldy, before_y), p->ldy);
    device_run(s, KT_OP_LINEAR_FORWARD, &a);
    device_get(s, tokens * p->ldy, a.y.data, y);
    a.x = kt_view_f32(device_floats(s, tokens * p->ldy, p->dy), p->ldy);
    a.y = kt_view_f32(device_floats(s, tokens * p->ldx, before_dx), p->ldx);
    device_run(s, KT_OP_LINEAR_BACKWARD, &a);
    device_get(s, tokens * p->ldx, a.y.data, dx);
    check_rows(tokens, p->n, y, p->ldy, want, before_y, accumulate);
    check_rows(tokens, p->k, dx, p->ldx, p->dx, before_dx, accumulate);
    free(before_y), free(y), free(before_dx), free(dx);
}

static void check_setting(int setting, const struct problem *p)
{
    struct device_test s = open_setting(setting);
    struct kt_weight w = device_weight(&s, &p->weight.w);
    for (int c = 0; c < COUNTS; c += SANITIZED ? 3 : 1)
        check_problem(&s, &w, p, token_counts[c], c % 2);
    device_close(&s);
}

/* Widths that the format allows and no block of scales divides, where there is such a width. */
START_TEST(linears_of_every_format)
{
    static const int64_t shapes[][2] = {{12, 201}, {45, 457}, {300, 201}, {130, 713}, {77, 1225}};
    kt_dtype dtype = dtypes[_i];
    int64_t block = kt_format_of(dtype)->block;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t n = shapes[i][0], k = (shapes[i][1] + block - 1) / block * block;
        for (int compute = 0; compute < 2; compute++) {
            struct problem p = open_problem(dtype, (kt_compute)compute, n, k);
            for (int setting = 0; setting < num_settings(); setting++)
                check_setting(setting, &p);
            close_problem(&p);
        }
    }
}
END_TEST

START_TEST(embeddings_of_every_format)
{
    enum { ROWS = 70, COLS = 512, TOKENS = 50, LD = COLS + 2 };
    struct device_test s = open_setting(_i / DTYPES);
    struct test_weight table = test_weight(dtypes[_i % DTYPES], 6, ROWS, COLS);
    int32_t ids[TOKENS];
    float *x = malloc(TOKENS * LD * sizeof *x), want[COLS];
    for (int t = 0; t < TOKENS; t++)
        ids[t] = t * 31 % ROWS;
    struct kt_embedding_args a = {device_weight(&s, &table.w), TOKENS, device_ints(&s, TOKENS, ids),
                                  kt_view_f32(device_random(&s, 1, TOKENS * LD), LD)};
    device_run(&s, KT_OP_EMBEDDING, &a);
    device_get(&s, TOKENS * LD, a.x.data, x);
    for (int t = 0; t < TOKENS; t++) {
        kt_weight_decode(&table.w, ids[t], 0, COLS, want);
        ck_assert(memcmp(x + t * LD, want, sizeof want) == 0);
    }
    free(x);
    test_weight_free(&table);
    device_close(&s);
}
END_TEST

enum { N = 300, K = 512, MANY = 33, FEW = 3, RESULTS = (FEW + MANY) * (N + K) };

/* Both directions, of few tokens and of many. */
static void run_all(const struct kt_weight *host, const char *device, int32_t threads, float *out)
{
    struct device_test s = device_open(device, threads, 0);
    float *results = device_floats(&s, RESULTS, NULL), *at = results;
    struct kt_view x = kt_view_f32(device_random(&s, 2, MANY * K), K);
    struct kt_view dy = kt_view_f32(device_random(&s, 3, MANY * N), N);
    struct kt_linear_args a = {.weight = device_weight(&s, host), .compute = KT_COMPUTE_BF16};
    for (a.tokens = FEW; a.tokens <= MANY; a.tokens += MANY - FEW) {
        a.x = x, a.y = kt_view_f32(at, N);
        device_run(&s, KT_OP_LINEAR_FORWARD, &a);
        at += a.tokens * N;
        a.x = dy, a.y = kt_view_f32(at, K);
        device_run(&s, KT_OP_LINEAR_BACKWARD, &a);
        at += a.tokens * K;
    }
    device_get(&s, RESULTS, results, out);
    device_close(&s);
}

START_TEST(bits_do_not_depend_on_threads)
{
    float *first = malloc(RESULTS * sizeof *first), *again = malloc(RESULTS * sizeof *again);
    for (int d = 0; d < DTYPES; d++) {
        struct test_weight t = test_weight(dtypes[d], 1, N, K);
        run_all(&t.w, device_name(0), 1, first);
        for (int32_t threads = 3; threads < 6; threads += 2) {
            run_all(&t.w, device_name(threads % num_devices()), threads, again);
            ck_assert(memcmp(first, again, RESULTS * sizeof *first) == 0);
        }
        test_weight_free(&t);
    }
    free(first), free(again);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("linear", .timeout = 120),
        LOOP(linears_of_every_format, DTYPES),
        LOOP(embeddings_of_every_format, num_settings() * DTYPES),
        TEST(bits_do_not_depend_on_threads),
    };
    return RUN_TESTS("linear", tests);
}
