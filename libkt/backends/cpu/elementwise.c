/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that touch each element once. */
#include "backends/cpu/cpu.h"

#include <string.h>

#include "core/random.h"

enum { ROWS_A_TASK = 16, ELEMENTS_A_TASK = 1 << 14 };

/* What a task of any of these operations reads. */
struct elements {
    const struct kt_row_kernels *row;
    const void *args;
    kt_decode_fn decode;
};

static float *row_at(const struct kt_view *view, int64_t t)
{
    return (float *)view->data + t * view->ld;
}

static float *element(const struct kt_view *view, int64_t i)
{
    return (float *)view->data + i;
}

static void run(struct kt_device *dev, const void *args, int64_t n, int64_t grain, kt_range_fn fn)
{
    const struct kt_kernels *kernels = &kt_cpu(dev)->kernels;
    struct elements e = {&kernels->row, args, kernels->decode[KT_DECODE_F32]};
    kt_parallel_for(kt_cpu(dev)->pool, n, grain, fn, &e);
}

static void add_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_rows_args *a = e->args;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        e->row->scale_add(a->dim, a->alpha, row_at(&a->x, t), a->accumulate, row_at(&a->y, t));
}

void kt_cpu_add(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_rows_args *a = args;
    (void)scratch;
    run(dev, a, a->tokens, ROWS_A_TASK, add_rows);
}

static void drop_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_dropout_args *a = e->args;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        kt_dropout_row(a->p, a->key, a->index ? a->index[t] : t, 0, a->dim, row_at(&a->x, t),
                       a->accumulate, row_at(&a->y, t));
}

void kt_cpu_dropout(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_dropout_args *a = args;
    (void)scratch;
    run(dev, a, a->tokens, ROWS_A_TASK, drop_rows);
}

static void embed_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_embedding_args *a = e->args;
    int64_t cols = a->table.cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        e->decode(&a->table, a->ids[t], 0, 1, cols, 0, row_at(&a->x, t), cols);
}

void kt_cpu_embedding(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_embedding_args *a = args;
    (void)scratch;
    run(dev, a, a->tokens, ROWS_A_TASK, embed_rows);
}

/* -- dense operands, which are cut anywhere ---------------------------------------------------- */

static void glu(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_glu_args *a = e->args;
    (void)thread;
    e->row->silu_mul(end - begin, element(&a->gate, begin), element(&a->up, begin),
                     element(&a->h, begin));
}

void kt_cpu_glu_forward(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_glu_args *a = args;
    (void)scratch;
    run(dev, a, a->tokens * a->dim, ELEMENTS_A_TASK, glu);
}

static void glu_gradient(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_glu_args *a = e->args;
    (void)thread;
    e->row->silu_mul_backward(end - begin, 1.0f, element(&a->gate, begin), element(&a->up, begin),
                              element(&a->dh, begin), element(&a->dgate, begin),
                              element(&a->dup, begin));
}

void kt_cpu_glu_backward(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_glu_args *a = args;
    (void)scratch;
    run(dev, a, a->tokens * a->dim, ELEMENTS_A_TASK, glu_gradient);
}

/* -- operands that are dense or not ------------------------------------------------------------ */

/* Over elements where all lie one behind another, else over rows. */
static void run_dense_or_rows(struct kt_device *dev, const struct kt_rows_args *a, bool dense,
                              kt_range_fn over_elements, kt_range_fn over_rows)
{
    if (dense || a->tokens == 1)
        run(dev, a, a->tokens * a->dim, ELEMENTS_A_TASK, over_elements);
    else
        run(dev, a, a->tokens, ROWS_A_TASK, over_rows);
}

static void zero_elements(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_rows_args *a = ((const struct elements *)arg)->args;
    (void)thread;
    memset(element(&a->y, begin), 0, (size_t)(end - begin) * sizeof(float));
}

static void zero_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_rows_args *a = ((const struct elements *)arg)->args;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        memset(row_at(&a->y, t), 0, (size_t)a->dim * sizeof(float));
}

void kt_cpu_zero(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_rows_args *a = args;
    (void)scratch;
    run_dense_or_rows(dev, a, a->y.ld == a->dim, zero_elements, zero_rows);
}

static void convert(const struct elements *e, int64_t n, struct kt_view x, struct kt_view y)
{
    if (y.dtype == KT_DTYPE_BF16)
        e->row->to_bf16(n, x.data, y.data);
    else
        e->row->widen(n, x.dtype, x.data, y.data);
}

static void convert_elements(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_rows_args *a = e->args;
    (void)thread;
    convert(e, end - begin, kt_view_at(a->x, 0, begin), kt_view_at(a->y, 0, begin));
}

static void convert_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct elements *e = arg;
    const struct kt_rows_args *a = e->args;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        convert(e, a->dim, kt_view_at(a->x, t, 0), kt_view_at(a->y, t, 0));
}

void kt_cpu_convert(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_rows_args *a = args;
    (void)scratch;
    run_dense_or_rows(dev, a, a->x.ld == a->dim && a->y.ld == a->dim, convert_elements,
                      convert_rows);
}
