/* SPDX-License-Identifier: Apache-2.0 */
/* Products with weights. A weight that the product can't read as it lies is decoded into scratch
 * before, by strips of its rows where it is large. */
#include "backends/cuda/product.h"

#include "backends/cuda/decode_element.h"

enum {
    STRIP_BYTES = 256 << 20,
    STRIP_STEP = 128 /* rows of which a strip is a multiple, so that results stay aligned */
};

struct linear {
    kt_dtype dtype; /* of the factors */
    int64_t n;      /* features of y */
    bool decodes;
    int64_t strip; /* rows of the weight that are multiplied at a time */
    void *weight;  /* where a strip is decoded */
    struct kt_cuda_factor x;
    bool rounds; /* y is summed in scratch, in F32, and rounded at the end */
    struct kt_view y;
    uint64_t scratch;
};

static int64_t strip_rows(const struct kt_weight *w, int64_t row_bytes)
{
    int64_t most = STRIP_BYTES / row_bytes;
    most = most < STRIP_STEP ? STRIP_STEP : most / STRIP_STEP * STRIP_STEP;
    return w->rows < most ? w->rows : most;
}

static struct linear plan(const struct kt_linear_args *a, bool backward, void *scratch)
{
    const struct kt_weight *w = &a->weight;
    struct kt_cuda_pieces pieces = {.base = (char *)scratch};
    struct linear p = {.dtype = a->compute == KT_COMPUTE_BF16 ? KT_DTYPE_BF16 : KT_DTYPE_F32,
                       .n = backward ? w->cols : w->rows,
                       .strip = w->rows,
                       .y = a->y};
    if (a->tokens <= 0 || p.n <= 0)
        return p;
    p.decodes = w->dtype != p.dtype || w->scale;
    if (p.decodes && w->cols > 0) {
        int64_t row = w->cols * kt_view_element(p.dtype);
        p.strip = strip_rows(w, row);
        p.weight = kt_cuda_piece(&pieces, (uint64_t)(p.strip * row));
    }
    p.x = kt_cuda_factor(&pieces, a->x, a->tokens, backward ? w->rows : w->cols, p.dtype);
    p.rounds =
        a->y.dtype == KT_DTYPE_BF16 && (p.dtype == KT_DTYPE_F32 || (backward && p.strip < w->rows));
    if (p.rounds)
        p.y = kt_cuda_piece_view(&pieces, a->tokens, p.n, KT_DTYPE_F32);
    p.scratch = pieces.used;
    return p;
}

/* Rows of the weight from `begin` on, as the product reads them. */
static struct kt_view strip_at(struct kt_cuda_device *cuda, const struct kt_weight *w,
                               const struct linear *p, int64_t begin, int64_t rows)
{
    struct kt_weight strip = *w;
    strip.data = (const char *)w->data + begin * kt_cuda_row_bytes(w->dtype, w->cols);
    strip.first_row += begin;
    strip.rows = rows;
    if (p->decodes)
        kt_cuda_decode(cuda, &strip, p->dtype, p->weight);
    return (struct kt_view){.data = p->decodes ? p->weight : (void *)(uintptr_t)strip.data,
                            .ld = w->cols,
                            .dtype = p->dtype};
}

static void multiply(struct kt_cuda_device *cuda, const struct kt_linear_args *a, bool backward,
                     const struct linear *p)
{
    const struct kt_weight *w = &a->weight;
    int64_t begin = 0;
    do {
        int64_t rows = w->rows - begin < p->strip ? w->rows - begin : p->strip;
        struct kt_gemm_args g = {.trans_b = !backward,
                                 .m = a->tokens,
                                 .n = backward ? w->cols : rows,
                                 .k = backward ? rows : w->cols,
                                 .alpha = 1,
                                 .a = p->x.view,
                                 .b = strip_at(cuda, w, p, begin, rows),
                                 .c = p->y,
                                 .accumulate = a->accumulate && !p->rounds};
        if (backward)
            g.a = kt_view_at(g.a, 0, begin);
        else
            g.c = kt_view_at(g.c, 0, begin);
        g.accumulate |= backward && begin > 0;
        kt_cuda_multiply(cuda, &g);
        begin += rows;
    } while (begin < w->rows);
}

static void run(struct kt_cuda_device *cuda, const struct kt_linear_args *a, bool backward,
                void *scratch)
{
    struct linear p = plan(a, backward, scratch);
    if (a->tokens <= 0 || p.n <= 0 || kt_cuda_linears_few(cuda, 1, a, backward))
        return;
    kt_cuda_factor_fill(cuda, &p.x);
    multiply(cuda, a, backward, &p);
    if (p.rounds)
        kt_cuda_cast(cuda, a->tokens, p.n, p.y, a->y, a->accumulate);
}

void kt_cuda_linear_forward(struct kt_device *dev, const void *args, void *scratch)
{
    run(kt_cuda(dev), args, false, scratch);
}

void kt_cuda_linear_backward(struct kt_device *dev, const void *args, void *scratch)
{
    run(kt_cuda(dev), args, true, scratch);
}

uint64_t kt_cuda_linear_forward_scratch(const struct kt_cuda_device *cuda,
                                        const struct kt_linear_args *a)
{
    (void)cuda;
    return plan(a, false, NULL).scratch;
}

uint64_t kt_cuda_linear_backward_scratch(const struct kt_cuda_device *cuda,
                                         const struct kt_linear_args *a)
{
    (void)cuda;
    return plan(a, true, NULL).scratch;
}
