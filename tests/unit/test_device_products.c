/* SPDX-License-Identifier: Apache-2.0 */
/* Products of views that a device may treat by themselves: of each element type that it supports,
 * aligned and not, of few tokens, with narrow sides and of little depth. Against sums in double
 * precision. */
#include "device_fixture.h"
#include "main.h"

/* Tensors of views in F32 or BF16: what they hold, and where the device has them. */
struct matrix {
    kt_dtype dtype;
    int64_t size, ld;
    void *host;
    struct kt_view view;
};

/* `offset` elements lie before the first. */
static struct matrix random_matrix(struct device_test *s, uint64_t seed, kt_dtype dtype,
                                   int64_t rows, int64_t ld, int64_t offset)
{
    struct matrix m = {.dtype = dtype, .size = rows * ld + offset, .ld = ld};
    float *x = test_random(seed, m.size);
    int64_t bytes = kt_view_element(dtype);
    m.host = x;
    if (dtype == KT_DTYPE_BF16)
        for (int64_t i = 0; i < m.size; i++)
            ((uint16_t *)m.host)[i] = kt_f32_to_bf16(x[i]);
    char *there = device_put(s, KT_MEMORY_DEVICE, (uint64_t)(m.size * bytes), m.host);
    m.view = (struct kt_view){there + offset * bytes, ld, dtype};
    return m;
}

static double element(const struct matrix *m, int64_t i)
{
    return m->dtype == KT_DTYPE_BF16 ? (double)kt_bf16_to_f32(((uint16_t *)m->host)[i])
                                     : (double)((float *)m->host)[i];
}

/* The device's [rows, cols] is `want`, rounded to its type, and nothing beside it was changed. A
 * sum of `terms` in float32, in whatever order, has an error of about sqrt(terms) roundings. */
static void check_matrix(struct device_test *s, const struct matrix *before, int64_t offset,
                         int64_t rows, int64_t cols, int64_t terms, const double *want)
{
    double f32 = fmax(1e-6, sqrt((double)terms) * 0x1p-24);
    struct matrix m = *before;
    int64_t bytes = kt_view_element(m.dtype);
    double difference = 0, norm = 0;
    m.host = malloc((size_t)(m.size * bytes));
    device_get_bytes(s, (uint64_t)(m.size * bytes), (char *)m.view.data - offset * bytes, m.host);
    for (int64_t i = 0; i < m.size; i++) {
        int64_t row = (i - offset) / m.ld, col = (i - offset) % m.ld;
        if (i < offset || col >= cols || row >= rows) {
            ck_assert(element(&m, i) == element(before, i));
            continue;
        }
        difference += pow(element(&m, i) - want[row * cols + col], 2);
        norm += pow(want[row * cols + col], 2);
    }
    ck_assert_double_le(sqrt(difference / norm), m.dtype == KT_DTYPE_BF16 ? 3e-3 : f32);
    free(m.host);
}

struct product {
    int64_t m, n, k;
    bool trans_a, trans_b, accumulate;
    kt_dtype a, b, c;
    int64_t pad, offset; /* elements behind rows and before the first */
};

static void check_product(struct device_test *s, const struct product *p)
{
    int64_t lda = (p->trans_a ? p->m : p->k) + p->pad, ldb = (p->trans_b ? p->k : p->n) + p->pad;
    int64_t ldc = p->n + p->pad;
    struct kt_gemm_args g = {.trans_a = p->trans_a,
                             .trans_b = p->trans_b,
                             .m = p->m,
                             .n = p->n,
                             .k = p->k,
                             .alpha = 0.75f,
                             .a = {NULL, lda, p->a},
                             .b = {NULL, ldb, p->b},
                             .c = {NULL, ldc, p->c},
                             .accumulate = p->accumulate};
    if (!s->dev->ops->supports(s->dev, KT_OP_GEMM, &g))
        return;
    struct matrix a = random_matrix(s, 1, p->a, p->trans_a ? p->k : p->m, lda, p->offset);
    struct matrix b = random_matrix(s, 2, p->b, p->trans_b ? p->n : p->k, ldb, p->offset);
    struct matrix c = random_matrix(s, 3, p->c, p->m, ldc, p->offset);
    double *want = calloc((size_t)(p->m * p->n), sizeof *want);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            double sum = 0;
            for (int64_t q = 0; q < p->k; q++)
                sum += element(&a, p->offset + (p->trans_a ? q * lda + i : i * lda + q)) *
                       element(&b, p->offset + (p->trans_b ? j * ldb + q : q * ldb + j));
            want[i * p->n + j] =
                0.75 * sum + (p->accumulate ? element(&c, p->offset + i * ldc + j) : 0);
        }
    g.a = a.view, g.b = b.view, g.c = c.view;
    device_run(s, KT_OP_GEMM, &g);
    check_matrix(s, &c, p->offset, p->m, p->n, p->k, want);
    device_free_blocks(s);
    free(a.host), free(b.host), free(c.host), free(want);
}

