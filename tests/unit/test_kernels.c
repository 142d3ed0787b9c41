/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel of every instruction set that this CPU has, against its plain C twin: sizes with
 * tails, odd strides, guard pages behind every buffer, poisoned outputs. */
#include "checkasm.h"
#include "compare.h"
#include "weights/dtype.h"
#include "main.h"

static const int64_t sizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 100, 129};

enum { SIZES = sizeof sizes / sizeof *sizes };

/* n random floats, or 16-bit elements whose rounding has every case. */
static struct guarded guarded_random(kt_dtype dtype, uint64_t seed, int64_t n)
{
    struct guarded g = guard((size_t)n * kt_dtype_size(dtype));
    float *x = test_random(seed, n);
    for (int64_t i = 0; i < n; i++) {
        if (dtype == KT_DTYPE_F32)
            ((float *)g.data)[i] = x[i];
        else if (dtype == KT_DTYPE_BF16)
            ((uint16_t *)g.data)[i] = kt_f32_to_bf16(x[i]);
        else
            ((uint16_t *)g.data)[i] =
                (uint16_t)(((uint32_t)(i + (int64_t)seed) * 40503u & 0x83ffu) | 14u << 10);
    }
    free(x);
    return g;
}

static float value_of(kt_dtype dtype, const void *data, int64_t i)
{
    float x;
    kt_dtype_to_f32(dtype, (const char *)data + i * (int64_t)kt_dtype_size(dtype), &x, 1);
    return x;
}

static float rounded(const struct kt_gemm_kernel *k, float x)
{
    return k->bf16 ? kt_bf16_to_f32(kt_f32_to_bf16(x)) : x;
}

/* Element i of converted rows or panels. */
static float element_of(const struct kt_gemm_kernel *k, const void *data, int64_t i)
{
    return k->element_size == 4 ? ((const float *)data)[i]
                                : kt_bf16_to_f32(((const uint16_t *)data)[i]);
}

static int64_t padded(const struct kt_gemm_kernel *k, int64_t depth)
{
    return (depth + k->k_step - 1) / k->k_step * k->k_step;
}

/* -- matrix kernels ---------------------------------------------------------------------------- */

static void check_convert(const struct kt_gemm_kernel *k, int64_t n)
{
    struct guarded from = guarded_random(KT_DTYPE_F32, 1, n);
    struct guarded to = guard((size_t)(padded(k, n) * k->element_size));
    float *x = from.data;
    int wrong = 0;
    if (n > 2) {
        x[0] = NAN;
        x[1] = 3.4e38f;
        x[2] = -INFINITY;
    }
    k->convert(n, from.data, to.data);
    for (int64_t i = 0; i < padded(k, n); i++) {
        float want = i < n ? rounded(k, x[i]) : 0, got = element_of(k, to.data, i);
        wrong += isnan(want) ? !isnan(got) : got != want;
    }
    ck_assert_int_eq(wrong, 0);
    release(&from), release(&to);
}

static void check_pack(const struct kt_gemm_kernel *k, kt_dtype dtype, int64_t depth, int64_t cols)
{
    for (int transposed = 0; transposed < 2; transposed++) {
        int64_t rows = transposed ? cols : depth, width = transposed ? depth : cols;
        int wrong = 0;
        struct kt_matrix b = {.dtype = dtype, .ld = width + 3};
        struct guarded m = guarded_random(dtype, 2, (rows - 1) * b.ld + width);
        int64_t panels = (cols + k->nr - 1) / k->nr, size = padded(k, depth) * k->nr;
        struct guarded panel = guard((size_t)(panels * size * k->element_size));
        b.data = m.data;
        (transposed ? k->pack_nt : k->pack_nn)(depth, cols, &b, panel.data);
        for (int64_t p = 0; p < padded(k, depth); p++) {
            for (int64_t j = 0; j < panels * k->nr; j++) {
                int64_t at = j / k->nr * size + (p / k->k_step * k->nr + j % k->nr) * k->k_step +
                             p % k->k_step;
                float want = 0;
                if (p < depth && j < cols)
                    want = rounded(
                        k, value_of(dtype, m.data, transposed ? j * b.ld + p : p * b.ld + j));
                wrong += element_of(k, panel.data, at) != want;
            }
        }
        ck_assert_int_eq(wrong, 0);
        release(&m), release(&panel);
    }
}

