/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/pages.h"

#include <stdlib.h>

#include "core/clock.h"
#include "core/context.h"
#include "core/room.h"
#include "executor/read_ahead.h"
#include "executor/recent.h"
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
    bool pinned;   /**< a device keeps all of it in memory */
    bool windowed; /**< units are in memory as the window says */
    bool sparse;   /**< of them, without experts */
    struct kt_recent
        experts; /**< [num_hidden_layers * n_routed_experts] those that are read alone */
    struct kt_range *chosen; /**< [n_routed_experts * KT_EXPERT_LINEARS] */
    uint64_t room;           /**< for all units, as it was when it was last looked for */
    double looked_at;        /**< seconds; 0 = never */
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
    const struct kt_model_config *config = &model->config;
    size_t experts = (size_t)config->n_routed_experts;
    pages->chosen = calloc(experts * KT_EXPERT_LINEARS + 1, sizeof *pages->chosen);
    if (!pages->chosen)
        return kt_fail_memory(model->ctx, experts * sizeof *pages->chosen, "an executor");
    KT_TRY(kt_recent_create(model->ctx, config->num_hidden_layers * config->n_routed_experts,
                            &pages->experts));
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
    kt_recent_free(&pages->experts);
    free(pages->chosen);
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

/** The ranges of an expert of all layers' experts, into [KT_EXPERT_LINEARS]. */
static struct kt_ranges expert_ranges(const struct kt_pages *pages, int32_t index,
                                      struct kt_range *to)
{
    int32_t num = pages->model->config.n_routed_experts;
    const struct kt_layer *layer = &pages->model->layers[index / num];
    struct kt_ranges ranges = {.ranges = to, .num = KT_EXPERT_LINEARS};
    for (int k = 0; k < KT_EXPERT_LINEARS; k++) {
        to[k] = kt_source_of(pages->model, &layer->expert_weights[k][index % num]);
        ranges.bytes += (uint64_t)(to[k].end - to[k].begin);
    }
    return ranges;
}

/** Gives up experts that were read alone until they have so many bytes. */
static void drop_experts(struct kt_pages *pages, uint64_t budget)
{
    struct kt_range ranges[KT_EXPERT_LINEARS];
    for (int32_t e; (e = kt_recent_drop(&pages->experts, budget)) >= 0;) {
        struct kt_ranges expert = expert_ranges(pages, e, ranges);
        kt_window_drop(pages->model->checkpoint, &expert);
    }
}

static void begin_window(struct kt_pages *pages)
{
    char weights[KT_SIZE_TEXT], room[KT_SIZE_TEXT];
    for (int32_t u = 0; u < pages->num; u++)
        pages->resident[u] = false;
    kt_log(
        pages->model->ctx, KT_LOG_INFO,
        "the weights (%s) are more than memory has room for (%s): they are read from the disk as "
        "they are used",
        kt_size_text(pages->model->num_bytes, weights), kt_size_text(pages->room, room));
}

/** Begins to keep a window, or ends it. */
static void set_windowed(struct kt_pages *pages, bool windowed)
{
    if (pages->windowed == windowed)
        return;
    pages->windowed = windowed;
    if (windowed) {
        begin_window(pages);
        return;
    }
    kt_window_forget(pages->window);
    kt_recent_begin(&pages->experts);
    while (kt_recent_drop(&pages->experts, 0) >= 0)
        continue;
}

/** Looks for room from time to time: it costs as much as a small layer. */
static void look(struct kt_pages *pages)
{
    const double interval = 0.5;
    double now = kt_clock();
    if (pages->looked_at > 0 && now < pages->looked_at + interval)
        return;
    pages->looked_at = now;
    pages->room = kt_room_for_files(pages->model->ctx);
    set_windowed(pages, !pages->pinned && pages->model->num_bytes > pages->room);
}

/** This supply's part of the room. */
static uint64_t room_of(const struct kt_pages *pages)
{
    double part = (double)pages->bytes / (double)pages->model->num_bytes;
    return (uint64_t)((double)pages->room * part);
}

