/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of experts, from and to those of tokens. */
#include "backends/cpu/cpu.h"

enum { ROWS_A_TASK = 16 };

struct rows {
    const struct kt_row_kernels *row;
    const void *args;
};

static float *row_at(const struct kt_view *view, int64_t r)
{
    return (float *)view->data + r * view->ld;
}

static int64_t token_of(const struct kt_gather_args *a, int64_t r)
{
    return a->index ? a->index[r] : r;
}

static float weight_of(const struct kt_gather_args *a, int64_t r)
{
    return a->weights ? a->weights[a->slots[r]] : 1;
}

static void run(struct kt_device *dev, const void *args, int64_t rows, kt_range_fn fn)
{
    struct rows of = {&kt_cpu(dev)->kernels.row, args};
    kt_parallel_for(kt_cpu(dev)->pool, rows, ROWS_A_TASK, fn, &of);
}

static void gather(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *of = arg;
    const struct kt_gather_args *a = of->args;
    (void)thread;
    for (int64_t r = begin; r < end; r++)
        of->row->scale_add(a->dim, weight_of(a, r), row_at(&a->x, token_of(a, r)), false,
                           row_at(&a->y, r));
}

void kt_cpu_gather(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, args, ((const struct kt_gather_args *)args)->rows, gather);
}

static void scatter_add(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *of = arg;
    const struct kt_gather_args *a = of->args;
    (void)thread;
    for (int64_t i = begin * a->topk; i < end * a->topk; i++) {
        int64_t r = a->token_rows[i] - a->first_row;
        if (r >= 0 && r < a->rows)
            of->row->scale_add(a->dim, weight_of(a, r), row_at(&a->x, r), true,
                               row_at(&a->y, i / a->topk));
    }
}

void kt_cpu_scatter_add(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, args, ((const struct kt_gather_args *)args)->tokens, scatter_add);
}

static void weigh(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows *of = arg;
    const struct kt_weigh_args *a = of->args;
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        float *dh = row_at(&a->dh, r);
        a->dweights[a->slots[r]] = of->row->dot(a->dim, dh, row_at(&a->h, r));
        of->row->scale_add(a->dim, a->weights[a->slots[r]], dh, false, dh);
    }
}

void kt_cpu_weigh(struct kt_device *dev, const void *args, void *scratch)
{
    (void)scratch;
    run(dev, args, ((const struct kt_weigh_args *)args)->rows, weigh);
}