static void check_tile(const struct kt_gemm_kernel *k, int64_t rows, int64_t cols, int64_t depth)
{
    int64_t n = padded(k, depth), lda = n + 2 * k->k_step, ldc = cols + 3;
    struct guarded a = guard((size_t)(((rows - 1) * lda + n) * k->element_size));
    struct guarded panel = guard((size_t)(n * k->nr * k->element_size));
    struct guarded c = guarded_random(KT_DTYPE_F32, 5, (rows - 1) * ldc + cols);
    float *before = malloc((size_t)((rows - 1) * ldc + cols) * 4), *got = c.data;
    for (int64_t i = 0; i < rows; i++) {
        float *row = test_random(10 + (uint64_t)i, n);
        k->convert(n, row, (char *)a.data + i * lda * k->element_size);
        free(row);
    }
    float *right = test_random(3, n * k->nr);
    struct kt_matrix b = {right, KT_DTYPE_F32, k->nr};
    k->pack_nn(n, k->nr, &b, panel.data);
    if (k->enter)
        k->enter();
    for (int way = 3, wrong = 0; way >= 0; way--) {
        int accumulate = way % 2;
        float alpha = way / 2 ? -0.5f : 1.0f;
        memcpy(before, c.data, (size_t)((rows - 1) * ldc + cols) * 4);
        k->tile(rows, cols, n, a.data, lda, panel.data, alpha, accumulate, c.data, ldc);
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < ldc && i * ldc + j < (rows - 1) * ldc + cols; j++) {
                double sum = 0;
                for (int64_t p = 0; p < n; p++)
                    sum += (double)element_of(k, a.data, i * lda + p) *
                           (double)rounded(k, right[p * k->nr + (j < cols ? j : 0)]);
                double want = (accumulate ? before[i * ldc + j] : 0) + (double)alpha * sum;
                if (j < cols)
                    wrong += !(fabs(got[i * ldc + j] - want) < 2e-6 * sqrt((double)n) + 1e-6);
                else
                    wrong += got[i * ldc + j] != before[i * ldc + j];
            }
        }
        ck_assert_int_eq(wrong, 0);
    }
    if (k->leave)
        k->leave();
    free(right), free(before);
    release(&a), release(&panel), release(&c);
}

/* A kernel that holds rounded factors in float32 takes BF16 alone. */
static bool direct_takes(const struct kt_gemm_kernel *k, kt_dtype dtype)
{
    return !k->bf16 || k->element_size == 2 || dtype == KT_DTYPE_BF16;
}

/* dot with a factor [cols, depth], or outer with one [depth, cols]. */
static void check_direct(const struct kt_gemm_kernel *k, int outer, kt_dtype dtype, int64_t rows,
                         int64_t cols, int64_t depth)
{
    int64_t n = padded(k, depth), lda = n + 2 * k->k_step, ldc = cols + 1;
    int64_t height = outer ? depth : cols, width = outer ? cols : depth, ldb = width + 3;
    struct guarded a = guard((size_t)(((rows - 1) * lda + n) * k->element_size));
    struct guarded m = guarded_random(dtype, 2, (height - 1) * ldb + width);
    struct guarded c = guarded_random(KT_DTYPE_F32, 5, (rows - 1) * ldc + cols);
    struct kt_matrix b = {m.data, dtype, ldb};
    float *before = malloc((size_t)((rows - 1) * ldc + cols) * 4), *got = c.data;
    double alpha = outer ? 1 : -0.5;
    int wrong = 0;
    for (int64_t i = 0; i < rows; i++) {
        float *row = test_random(10 + (uint64_t)i, depth);
        k->convert(depth, row, (char *)a.data + i * lda * k->element_size);
        free(row);
    }
    for (int accumulate = 1; accumulate >= 0; accumulate--) {
        memcpy(before, c.data, (size_t)((rows - 1) * ldc + cols) * 4);
        if (outer)
            k->outer(rows, cols, depth, a.data, lda, &b, accumulate, c.data, ldc);
        else
            k->dot(rows, cols, depth, a.data, lda, &b, (float)alpha, accumulate, c.data, ldc);
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < cols; j++) {
                double sum = 0;
                for (int64_t p = 0; p < depth; p++)
                    sum += (double)element_of(k, a.data, i * lda + p) *
                           (double)rounded(
                               k, value_of(dtype, m.data, outer ? p * ldb + j : j * ldb + p));
                double want = (accumulate ? before[i * ldc + j] : 0) + alpha * sum;
                wrong += !(fabs(got[i * ldc + j] - want) < 2e-6 * sqrt((double)depth) + 1e-6);
            }
            wrong += i + 1 < rows && got[i * ldc + cols] != before[i * ldc + cols];
        }
    }
    ck_assert_int_eq(wrong, 0);
    free(before);
    release(&a), release(&m), release(&c);
}