/* Bits of `i` choose the views' types, transpositions and whether it adds. */
static void check_products(struct device_test *s, const int64_t *shape, int64_t pad, int64_t offset)
{
    for (int i = 0; i < 64; i++) {
        struct product p = {.m = shape[0],
                            .n = shape[1],
                            .k = shape[2],
                            .trans_a = i & 1,
                            .trans_b = i & 2,
                            .accumulate = i & 4,
                            .a = i & 8 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                            .b = i & 16 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                            .c = i & 32 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                            .pad = pad,
                            .offset = offset};
        check_product(s, &p);
    }
}

START_TEST(narrow_and_wide_products)
{
    static const int64_t shapes[][3] = {{300, 8, 1056}, {100, 13, 612},  {33, 32, 1031},
                                        {8, 340, 700},  {17, 1030, 130}, {70, 140, 8},
                                        {130, 516, 19}, {1, 300, 32},    {1, 8, 2048},
                                        {70, 65, 40},   {40, 12, 20}};
    struct device_test s = device_open(device_name(_i), 2, 0);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_products(&s, shapes[i], 0, 0);
        check_products(&s, shapes[i], 3, 1);
        check_products(&s, shapes[i], 4, 0);
    }
    device_close(&s);
}
END_TEST

struct linear {
    kt_dtype x, y;
    kt_compute compute;
    bool backward, accumulate;
    int64_t tokens, ldx, ldy, offset;
};

static double rounded(kt_compute compute, double x)
{
    return compute == KT_COMPUTE_BF16 ? (double)kt_bf16_to_f32(kt_f32_to_bf16((float)x)) : x;
}

static void check_linear(struct device_test *s, const struct kt_weight *w, const float *values,
                         const struct linear *l)
{
    int64_t in = l->backward ? w->rows : w->cols, out = l->backward ? w->cols : w->rows;
    enum kt_op op = l->backward ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD;
    struct kt_linear_args args = {.weight = *w,
                                  .compute = l->compute,
                                  .tokens = l->tokens,
                                  .x = {NULL, l->ldx, l->x},
                                  .y = {NULL, l->ldy, l->y},
                                  .accumulate = l->accumulate};
    if (!s->dev->ops->supports(s->dev, op, &args))
        return;
    struct matrix x = random_matrix(s, 4, l->x, l->tokens, in + 8, l->offset);
    struct matrix y = random_matrix(s, 5, l->y, l->tokens, l->ldy, l->offset);
    double *want = calloc((size_t)(l->tokens * out), sizeof *want);
    for (int64_t t = 0; t < l->tokens; t++)
        for (int64_t j = 0; j < out; j++) {
            double sum = l->accumulate ? element(&y, l->offset + t * l->ldy + j) : 0;
            for (int64_t q = 0; q < in; q++)
                sum += rounded(l->compute, element(&x, l->offset + t * l->ldx + q)) *
                       rounded(l->compute, (double)values[l->backward ? q * out + j : j * in + q]);
            want[t * out + j] = sum;
        }
    args.weight = device_weight(s, w);
    args.x.data = x.view.data, args.y.data = y.view.data;
    device_run(s, op, &args);
    check_matrix(s, &y, l->offset, l->tokens, out, in, want);
    device_free_blocks(s);
    free(x.host), free(y.host), free(want);
}

/* Bits of `i` choose types, direction and whether it adds; ldx of 0 is one row for all tokens. */
static void check_linears(struct device_test *s, const struct kt_weight *w, const float *values,
                          int64_t tokens, int64_t pad, int64_t offset)
{
    for (int i = 0; i < 64; i++) {
        struct linear l = {.x = i & 1 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                           .y = i & 2 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                           .compute = i & 4 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32,
                           .backward = i & 8,
                           .accumulate = i & 16,
                           .tokens = tokens,
                           .offset = offset};
        int64_t in = l.backward ? w->rows : w->cols, out = l.backward ? w->cols : w->rows;
        l.ldx = i & 32 ? 0 : in + pad;
        l.ldy = out + pad;
        check_linear(s, w, values, &l);
    }
}

/* More than one token: on the CPU, one's products with FP8 and INT4 are rounded otherwise. */
START_TEST(linears_of_views)
{
    static const kt_dtype dtypes[] = {KT_DTYPE_F32,  KT_DTYPE_F16, KT_DTYPE_BF16, KT_DTYPE_F8_E4M3,
                                      KT_DTYPE_I8,   KT_DTYPE_I4,  KT_DTYPE_Q8_0, KT_DTYPE_Q4_0,
                                      KT_DTYPE_Q4_K, KT_DTYPE_Q6_K};
    enum { ROWS = 72, COLS = 768 };
    struct device_test s = device_open(device_name(_i), 2, 0);
    float *values = malloc(ROWS * COLS * sizeof *values);
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        struct test_weight t = test_weight(dtypes[d], d, ROWS, COLS);
        for (int64_t row = 0; row < ROWS; row++)
            kt_weight_decode(&t.w, row, 0, COLS, values + row * COLS);
        for (int64_t tokens = 2; tokens <= 6; tokens++)
            check_linears(&s, &t.w, values, tokens, tokens % 2 * 8, 0);
        check_linears(&s, &t.w, values, 3, 5, 1);
        test_weight_free(&t);
    }
    free(values);
    device_close(&s);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("device_products", .timeout = 120),
        LOOP(narrow_and_wide_products, num_devices()),
        LOOP(linears_of_views, num_devices()),
    };
    return RUN_TESTS("device_products", tests);
}
