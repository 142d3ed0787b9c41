/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/pages.h
 * Has the pages of the mapped checkpoint in memory when a unit (a layer, or the head behind the
 * last) is used. Where memory holds the checkpoint the system is asked for the next unit's pages
 * while one is computed, and keeps them. Where it does not, a window of units is in memory
 * (window.h), and a unit is waited for. Where few tokens choose few of a layer's experts, those are
 * read once they are known. */
#ifndef KT_EXECUTOR_PAGES_H
#define KT_EXECUTOR_PAGES_H

#include "backend/experts.h"
#include "executor/walk.h"
#include "model/model.h"

struct kt_pages;

/** For `num` units. Errors: OUT_OF_MEMORY. */
kt_status kt_pages_create(const kt_model *model, int32_t num, struct kt_pages **out);
/** NULL is allowed. */
void kt_pages_free(struct kt_pages *pages);
/** A unit has weights and, unless `layer` is NULL, its routed experts. Errors: OUT_OF_MEMORY. */
kt_status kt_pages_add(struct kt_pages *pages, int32_t unit, const struct kt_weight *const *weights,
                       int32_t num, const struct kt_layer *layer);

/** A device has pinned the checkpoint: it stays in memory. */
void kt_pages_pinned(struct kt_pages *pages);

/** How units are entered. */
struct kt_pages_walk {
    enum kt_walk walk;
    bool sparse; /**< few of a layer's experts will be used: kt_pages_experts says which */
};

/** Has a unit's pages read, unless they are faults to come, and those of `then` (-1 = unknown)
 * after them. Errors: IO (a file has changed, or cannot be read), CANCELLED. */
kt_status kt_pages_enter(struct kt_pages *pages, struct kt_pages_walk walk, int32_t unit,
                         int32_t then);
/** Reads the experts that have rows, of the layer that was entered. Errors: IO, OUT_OF_MEMORY. */
kt_status kt_pages_experts(struct kt_pages *pages, const struct kt_layer *layer,
                           const struct kt_routing *routing);
/** Reads rows of a table, where memory does not hold the checkpoint. Errors: IO, OUT_OF_MEMORY. */
kt_status kt_pages_rows(struct kt_pages *pages, const struct kt_weight *table, const int32_t *ids,
                        int64_t num);
/** Whether the files of a unit are as they were. Errors: IO. */
kt_status kt_pages_check(const struct kt_pages *pages, int32_t unit);
/** Whether reading a unit now would wait for the disk, as far as is known. */
bool kt_pages_lack(const struct kt_pages *pages, int32_t unit);

/** Whether memory cannot hold the checkpoint at all. */
bool kt_pages_overflow(const kt_model *model);

#endif
