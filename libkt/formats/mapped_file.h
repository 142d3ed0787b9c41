/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/mapped_file.h
 * Files mapped read-only: nothing is read before it is used, and the page cache is shared with
 * other processes. A mapped file must not be truncated: reading what is gone is a fault (SIGBUS),
 * so long work asks kt_mapped_file_check before each part of it. */
#ifndef KT_FORMATS_MAPPED_FILE_H
#define KT_FORMATS_MAPPED_FILE_H

#include <kt/types.h>

struct kt_mapped_file {
    char *path;
    void *map; /**< NULL = none */
    uint64_t size;
    int fd; /**< of the file, while there is a map */
};

/** Maps the regular file `path`, which `file` then owns, on errors too. Errors: NOT_FOUND, IO,
 * FORMAT (empty), OUT_OF_MEMORY (path NULL, so that a join can be passed as it is). */
kt_status kt_map_file(kt_context *ctx, char *path, struct kt_mapped_file *file);
/** Whether all that was mapped is still there. Errors: IO (truncated since). */
kt_status kt_mapped_file_check(kt_context *ctx, const struct kt_mapped_file *file);
/** Whether mincore tells this process which pages are in memory: of others' files that it may not
 * write, Linux says that all are. */
bool kt_mapped_file_tells(const struct kt_mapped_file *file);
/** Allowed on a file that was never mapped, if it is zero. */
void kt_unmap_file(struct kt_mapped_file *file);

#endif
