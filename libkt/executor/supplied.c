/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/supplied.h"

enum { ALIGNMENT = 64 };

/** Scales that a weight reads, counted from the first. */
static uint64_t num_scales(const struct kt_weight *w)
{
    if (!w->scale)
        return 0;
    return (uint64_t)((w->first_row + w->rows - 1) / w->scale_rows * w->scale_ld +
                      (w->cols - 1) / w->scale_cols + 1);
}

static uint64_t place(uint64_t *at, uint64_t bytes)
{
    uint64_t begin = *at;
    *at = (begin + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return begin;
}

struct kt_supplied kt_supplied_place(const struct kt_weight *w, uint64_t *bytes)
{
    struct kt_supplied s = {.weight = w,
                            .data_bytes =
                                (uint64_t)w->rows * kt_format_row_bytes(w->dtype, w->cols),
                            .scale_bytes = num_scales(w) * sizeof *w->scale};
    s.data = place(bytes, s.data_bytes);
    s.scale = place(bytes, s.scale_bytes);
    return s;
}

void kt_supplied_send(const struct kt_supplied *s, const struct kt_runner *run, char *block)
{
    kt_run_copy(run, KT_QUEUE_SUPPLY, block + s->data, s->weight->data, s->data_bytes);
    kt_run_copy(run, KT_QUEUE_SUPPLY, block + s->scale, s->weight->scale, s->scale_bytes);
}

struct kt_weight kt_supplied_weight(const struct kt_supplied *s, char *block)
{
    struct kt_weight w = *s->weight;
    w.data = block + s->data;
    if (w.scale)
        w.scale = (const float *)(const void *)(block + s->scale);
    return w;
}
