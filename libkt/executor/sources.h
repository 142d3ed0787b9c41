/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/sources.h
 * What of a checkpoint's files a unit (a layer, or the head) reads. */
#ifndef KT_EXECUTOR_SOURCES_H
#define KT_EXECUTOR_SOURCES_H

#include "formats/mapped_file.h"
#include "model/model.h"

/** Ranges of files, ascending; those with little between them are one. */
struct kt_ranges {
    struct kt_range *ranges; /**< [num] */
    int32_t num;
    uint64_t bytes;
};

struct kt_sources {
    int32_t *files; /**< [num_files] of the checkpoint, those that hold any of its weights */
    int32_t num_files;
    bool tells;             /**< the system says of all these files what of them is in memory */
    struct kt_ranges whole; /**< of all its data */
    struct kt_ranges base;  /**< the same without routed experts */
};

/** Of `num` weights and, where `layer` is not NULL, of its routed experts. What is in no file is
 * left out. Errors: OUT_OF_MEMORY; free it then, too. */
kt_status kt_sources_find(const kt_model *model, const struct kt_weight *const *weights,
                          int32_t num, const struct kt_layer *layer, struct kt_sources *out);
void kt_sources_free(struct kt_sources *sources);

/** The bytes of a weight in the checkpoint's files; empty where it is in none. */
struct kt_range kt_source_of(const kt_model *model, const struct kt_weight *weight);

#endif
