/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/sources.h"

#include <stdlib.h>
#include <string.h>

#include "backend/experts.h"
#include "core/context.h"
#include "formats/safetensors.h"

static int by_address(const void *a, const void *b)
{
    const struct kt_range *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static void join(struct kt_ranges *r)
{
    enum { GAP = 1 << 20 };
    int32_t num = 0;
    qsort(r->ranges, (size_t)r->num, sizeof *r->ranges, by_address);
    for (int32_t i = 1; i < r->num; i++) {
        struct kt_range *last = &r->ranges[num], *next = &r->ranges[i];
        if (next->begin - last->end < GAP)
            last->end = next->end > last->end ? next->end : last->end;
        else
            r->ranges[++num] = *next;
    }
    r->num = r->num ? num + 1 : 0;
    for (int32_t i = 0; i < r->num; i++)
        r->bytes += (uint64_t)(r->ranges[i].end - r->ranges[i].begin);
}

struct kt_range kt_source_of(const kt_model *model, const struct kt_weight *w)
{
    const struct kt_checkpoint *c = model->checkpoint;
    const char *begin = w->data;
    if (kt_checkpoint_file(c, begin) >= c->num_files)
        return (struct kt_range){begin, begin};
    return (struct kt_range){begin,
                             begin + (uint64_t)w->rows * kt_format_row_bytes(w->dtype, w->cols)};
}

static void add_file(const kt_model *model, struct kt_sources *s, const char *data)
{
    const struct kt_checkpoint *c = model->checkpoint;
    int32_t file = (int32_t)kt_checkpoint_file(c, data);
    for (int32_t i = 0; i < s->num_files; i++)
        if (s->files[i] == file)
            return;
    s->files[s->num_files++] = file;
    s->tells = s->tells && kt_mapped_file_tells(&c->files[file]);
}

static void add(const kt_model *model, struct kt_sources *s, struct kt_ranges *to,
                const struct kt_weight *w)
{
    struct kt_range range = kt_source_of(model, w);
    if (range.begin == range.end)
        return;
    to->ranges[to->num++] = range;
    add_file(model, s, range.begin);
}

kt_status kt_sources_find(const kt_model *model, const struct kt_weight *const *weights,
                          int32_t num, const struct kt_layer *layer, struct kt_sources *s)
{
    int32_t experts = layer && layer->is_moe ? model->config.n_routed_experts : 0;
    size_t files = model->checkpoint->num_files, ranges = (size_t)num + 3 * (size_t)experts;
    *s = (struct kt_sources){.tells = true};
    s->files = calloc(files + 1, sizeof *s->files);
    s->whole.ranges = calloc(ranges + 1, sizeof *s->whole.ranges);
    s->base.ranges = calloc((size_t)num + 1, sizeof *s->base.ranges);
    if (!s->files || !s->whole.ranges || !s->base.ranges)
        return kt_fail_memory(
            model->ctx, files * sizeof *s->files + ranges * sizeof(struct kt_range), "an executor");
    for (int32_t i = 0; i < num; i++) {
        add(model, s, &s->whole, weights[i]);
        add(model, s, &s->base, weights[i]);
    }
    for (int k = 0; k < KT_EXPERT_LINEARS; k++)
        for (int32_t e = 0; e < experts; e++)
            add(model, s, &s->whole, &layer->expert_weights[k][e]);
    join(&s->whole);
    join(&s->base);
    return KT_OK;
}

void kt_sources_free(struct kt_sources *s)
{
    free(s->files);
    free(s->whole.ranges);
    free(s->base.ranges);
    *s = (struct kt_sources){0};
}
