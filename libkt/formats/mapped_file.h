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
    int fd;           /**< of the file, while there is a map */
    bool reads_ahead; /**< the system reads a megabyte or more where it has a fault */
};

/** Mapped bytes. */
struct kt_range {
    const char *begin, *end;
};

/** Maps the regular file `path`, which `file` then owns, on errors too. Errors: NOT_FOUND, IO,
 * FORMAT (empty), OUT_OF_MEMORY (path NULL, so that a join can be passed as it is). */
kt_status kt_map_file(kt_context *ctx, char *path, struct kt_mapped_file *file);
/** Whether all that was mapped is still there. Errors: IO (truncated since). */
kt_status kt_mapped_file_check(kt_context *ctx, const struct kt_mapped_file *file);
/** Whether mincore tells this process which pages are in memory: of others' files that it may not
 * write, Linux says that all are. */
bool kt_mapped_file_tells(const struct kt_mapped_file *file);

/** Asks the system to read a range of a map, all of it, and returns at once. */
void kt_want_pages(struct kt_range range);
/** Faults of a range of a map will read no more than their page. */
void kt_scatter_pages(struct kt_range range);
/** Brings a range of the map into memory and into this process; 0, or the error, also for what
 * would be a SIGBUS to read: a file that was truncated, a disk that fails. Where the system reads
 * little ahead it is read through `buffer`, of KT_FETCH_BYTES, which asks the disk for as much at a
 * time; with NULL it is read as faults would. */
enum { KT_FETCH_BYTES = 4 << 20 };
int kt_mapped_file_fetch(const struct kt_mapped_file *file, struct kt_range range, char *buffer);
/** Gives up the whole pages of a range: those of this process, and those in memory that no
 * other process has mapped. They are read again when they are used. */
void kt_mapped_file_drop(const struct kt_mapped_file *file, struct kt_range range);
/** Allowed on a file that was never mapped, if it is zero. */
void kt_unmap_file(struct kt_mapped_file *file);

#endif
