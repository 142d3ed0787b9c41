/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/atomic_file.h
 * Files that appear whole or not at all: written beside their target under a name of their own
 * (TARGET.PID-N.tmp, never through a link), flushed to the disk and renamed. A crash or a full disk
 * leaves the target as it was. Who writes holds a lock (flock) on the unfinished file; the next
 * writer of the same target removes those that nobody holds. */
#ifndef KT_FORMATS_ATOMIC_FILE_H
#define KT_FORMATS_ATOMIC_FILE_H

#include <kt/types.h>

struct kt_atomic_file;

/** Begins a file that will become `path`. Errors (all calls): IO with the path and the system's
 * reason (no such folder, permission, disk full, quota; a folder, device or pipe is not replaced),
 * OUT_OF_MEMORY. */
kt_status kt_atomic_open(kt_context *ctx, const char *path, struct kt_atomic_file **out);
/** Appends. After an error the file can only be closed. */
kt_status kt_atomic_write(struct kt_atomic_file *file, const void *data, size_t bytes);
/** Writes at a place of its own, whatever was appended; a file is written in one way or the other.
 */
kt_status kt_atomic_write_at(struct kt_atomic_file *file, uint64_t offset, const void *data,
                             size_t bytes);
/** Flushes, renames, flushes the folder and frees `file`. On error the target is untouched and
 * nothing is left behind, unless it is the folder that could not be flushed. */
kt_status kt_atomic_commit(struct kt_atomic_file *file);
/** Removes what was written and frees `file`. NULL is allowed. */
void kt_atomic_discard(struct kt_atomic_file *file);

/** All of the above for contents that are in memory. */
kt_status kt_atomic_write_file(kt_context *ctx, const char *path, const void *data, size_t bytes);

/** Is this what unfinished files are called? */
bool kt_atomic_is_unfinished(const char *name);
/** Makes names in a folder durable. 0, or -1 with errno set; some file systems cannot, which loses
 * nothing that they promise. */
int kt_sync_folder(const char *folder);

#endif
