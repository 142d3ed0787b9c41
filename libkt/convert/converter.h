/* SPDX-License-Identifier: Apache-2.0 */
/** \file convert/converter.h
 * The parts of kt_convert: what becomes of each tensor, the stream of a tensor's numbers, and the
 * folder that is written into. */
#ifndef KT_CONVERT_CONVERTER_H
#define KT_CONVERT_CONVERTER_H

#include <jansson.h>
#include <kt/convert.h>

#include "formats/atomic_file.h"
#include "formats/safetensors.h"
#include "model/model.h"

/** FP8 scales are for 128 x 128 elements, INT4 scales for 128 of a row. */
enum { KT_CONVERT_BLOCK = 128 };

struct kt_converter {
    kt_context *ctx;
    struct kt_model *model; /**< of the source */
    kt_dtype to;
    bool experts_only;

    const char *target;
    int folder;         /**< open for its lock; -1 = not yet */
    bool created;       /**< the folder was not there before */
    bool recorded;      /**< the record of this conversion was not there before */
    uint64_t converted; /**< tensors */

    uint64_t done, total; /**< bytes of the source */
    void *output;         /**< see stream.c */
    float *scales, *scratch;
};

/* What becomes of a tensor: choice.c */

/** Whether a tensor is converted. */
bool kt_convert_is_chosen(const struct kt_converter *c, const struct kt_tensor *t);
/** The same, and such a tensor as a weight with its scales, which may be NULL. Errors: as
 * kt_tensor_weight's; UNSUPPORTED when the format cannot hold it. */
kt_status kt_convert_choose(const struct kt_converter *c, const struct kt_tensor *t,
                            struct kt_weight *weight, const struct kt_tensor **scales,
                            bool *chosen);
/** Whether it holds the scales of a tensor that is converted. */
bool kt_convert_drops(const struct kt_converter *c, const struct kt_tensor *t);
/** Whether it is a quantised matrix with scales. */
bool kt_convert_is_quantised(const struct kt_converter *c, const struct kt_tensor *t);

/* Shards: shard.c */

struct kt_convert_entry {
    const struct kt_tensor *from; /**< NULL: scales that another entry makes */
    struct kt_tensor to;          /**< its data are never set */
    uint64_t offset;              /**< in the file */
    bool converts;
    struct kt_weight weight;             /**< of a tensor that is converted */
    const struct kt_tensor *from_scales; /**< NULL = none */
    struct kt_convert_entry *to_scales;  /**< NULL = none */
};

/** One file of the target. */
struct kt_convert_shard {
    char *name;                       /**< without the folder */
    struct kt_convert_entry *entries; /**< in the order of the source; may be none */
    size_t num;
    char *header;
    size_t header_size;
    uint64_t size, source_size;
};

/** What becomes of file `index` of the source. Errors: as kt_convert_choose's, OUT_OF_MEMORY. */
kt_status kt_convert_plan_shard(struct kt_converter *c, size_t index,
                                struct kt_convert_shard *shard);
void kt_convert_free_shard(struct kt_convert_shard *shard);
/** Whether the target has the whole file; STATE when it has another one of that name. */
kt_status kt_convert_is_whole(const struct kt_converter *c, const struct kt_convert_shard *shard,
                              bool *whole);
kt_status kt_convert_write_shard(struct kt_converter *c, const struct kt_convert_shard *shard);

/* Numbers: stream.c */

kt_status kt_convert_allocate(struct kt_converter *c);
void kt_convert_release(struct kt_converter *c);
/** Writes the numbers of an entry, and its scales, to their places. Errors: NUMERIC, IO, CANCELLED,
 * OUT_OF_MEMORY. */
kt_status kt_convert_stream(struct kt_converter *c, const struct kt_convert_entry *entry,
                            struct kt_atomic_file *file);

/* The folder: folder.c */

/** Makes the folder or goes on with it: locks it, compares or writes the record of this conversion,
 * removes what a killed run left. Errors: INVALID_ARGUMENT (it is the source), STATE, IO. */
kt_status kt_convert_open_folder(struct kt_converter *c);
/** IO when the file system has less than `bytes` to give. */
kt_status kt_convert_check_space(const struct kt_converter *c, uint64_t bytes);
/** Removes the record, so that the folder is a checkpoint like any other. */
kt_status kt_convert_finish_folder(struct kt_converter *c);
/** Unlocks; with `undo` removes what kt_convert_open_folder made. */
void kt_convert_close_folder(struct kt_converter *c, bool undo);

/* Files beside the shards: files.c */

/** The tokenizer, generation_config.json and other small files, bit for bit. */
kt_status kt_convert_copy_files(const struct kt_converter *c);
/** model.safetensors.index.json, from pairs of tensor and file. */
kt_status kt_convert_write_index(const struct kt_converter *c, json_t *weight_map,
                                 uint64_t total_size);
/** config.json with the quantization_config that belongs to the target. */
kt_status kt_convert_write_config(const struct kt_converter *c);

#endif