/* 1, 2 and those next to whole vectors of 4, 8, 16 ... columns. */
static int64_t next_cols(const struct kt_gemm_kernel *k, int64_t cols)
{
    do
        cols++;
    while (cols > 2 && cols % k->nr > 0 && cols % (k->nr / 4) > 1 &&
           cols % (k->nr / 4) < k->nr / 4 - 1);
    return cols;
}

START_TEST(matrix_kernels)
{
    struct kt_kernels kernels;
    uint32_t level = _i ? levels[_i - 1] : 0;
    if (!init_level(&kernels, level))
        return;
    for (int which = 0; which < 2; which++) {
        const struct kt_gemm_kernel *k = which ? &kernels.bf16 : &kernels.f32;
        ck_assert_int_eq(k->bf16, which);
        ck_assert_int_le(k->mr, KT_GEMM_MAX_ROWS);
        ck_assert_int_le(k->nr, KT_GEMM_MAX_COLS);
        for (int i = 0; i < SIZES; i++) {
            check_convert(k, sizes[i]);
            for (int64_t cols = 1; cols <= 3 * k->nr; cols = next_cols(k, cols))
                for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++)
                    check_pack(k, (kt_dtype)dtype, sizes[i], cols);
        }
        for (int64_t rows = 1; rows <= k->dot_rows; rows = rows < 12 ? rows + 1 : rows + 7)
            for (int64_t cols = 1; cols < 20; cols += rows < 12 ? 1 : 6)
                for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++)
                    if (direct_takes(k, (kt_dtype)dtype))
                        check_direct(k, 0, (kt_dtype)dtype, rows, cols,
                                     sizes[(rows + cols) % SIZES]);
        for (int64_t rows = 1; rows <= k->outer_rows; rows = rows < 12 ? rows + 1 : rows + 7)
            for (int64_t cols = 1; cols < 70; cols = next_cols(k, cols))
                for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++)
                    if (direct_takes(k, (kt_dtype)dtype))
                        check_direct(k, 1, (kt_dtype)dtype, rows, cols,
                                     sizes[(rows + cols) % SIZES]);
        for (int64_t rows = 1; rows <= k->mr; rows++)
            for (int64_t cols = 1; cols <= k->nr; cols = next_cols(k, cols))
                check_tile(k, rows, cols, sizes[(rows + cols) % SIZES]);
        check_tile(k, k->mr, k->nr, 700);
    }
}
END_TEST

/* -- emulated tiles: factors packed as for AVX-512-BF16, in plain C -----------------------------
 */

static void convert_pairs(int64_t n, const float *from, void *to)
{
    for (int64_t i = 0; i < (n + 1) / 2 * 2; i++)
        ((uint16_t *)to)[i] = i < n ? kt_f32_to_bf16(from[i]) : 0;
}

static void pack_pairs(int64_t k, int64_t cols, const struct kt_matrix *b, void *panel)
{
    for (int64_t p = 0; p < (k + 1) / 2 * 2; p++)
        for (int64_t j = 0; j < cols; j++)
            ((uint16_t *)panel)[(p / 2 * cols + j) * 2 + p % 2] =
                p < k ? kt_f32_to_bf16(((const float *)b->data)[p * b->ld + j]) : 0;
}

