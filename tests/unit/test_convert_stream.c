/* SPDX-License-Identifier: Apache-2.0 */
/* Matrices of any size go through one buffer. */
#include <math.h>
#include <sys/mman.h>

#include "convert/converter.h"
#include "convert_test.h"
#include "weights/encode.h"
#include "core/memory.h"
#include "core/random.h"
#include "encode_golden.h"
#include "model/quantization.h"
#include "main.h"

/* Streams `from`, whose memory is shared like a mapped file's, into a file: elements from its
 * beginning, then scales. */
static kt_status stream(const struct kt_weight *from, kt_dtype to, char **elements, float **scales)
{
    struct kt_checkpoint nothing = {.ctx = fixture_context}; /* the matrix lies in no file */
    struct kt_model model = {.checkpoint = &nothing};
    struct kt_converter c = {.ctx = fixture_context, .model = &model, .to = to, .total = 1};
    struct kt_tensor tensor = {.name = "matrix", .file = "file"};
    int64_t rows = to == KT_DTYPE_F8_E4M3 ? KT_CONVERT_BLOCK : 1;
    int64_t cols = to == KT_DTYPE_I8 ? from->cols : KT_CONVERT_BLOCK;
    uint64_t bytes = (uint64_t)from->rows * kt_format_row_bytes(to, from->cols);
    struct kt_convert_entry scale_entry = {
        .offset = bytes,
        .to = {.shape = {(from->rows - 1) / rows + 1, (from->cols - 1) / cols + 1}}};
    struct kt_convert_entry entry = {.from = &tensor,
                                     .converts = 1,
                                     .weight = *from,
                                     .to_scales = kt_scale_suffix(to) ? &scale_entry : NULL};
    struct kt_atomic_file *file;
    size_t size;
    ck_assert_int_eq(kt_convert_allocate(&c), KT_OK);
    ck_assert_int_eq(kt_atomic_open(fixture_context, fixture_path("stream"), &file), KT_OK);
    kt_status status = kt_convert_stream(&c, &entry, file);
    kt_convert_release(&c);
    if (status != KT_OK) {
        kt_atomic_discard(file);
        return status;
    }
    ck_assert_int_eq(kt_atomic_commit(file), KT_OK);
    *elements = convert_read(fixture_folder, "stream", &size);
    uint64_t scale_bytes = size - bytes;
    ck_assert_uint_eq(scale_bytes, kt_scale_suffix(to) ? (uint64_t)(scale_entry.to.shape[0] *
                                                                    scale_entry.to.shape[1]) *
                                                             sizeof(float)
                                                       : 0);
    *scales = malloc(scale_bytes + 1);
    memcpy(*scales, *elements + bytes, scale_bytes);
    return status;
}

START_TEST(matrices_are_those_of_pytorch)
{
    const struct golden_format *f = &golden_formats[_i];
    struct kt_weight from = {.data = golden("matrix")->data,
                             .dtype = KT_DTYPE_F32,
                             .rows = GOLDEN_ROWS,
                             .cols = GOLDEN_COLS};
    char *elements;
    float *scales;
    ck_assert_int_eq(stream(&from, f->dtype, &elements, &scales), KT_OK);
    ck_assert_mem_eq(elements, golden(f->codes)->data, golden(f->codes)->bytes);
    ck_assert_mem_eq(scales, golden(f->scales)->data, golden(f->scales)->bytes);
    free(elements);
    free(scales);
}
END_TEST

static const struct shape {
    kt_dtype to;
    int64_t rows, cols;
} shapes[] = {
    {KT_DTYPE_F8_E4M3, 1, 1},
    {KT_DTYPE_F8_E4M3, 129, 70001},
    {KT_DTYPE_F8_E4M3, 70001, 129},
    {KT_DTYPE_F8_E4M3, 300, 5000},
    {KT_DTYPE_I8, 1, 1},
    {KT_DTYPE_I8, 3, 40001},
    {KT_DTYPE_I8, 2, 8400001},
    {KT_DTYPE_I8, 300001, 3},
    {KT_DTYPE_I4, 1, 2},
    {KT_DTYPE_I4, 300001, 2},
    {KT_DTYPE_I4, 1, 16800002},
    {KT_DTYPE_I4, 3001, 386},
    {KT_DTYPE_BF16, 1, 4200001},
    {KT_DTYPE_BF16, 1001, 777},
    {KT_DTYPE_F32, 2, 2100001},
    {KT_DTYPE_F32, 1000001, 3},
};

