/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/zstd_file.h
 * A container of named sections of bytes, each compressed with zstd and checked by its checksum:
 * optimizer moments, counters and the like. Numbers in it are little-endian.
 *
 *     8 bytes  "KTSTATE" and the container's version, 1
 *     string   kind of content, such as "optimizer"    (string: 1 byte length, then the bytes)
 *     4 bytes  version of that kind
 *     4 bytes  number of sections
 *     each:    string name, 8 bytes of size before compression, one zstd frame */
#ifndef KT_FORMATS_ZSTD_FILE_H
#define KT_FORMATS_ZSTD_FILE_H

#include <kt/types.h>

struct kt_section {
    const char *name; /**< 1 to 255 bytes, once in a file */
    const void *data;
    uint64_t bytes;
};

/** Writes the sections in their order, whole or not at all. Errors: IO, OUT_OF_MEMORY,
 * INVALID_ARGUMENT (a name too long or given twice). */
kt_status kt_zstd_write(kt_context *ctx, const char *path, const char *kind, uint32_t version,
                        const struct kt_section *sections, size_t num);

struct kt_zstd_file;

/** Opens a container of this kind and version. Errors: NOT_FOUND, IO, FORMAT (not a container of
 * this kind, truncated, damaged), UNSUPPORTED (another version). */
kt_status kt_zstd_open(kt_context *ctx, const char *path, const char *kind, uint32_t version,
                       struct kt_zstd_file **out);
void kt_zstd_close(struct kt_zstd_file *file);

/** Whether there is a section of that name; *bytes (may be NULL) gets its size. */
bool kt_zstd_has(const struct kt_zstd_file *file, const char *name, uint64_t *bytes);

/** Reads a section of exactly `bytes` bytes into `to`. Errors: NOT_FOUND (no such section),
 * MISMATCH (another size), FORMAT (damaged); `to` may hold part of the data then. */
kt_status kt_zstd_read(const struct kt_zstd_file *file, const char *name, void *to, uint64_t bytes);

#endif