START_TEST(emulated_tile)
{
    struct kt_kernels kernels = {0};
    kt_kernels_init_amx_emulated(&kernels);
    struct kt_gemm_kernel *k = &kernels.bf16;
    k->bf16 = 1;
    k->element_size = k->k_step = 2;
    k->convert = convert_pairs;
    k->pack_nn = pack_pairs;
    for (int64_t rows = 1; rows <= k->mr; rows++)
        for (int64_t cols = 1; cols <= k->nr; cols = next_cols(k, cols))
            check_tile(k, rows, cols, sizes[(rows + cols) % SIZES]);
    for (int64_t depth = 511; depth < 515; depth++)
        check_tile(k, depth % 2 ? k->mr : 21, k->nr, depth);
}
END_TEST

/* -- row kernels ------------------------------------------------------------------------------- */

/* Inputs of a row kernel, and outputs that start the same for both twins. */
struct row_case {
    int64_t n;
    struct guarded x, y, z, out, out2, want, want2;
};

static struct row_case open_row(int64_t n)
{
    return (struct row_case){n,
                             guarded_random(KT_DTYPE_F32, 1, n),
                             guarded_random(KT_DTYPE_F32, 2, n),
                             guarded_random(KT_DTYPE_F32, 3, n),
                             guarded_random(KT_DTYPE_F32, 4, n),
                             guarded_random(KT_DTYPE_F32, 5, n),
                             guarded_random(KT_DTYPE_F32, 4, n),
                             guarded_random(KT_DTYPE_F32, 5, n)};
}

static void close_row(struct row_case *c)
{
    release(&c->x), release(&c->y), release(&c->z), release(&c->out), release(&c->out2);
    release(&c->want), release(&c->want2);
}

static void same_rows(const struct row_case *c)
{
    double *want = test_widen(c->n, c->want.data), *want2 = test_widen(c->n, c->want2.data);
    ck_assert_double_lt(test_error(c->n, c->out.data, want), 1e-6);
    ck_assert_double_lt(test_error(c->n, c->out2.data, want2), 1e-6);
    free(want), free(want2);
}

static void check_reductions(const struct kt_row_kernels *k, const struct kt_row_kernels *twin,
                             struct row_case *c)
{
    int64_t n = c->n;
    float *x = c->x.data, *y = c->y.data, *z = c->z.data;
    double bound = 1e-6 * sqrt((double)n) + 1e-7;
    ck_assert_double_lt(fabs((double)k->dot(n, x, y) - twin->dot(n, x, y)), bound);
    ck_assert_double_lt(fabs((double)k->dot3(n, x, y, z) - twin->dot3(n, x, y, z)), bound);
    ck_assert_double_lt(fabs((double)k->sum(n, x) - twin->sum(n, x)), bound);
    ck_assert(k->max(n, x) == twin->max(n, x));
}

static void check_maps(const struct kt_row_kernels *k, const struct kt_row_kernels *twin,
                       struct row_case *c)
{
    int64_t n = c->n;
    float *x = c->x.data, *y = c->y.data, *z = c->z.data, *out = c->out.data, *want = c->want.data;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        k->scale_add(n, 0.3f, x, accumulate, out);
        twin->scale_add(n, 0.3f, x, accumulate, want);
        same_rows(c);
        k->norm_backward(n, 0.7f, 0.2f, x, y, z, accumulate, out);
        twin->norm_backward(n, 0.7f, 0.2f, x, y, z, accumulate, want);
        same_rows(c);
    }
    k->scale_mul(n, 1.7f, x, y, out);
    twin->scale_mul(n, 1.7f, x, y, want);
    same_rows(c);
    k->sigmoid(n, x, out);
    twin->sigmoid(n, x, want);
    same_rows(c);
    k->silu_mul(n, x, y, out);
    twin->silu_mul(n, x, y, want);
    same_rows(c);
    k->silu_mul_backward(n, 0.9f, x, y, z, out, c->out2.data);
    twin->silu_mul_backward(n, 0.9f, x, y, z, want, c->want2.data);
    same_rows(c);
    ck_assert_double_lt(
        fabs((double)k->exp_sum(n, 5, 1, x, out) / twin->exp_sum(n, 5, 1, x, want) - 1), 1e-5);
    same_rows(c);
    k->exp_minus(n, 3, y, z, out);
    twin->exp_minus(n, 3, y, z, want);
    same_rows(c);
    k->softmax_backward(n, 0.3f, y, z, out);
    twin->softmax_backward(n, 0.3f, y, z, want);
    same_rows(c);
    twin->exp_sum(n, 1, 0, x, want);
    k->exp_sum(n, 1, 0, x, x); /* in place */
    memcpy(out, x, (size_t)n * sizeof *x);
    same_rows(c);
    for (int dtype = KT_DTYPE_F32; dtype <= KT_DTYPE_BF16; dtype++) {
        struct guarded from = guarded_random((kt_dtype)dtype, 7, n);
        k->widen(n, (kt_dtype)dtype, from.data, out);
        int64_t right = 0;
        while (right < n && out[right] == value_of((kt_dtype)dtype, from.data, right))
            right++;
        ck_assert_int_eq(right, n);
        release(&from);
    }
    struct guarded half = guard((size_t)n * 2);
    k->to_bf16(n, y, half.data);
    for (int64_t i = 0; i < n; i++)
        ck_assert_uint_eq(((uint16_t *)half.data)[i], kt_f32_to_bf16(y[i]));
    release(&half);
}