/* One block of elements that share a scale, the simplest way. */
static void check_block(const struct kt_weight *w, kt_dtype to, int64_t row, int64_t rows,
                        int64_t col, int64_t cols, const char *elements, const float *scale)
{
    float *values = malloc((size_t)(rows * cols) * sizeof *values);
    char *want = malloc((size_t)cols * sizeof *values);
    for (int64_t r = 0; r < rows; r++)
        kt_weight_decode(w, row + r, col, cols, values + r * cols);
    float right = kt_encode_scale(to, kt_encode_largest(rows * cols, values));
    if (scale)
        ck_assert_float_eq(*scale, right);
    for (int64_t r = 0; r < rows; r++) {
        kt_encode(to, cols, values + r * cols, right, want);
        ck_assert_mem_eq(elements + (uint64_t)(row + r) * kt_format_row_bytes(to, w->cols) +
                             kt_format_row_bytes(to, col),
                         want, kt_format_row_bytes(to, cols));
    }
    free(values);
    free(want);
}

START_TEST(memory_does_not_depend_on_the_shape)
{
    const struct shape *s = &shapes[_i];
    int64_t rows = s->to == KT_DTYPE_F8_E4M3 ? 128 : 1;
    int64_t cols = s->to == KT_DTYPE_F8_E4M3 || s->to == KT_DTYPE_I4 ? 128 : s->cols;
    size_t bytes = (size_t)(s->rows * s->cols) * sizeof(uint16_t);
    uint16_t *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(data, MAP_FAILED);
    struct kt_weight from = {
        .data = data, .dtype = KT_DTYPE_BF16, .rows = s->rows, .cols = s->cols};
    char *elements;
    float *scales;
    for (int64_t i = 0; i < s->rows * s->cols; i++) /* from about -2^7 to 2^7, finite */
        data[i] = (uint16_t)((uint64_t)i * 40503u >> 3 & 0xc2ff);
    ck_assert_int_eq(stream(&from, s->to, &elements, &scales), KT_OK);
    for (int64_t r = 0; r < s->rows; r += rows)
        for (int64_t c = 0; c < s->cols; c += cols) {
            size_t at = (size_t)(r / rows * ((s->cols - 1) / cols + 1) + c / cols);
            check_block(&from, s->to, r, kt_min_i64(rows, s->rows - r), c,
                        kt_min_i64(cols, s->cols - c), elements,
                        kt_scale_suffix(s->to) ? &scales[at] : NULL);
        }
    /* 8 MiB, the scales' 1 MiB and 64 KiB for each of two threads */
    ck_assert_uint_le(kt_context_memory_peak(fixture_context), (9 << 20) + 2 * (64 << 10) + 4096);
    free(elements);
    free(scales);
    munmap(data, bytes);
}
END_TEST

static float *shared(size_t n)
{
    float *x = mmap(NULL, n * sizeof *x, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(x, MAP_FAILED);
    return x;
}

START_TEST(numbers_that_do_not_fit_are_refused)
{
    kt_dtype to = convert_formats[_i];
    float *data = shared(300 * 40);
    struct kt_weight from = {.data = data, .dtype = KT_DTYPE_F32, .rows = 300, .cols = 40};
    char *elements;
    float *scales;
    data[299 * 40 + 39] = NAN;
    ck_assert_fails(stream(&from, to, &elements, &scales), KT_ERROR_NUMERIC,
                    "file: tensor matrix holds NaN or infinity");
    data[299 * 40 + 39] = 0;
    data[40] = -INFINITY;
    ck_assert_fails(stream(&from, to, &elements, &scales), KT_ERROR_NUMERIC, "infinity");
    ck_assert_int_eq(fixture_files(0), 0);
    data[40] = -3.4e38f;
    if (to == KT_DTYPE_BF16) {
        ck_assert_fails(stream(&from, to, &elements, &scales), KT_ERROR_NUMERIC,
                        "too large for BF16");
        return;
    }
    ck_assert_int_eq(stream(&from, to, &elements, &scales), KT_OK);
    free(elements);
    free(scales);
}
END_TEST

static int32_t stop(void *user)
{
    (void)user;
    return 1;
}

START_TEST(a_stream_can_be_cancelled)
{
    float *data = shared(2), *scales;
    char *elements;
    struct kt_weight from = {.data = data, .dtype = KT_DTYPE_F32, .rows = 1, .cols = 2};
    fixture_context->options.cancel = stop;
    ck_assert_fails(stream(&from, KT_DTYPE_I4, &elements, &scales), KT_ERROR_CANCELLED, "cancel");
    ck_assert_int_eq(fixture_files(0), 0);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("stream", .timeout = 60, .setup = goldens_open, .teardown = goldens_close),
        LOOP(matrices_are_those_of_pytorch, GOLDEN_FORMATS),
        LOOP(memory_does_not_depend_on_the_shape, sizeof shapes / sizeof *shapes),
        LOOP(numbers_that_do_not_fit_are_refused, CONVERT_FORMATS),
        TEST(a_stream_can_be_cancelled),
    };
    return RUN_TESTS("convert_stream", tests);
}
