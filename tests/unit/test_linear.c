/* SPDX-License-Identifier: Apache-2.0 */
/* Linears and embeddings of the CPU device with weights in every format, against kt_weight_decode
 * and products in double precision, on every instruction set. */
#include "backend/device.h"
#include "weights.h"
#include "main.h"

static const struct settings {
    int32_t threads;
    uint32_t isa_mask;
} settings[] = {{1, 0}, {3, 0}, {2, KT_ISA_AVX512_BF16}, {2, KT_ISA_AVX512}, {2, KT_ISA_AVX2}};

enum { SETTINGS = sizeof settings / sizeof *settings };

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
                       const float *before, int accumulate)
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

/* One token's products with FP8 and INT4 are made of the codes, which bfloat16 holds, not of their
 * products with the scales. */
static int is_exact(const kt_context *ctx, const struct problem *p, int64_t tokens)
{
    kt_dtype dtype = p->weight.w.dtype;
    return tokens == 1 && (dtype == KT_DTYPE_F8_E4M3 || dtype == KT_DTYPE_I4) &&
           (ctx->cpu.isa & KT_ISA_AVX512_VBMI);
}

static void check_problem(const kt_context *ctx, struct kt_device *dev, const struct problem *p,
                          int64_t tokens, int accumulate)
{
    const struct kt_weight *w = &p->weight.w;
    const double *want = is_exact(ctx, p, tokens) ? p->exact : p->y;
    float *before_y = test_random(4, tokens * p->ldy), *y = test_random(4, tokens * p->ldy);
    float *before_dx = test_random(5, tokens * p->ldx), *dx = test_random(5, tokens * p->ldx);
    ck_assert_int_eq(
        dev->ops->linear_forward(dev, w, p->compute, tokens, p->x, p->ldx, accumulate, y, p->ldy),
        KT_OK);
    ck_assert_int_eq(dev->ops->linear_backward(dev, w, p->compute, tokens, p->dy, p->ldy,
                                               accumulate, dx, p->ldx),
                     KT_OK);
    check_rows(tokens, p->n, y, p->ldy, want, before_y, accumulate);
    check_rows(tokens, p->k, dx, p->ldx, p->dx, before_dx, accumulate);
    free(before_y), free(y), free(before_dx), free(dx);
}

static void check_setting(const struct settings *set, const struct problem *p)
{
    kt_context *ctx = test_context(set->threads, set->isa_mask);
    struct kt_extent extent = {.tokens = MOST, .widest = p->n > p->k ? p->n : p->k, .num_heads = 1};
    struct kt_device *dev;
    ck_assert_int_eq(kt_device_open(ctx, "cpu", &dev), KT_OK);
    for (int c = 0; c < COUNTS; c++)
        check_problem(ctx, dev, p, token_counts[c], c % 2);
    ck_assert_uint_le(kt_context_memory_peak(ctx), dev->ops->scratch_bytes(dev, &extent));
    kt_device_close(dev);
    kt_context_free(ctx);
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
            for (int set = 0; set < SETTINGS; set++)
                check_setting(&settings[set], &p);
            close_problem(&p);
        }
    }
}
END_TEST

START_TEST(embeddings_of_every_format)
{
    enum { ROWS = 70, COLS = 512, TOKENS = 50 };
    const struct settings *set = &settings[_i / DTYPES];
    kt_context *ctx = test_context(set->threads, set->isa_mask);
    struct kt_device *dev;
    struct test_weight table = test_weight(dtypes[_i % DTYPES], 6, ROWS, COLS);
    int32_t ids[TOKENS];
    float *x = test_random(1, TOKENS * (COLS + 2)), want[COLS];
    ck_assert_int_eq(kt_device_open(ctx, "cpu", &dev), KT_OK);
    for (int t = 0; t < TOKENS; t++)
        ids[t] = t * 31 % ROWS;
    ck_assert_int_eq(dev->ops->embedding(dev, &table.w, TOKENS, ids, x, COLS + 2), KT_OK);
    for (int t = 0; t < TOKENS; t++) {
        kt_weight_decode(&table.w, ids[t], 0, COLS, want);
        ck_assert(memcmp(x + t * (COLS + 2), want, sizeof want) == 0);
    }
    free(x);
    test_weight_free(&table);
    kt_device_close(dev);
    kt_context_free(ctx);
}
END_TEST

START_TEST(bits_do_not_depend_on_threads)
{
    enum { N = 300, K = 512, TOKENS = 33 };
    for (int d = 0; d < DTYPES; d++) {
        struct test_weight t = test_weight(dtypes[d], 1, N, K);
        float *x = test_random(2, TOKENS * K), *dy = test_random(3, TOKENS * N);
        float *first = NULL;
        for (int32_t threads = 1; threads < 6; threads += 2) {
            kt_context *ctx = test_context(threads, 0);
            struct kt_device *dev;
            float *out = malloc(TOKENS * (N + K) * 2 * sizeof *out), *at = out;
            ck_assert_int_eq(kt_device_open(ctx, "cpu", &dev), KT_OK);
            for (int64_t tokens = 3; tokens <= TOKENS; tokens += 30) {
                dev->ops->linear_forward(dev, &t.w, KT_COMPUTE_BF16, tokens, x, K, 0, at, N);
                at += tokens * N;
                dev->ops->linear_backward(dev, &t.w, KT_COMPUTE_BF16, tokens, dy, N, 0, at, K);
                at += tokens * K;
            }
            ck_assert(!first || memcmp(first, out, (size_t)(at - out) * sizeof *out) == 0);
            if (first)
                free(out);
            else
                first = out;
            kt_device_close(dev);
            kt_context_free(ctx);
        }
        free(x), free(dy), free(first);
        test_weight_free(&t);
    }
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("linear", .timeout = 120),
        LOOP(linears_of_every_format, DTYPES),
        LOOP(embeddings_of_every_format, SETTINGS * DTYPES),
        TEST(bits_do_not_depend_on_threads),
    };
    return RUN_TESTS("linear", tests);
}
