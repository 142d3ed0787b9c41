/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/gguf.h
 * GGUF files, versions 2 and 3, little-endian: a header with metadata (typed values by key), the
 * descriptions of tensors, then their data, each at a multiple of the alignment. A model may be
 * split into files NAME-00001-of-0000N.gguf, of which the first holds the metadata.
 *
 * A kt_gguf is immutable after opening and may be read by several threads. Its data are the mapped
 * files: they must not be truncated while it is open. */
#ifndef KT_FORMATS_GGUF_H
#define KT_FORMATS_GGUF_H

#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"

struct kt_gguf {
    kt_context *ctx;
    /** Tensors of all files, named as there. Shapes are row-major: the file's dimensions reversed.
     * Types that no kt_dtype stands for are KT_DTYPE_UNKNOWN, with their name in dtype_name. */
    struct kt_tensor *tensors;
    size_t num_tensors;
    struct kt_mapped_file *files; /**< in the order of their numbers */
    size_t num_files;
    /** An object: numbers, booleans and strings by their keys, and arrays of integers, booleans and
     * strings; null for arrays of floats and for strings that are not UTF-8. Float32 numbers become
     * the shortest decimal that stands for them: 1e-6f is 1e-6, as it was in config.json. */
    json_t *metadata;
};

/** Whether a path names a GGUF file: it ends in ".gguf". */
bool kt_gguf_is_name(const char *path);

/** Finds the GGUF model that a path means: a file whose name ends in .gguf, or a folder without
 * safetensors that holds one model in such files. *file (free with free) is its only or first file;
 * NULL when the path means none. Errors: FORMAT (several models in the folder), OUT_OF_MEMORY. */
kt_status kt_gguf_locate(kt_context *ctx, const char *path, char **file);

/** Maps a file, and the others of its set if it is one of several. All lengths, counts, types and
 * ranges are checked against the files. Errors: NOT_FOUND (a file of the set), IO, FORMAT
 * (malformed, truncated, tensors overlap), UNSUPPORTED (version 1, big-endian), OUT_OF_MEMORY; each
 * names the file, and the key or tensor where there is one. */
kt_status kt_gguf_open(kt_context *ctx, const char *path, struct kt_gguf **out);
void kt_gguf_close(struct kt_gguf *gguf);

/** NULL when there is none of that name. */
const struct kt_tensor *kt_gguf_find(const struct kt_gguf *gguf, const char *name);

/** The metadata to read keys from, with errors that name the first file. */
struct kt_json kt_gguf_json(const struct kt_gguf *gguf);

#endif
