/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pages.h"

#include <stdlib.h>
#include <time.h>

#include "core/context.h"
#include "core/room.h"
#include "executor/read_ahead.h"
#include "executor/sources.h"
#include "executor/window.h"
#include "formats/safetensors.h"

struct kt_pages {
    const kt_model *model;
    int32_t num;
    struct kt_sources *sources; /**< [num] */
    struct kt_ranges *whole;    /**< [num] theirs, as a window takes them */
    struct kt_ranges *base;
    uint64_t bytes, base_bytes; /**< of all units */
    struct kt_read_ahead *reader;
    _Atomic bool *resident; /**< [num] all of it was in memory once */
    struct kt_window *window;
    bool pinned;      /**< a device keeps all of it in memory */
    bool windowed;    /**< units are in memory as the window says */
    bool sparse;      /**< of them, without experts */
    uint64_t room;    /**< for all units, as it was when it was last looked for */
    double looked_at; /**< seconds; 0 = never */
};

bool kt_pages_overflow(const kt_model *model)
{
    return model->num_bytes > kt_context_host_memory(model->ctx);
}

kt_status kt_pages_create(const kt_model *model, int32_t num, struct kt_pages **out)
{
    struct kt_pages *pages = calloc(1, sizeof *pages);
    size_t n = (size_t)num;
    *out = pages;
    if (!pages)
        return kt_fail_memory(model->ctx, sizeof *pages, "an executor");
    pages->model = model;
    pages->num = num;
    pages->sources = calloc(n, sizeof *pages->sources);
    pages->whole = calloc(n, sizeof *pages->whole);
    pages->base = calloc(n, sizeof *pages->base);
    pages->resident = calloc(n, sizeof *pages->resident);
    if (!pages->sources || !pages->whole || !pages->base || !pages->resident)
        return kt_fail_memory(model->ctx, n * sizeof *pages->sources, "an executor");
    KT_TRY(kt_read_ahead_create(model->ctx, &pages->reader));
    return kt_window_create(model->checkpoint, num, &pages->window);
}

void kt_pages_free(struct kt_pages *pages)
{
    if (!pages)
        return;
    kt_read_ahead_free(pages->reader);
    kt_window_free(pages->window);
    for (int32_t u = 0; pages->sources && u < pages->num; u++)
        kt_sources_free(&pages->sources[u]);
    free(pages->sources);
    free(pages->whole);
    free(pages->base);
    free(pages->resident);
    free(pages);
}

kt_status kt_pages_add(struct kt_pages *pages, int32_t unit, const struct kt_weight *const *weights,
                       int32_t num, const struct kt_layer *layer)
{
    struct kt_sources *s = &pages->sources[unit];
    KT_TRY(kt_sources_find(pages->model, weights, num, layer, s));
    pages->whole[unit] = s->whole;
    pages->base[unit] = s->base;
    pages->bytes += s->whole.bytes;
    pages->base_bytes += s->base.bytes;
    return KT_OK;
}

void kt_pages_pinned(struct kt_pages *pages)
{
    pages->pinned = true;
}

kt_status kt_pages_check(const struct kt_pages *pages, int32_t unit)
{
    const kt_model *model = pages->model;
    const struct kt_sources *s = &pages->sources[unit];
    for (int32_t i = 0; i < s->num_files; i++)
        KT_TRY(kt_mapped_file_check(model->ctx, &model->checkpoint->files[s->files[i]]));
    return KT_OK;
}

/** Looks for room from time to time: it costs as much as a small layer. */
static void look(struct kt_pages *pages)
{
    const double interval = 0.5;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (pages->looked_at > 0 && now < pages->looked_at + interval)
        return;
    pages->looked_at = now;
    pages->room = kt_room_for_files(pages->model->ctx);
    pages->windowed = !pages->pinned && pages->model->num_bytes > pages->room;
    for (int32_t u = 0; pages->windowed && u < pages->num; u++)
        pages->resident[u] = false;
}

/** This supply's part of the room. Where units are read without experts these get half, which the
 * system shares out. */
static uint64_t budget_of(const struct kt_pages *pages)
{
    double part = (double)pages->bytes / (double)pages->model->num_bytes;
    uint64_t budget = (uint64_t)((double)pages->room * part);
    return pages->sparse ? budget / 2 : budget;
}

kt_status kt_pages_enter(struct kt_pages *pages, struct kt_pages_walk walk, int32_t unit,
                         int32_t then)
{
    KT_TRY(kt_pages_check(pages, unit));
    look(pages);
    if (pages->windowed) {
        pages->sparse = walk.sparse;
        return kt_window_enter(pages->window, walk.sparse ? pages->base : pages->whole, walk.walk,
                               unit, budget_of(pages));
    }
    if (then >= 0 && !pages->resident[then]) {
        const struct kt_sources *s = &pages->sources[then];
        kt_read_ahead_want(pages->reader, s->whole.ranges, s->whole.num, s->tells,
                           &pages->resident[then]);
    }
    return KT_OK;
}

bool kt_pages_lack(const struct kt_pages *pages, int32_t unit)
{
    return pages->windowed && !kt_window_holds(pages->window, unit);
}

kt_status kt_pages_experts(struct kt_pages *pages, const struct kt_layer *layer,
                           const struct kt_routing *routing)
{
    int32_t num = 0;
    if (!pages->windowed || !pages->sparse)
        return KT_OK;
    struct kt_range *ranges =
        calloc((size_t)routing->num_experts * KT_EXPERT_LINEARS + 1, sizeof *ranges);
    if (!ranges)
        return kt_fail_memory(pages->model->ctx, (uint64_t)routing->num_experts * sizeof *ranges,
                              "routed experts");
    for (int32_t e = 0; e < routing->num_experts; e++)
        for (int k = 0; routing->first[e + 1] > routing->first[e] && k < KT_EXPERT_LINEARS; k++)
            ranges[num++] = kt_source_of(pages->model, &layer->expert_weights[k][e]);
    kt_status status = kt_window_read(pages->model->checkpoint, ranges, num);
    free(ranges);
    return status;
}
