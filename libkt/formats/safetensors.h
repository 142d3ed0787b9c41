/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/safetensors.h
 * Tensors in safetensors files: 8 bytes little-endian header length, a JSON header with dtype,
 * shape and byte range of each tensor, then the tensors one after another.
 *
 * A checkpoint is immutable after opening and may be read by several threads. Its data are the
 * mapped file: they must not be truncated while it is open. */
#ifndef KT_FORMATS_SAFETENSORS_H
#define KT_FORMATS_SAFETENSORS_H

#include <kt/types.h>

struct kt_mapped_file;

enum { KT_MAX_DIMENSIONS = 8 };

struct kt_tensor {
    const char *name;
    const char *file;       /**< path of its file; ignored by the writer */
    kt_dtype dtype;         /**< KT_DTYPE_UNKNOWN: data can be copied, not understood */
    const char *dtype_name; /**< as in the file, owned; ignored by the writer */
    int32_t ndim;
    int64_t shape[KT_MAX_DIMENSIONS];
    const void *data; /**< row-major; aligned as the file has it, usually to the element */
    uint64_t bytes;
};

struct kt_checkpoint {
    struct kt_tensor *tensors; /**< [num_tensors], ascending by name; names are owned */
    size_t num_tensors;
    struct kt_mapped_file *files;
    size_t num_files;
    void **owned; /**< [num_owned] buffers of tensors that do not lie in a file as they are */
    size_t num_owned;
    kt_context *ctx;
};

/** Maps `path`: a .safetensors file, or a folder with model.safetensors, or with
 * model.safetensors.index.json and the shards that it names. Every header is checked: lengths,
 * ranges without gap or overlap, shape x dtype against the range, names once only.
 * Errors: NOT_FOUND (file, shard, a tensor that the index promises), IO, FORMAT (malformed or
 * truncated), OUT_OF_MEMORY; each names the file, and the tensor where there is one. */
kt_status kt_checkpoint_open(kt_context *ctx, const char *path, struct kt_checkpoint **out);
void kt_checkpoint_close(struct kt_checkpoint *checkpoint);

/** Sorts the tensors by name, which kt_checkpoint_find relies on. FORMAT when two have the same. */
kt_status kt_checkpoint_sort(struct kt_checkpoint *checkpoint);

/** Whether the file that holds `data` still has all that was mapped; true of data in no file.
 * Errors: IO (it was truncated since). */
kt_status kt_checkpoint_check(const struct kt_checkpoint *checkpoint, const void *data);
/** The index of that file; num_files for data in none. */
size_t kt_checkpoint_file(const struct kt_checkpoint *checkpoint, const void *data);

/** NULL when there is none of that name. */
const struct kt_tensor *kt_checkpoint_find(const struct kt_checkpoint *checkpoint,
                                           const char *name);

/** Text such as "[128, 64]" in `text`; returns `text`. */
const char *kt_shape_text(int32_t ndim, const int64_t *shape, char *text, size_t size);

/** What a file of these tensors begins with: the length and the header, padded; free(*header). Data
 * of the tensors follow it, in the given order, without gaps. `path` is for errors; otherwise as
 * kt_safetensors_write. */
kt_status kt_safetensors_header(kt_context *ctx, const char *path, const struct kt_tensor *tensors,
                                size_t num, const char *const *metadata, char **header,
                                size_t *size);

/** Writes tensors in the given order, whole or not at all (see atomic_file.h). `metadata`: pairs of
 * strings, key, value, ..., NULL; or NULL for none. tensors[i].bytes must fit shape and dtype.
 * Errors: IO, OUT_OF_MEMORY, INVALID_ARGUMENT (a name twice, sizes that do not fit). */
kt_status kt_safetensors_write(kt_context *ctx, const char *path, const struct kt_tensor *tensors,
                               size_t num, const char *const *metadata);

#endif