START_TEST(row_kernels)
{
    struct kt_kernels kernels, twin;
    kt_kernels_init(&twin, 0);
    if (!init_level(&kernels, levels[_i]))
        return;
    for (int i = 0; i < SIZES; i++) {
        struct row_case c = open_row(sizes[i]);
        check_reductions(&kernels.row, &twin.row, &c);
        check_maps(&kernels.row, &twin.row, &c);
        close_row(&c);
    }
}
END_TEST

START_TEST(exponentials_against_the_c_library)
{
    struct kt_kernels kernels;
    if (!init_level(&kernels, _i ? levels[_i - 1] : 0))
        return;
    enum { N = 20011 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int i = 0; i < N; i++)
        x[i] = -86 + 174.0f * (float)i / N;
    kernels.row.exp_sum(N, 1, 0, x, y);
    int wrong = 0;
    for (int i = 0; i < N; i++)
        wrong += !(fabs(y[i] / exp((double)x[i]) - 1) < 2e-7);
    kernels.row.sigmoid(N, x, y);
    for (int i = 0; i < N; i++)
        wrong += !(fabs(y[i] * (1 + exp(-(double)x[i])) - 1) < 1e-6);
    ck_assert_int_eq(wrong, 0);
    float special[] = {-INFINITY, -1e30f, NAN, 1e30f}, out[4];
    kernels.row.exp_sum(4, 1, 0, special, out);
    ck_assert(out[0] < 1e-37f && out[1] < 1e-37f && isnan(out[2]) && out[3] > 1e38f);
    free(x), free(y);
}
END_TEST

START_TEST(every_half_precision_number)
{
    struct kt_kernels kernels;
    if (!init_level(&kernels, _i ? levels[_i - 1] : 0))
        return;
    uint16_t *all = malloc(65536 * sizeof *all), *back = malloc(65536 * sizeof *back);
    float *wide = malloc(65536 * sizeof *wide);
    int wrong = 0;
    for (int i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    kernels.row.widen(65536, KT_DTYPE_F16, all, wide);
    for (int i = 0; i < 65536; i++) {
        float want = kt_f16_to_f32((uint16_t)i);
        wrong += isnan(want) ? !isnan(wide[i]) : memcmp(&want, &wide[i], 4) != 0;
    }
    kernels.row.widen(65536, KT_DTYPE_BF16, all, wide);
    kernels.row.to_bf16(65536, wide, back);
    for (int i = 0; i < 65536; i++)
        wrong += back[i] != i && !(isnan(wide[i]) && (back[i] | 0x40) == (i | 0x40));
    ck_assert_int_eq(wrong, 0);
    free(all), free(back), free(wide);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("kernels", .timeout = 120),
        LOOP(matrix_kernels, LEVELS + 1),
        TEST(emulated_tile),
        LOOP(row_kernels, LEVELS),
        LOOP(exponentials_against_the_c_library, LEVELS + 1),
        LOOP(every_half_precision_number, LEVELS + 1),
    };
    return RUN_TESTS("kernels", tests);
}