/** Where few experts are used: what every token needs, but for a quarter of the room. */
static uint64_t base_budget(const struct kt_pages *pages)
{
    uint64_t most = room_of(pages) / 4 * 3;
    return pages->base_bytes < most ? pages->base_bytes : most;
}

static kt_status enter_window(struct kt_pages *pages, struct kt_pages_walk walk, int32_t unit)
{
    if (pages->sparse && !walk.sparse) {
        kt_recent_begin(&pages->experts);
        drop_experts(pages, 0);
    }
    pages->sparse = walk.sparse;
    if (walk.sparse)
        return kt_window_enter(pages->window, pages->base, walk.walk, unit, base_budget(pages));
    return kt_window_enter(pages->window, pages->whole, walk.walk, unit, room_of(pages));
}

kt_status kt_pages_enter(struct kt_pages *pages, struct kt_pages_walk walk, int32_t unit,
                         int32_t then)
{
    KT_TRY(kt_pages_check(pages, unit));
    look(pages);
    if (pages->windowed)
        return enter_window(pages, walk, unit);
    if (then >= 0 && !pages->resident[then]) {
        const struct kt_sources *s = &pages->sources[then];
        kt_read_ahead_want(pages->reader, s->whole.ranges, s->whole.num, s->tells,
                           &pages->resident[then]);
    }
    return KT_OK;
}

/** A head that has the same table is read as a whole. */
static void scatter(const struct kt_pages *pages, const struct kt_weight *table)
{
    struct kt_range range = kt_source_of(pages->model, table);
    if (range.begin < range.end && table->data != pages->model->lm_head->weight.data)
        kt_scatter_pages(range);
}

kt_status kt_pages_rows(struct kt_pages *pages, const struct kt_weight *table, const int32_t *ids,
                        int64_t num)
{
    struct kt_range all = kt_source_of(pages->model, table);
    int64_t row = (int64_t)kt_format_row_bytes(table->dtype, table->cols);
    look(pages);
    if (!pages->windowed || all.begin == all.end)
        return KT_OK;
    scatter(pages, table);
    struct kt_ranges rows = {.ranges = calloc((size_t)num + 1, sizeof *rows.ranges),
                             .num = (int32_t)num};
    if (!rows.ranges)
        return kt_fail_memory(pages->model->ctx, (uint64_t)num * sizeof *rows.ranges,
                              "the embedding of tokens");
    for (int64_t t = 0; t < num; t++) {
        const char *begin = all.begin + ids[t] * row;
        rows.ranges[t] = (struct kt_range){begin, begin + row};
    }
    kt_status status = kt_window_read(pages->model->checkpoint, &rows);
    free(rows.ranges);
    return status;
}

bool kt_pages_lack(const struct kt_pages *pages, int32_t unit)
{
    return pages->windowed && !kt_window_holds(pages->window, unit);
}

kt_status kt_pages_experts(struct kt_pages *pages, const struct kt_layer *layer,
                           const struct kt_routing *routing)
{
    struct kt_ranges chosen = {.ranges = pages->chosen};
    int32_t first = (int32_t)(layer - pages->model->layers) * routing->num_experts;
    if (!pages->windowed || !pages->sparse)
        return KT_OK;
    kt_recent_begin(&pages->experts);
    for (int32_t e = 0; e < routing->num_experts; e++) {
        if (routing->first[e + 1] == routing->first[e])
            continue;
        struct kt_ranges expert = expert_ranges(pages, first + e, chosen.ranges + chosen.num);
        if (!kt_recent_use(&pages->experts, first + e, expert.bytes))
            chosen.num += expert.num;
    }
    drop_experts(pages, room_of(pages) - base_budget(pages));
    kt_status status = kt_window_read(pages->model->checkpoint, &chosen);
    if (status != KT_OK) { /* nobody knows which of them are there */
        kt_recent_begin(&pages->experts);
        drop_experts(pages, 0);
    }
    return status;
}
