/* SPDX-License-Identifier: Apache-2.0 */
/** \file files.h
 * Files and folders. Functions return 0, or -1 with errno set. */
#ifndef KT_FILES_H
#define KT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/** Writes beside `path` under a name of its own and renames, so that the old file stays whole until
 * the new one is on the disk; removes what earlier writers of `path` left when they were killed. A
 * folder (EISDIR), a device or a pipe (ENOTSUP) is not replaced. */
int file_write(const char *path, const void *data, size_t size);
/** Appends in one write; never through a link. */
int file_append(const char *path, const void *data, size_t size);
/** The whole file with a zero byte after it, in new memory; NULL on error. Refuses what is no
 * regular file (ENOTSUP) and more than 1 GiB (EFBIG). */
char *file_read(const char *path, size_t *size);
/** The same of what is left of a stream, of whatever kind. */
char *stream_read(FILE *file, size_t *size);
int file_copy(const char *from, const char *to);
/** Also true of what cannot be looked at: opening it tells why. */
bool file_exists(const char *path);
/** Size and a hash (FNV-1a over words of 64 bits), which any change of one word changes. */
int file_hash(const char *path, uint64_t *size, uint64_t *hash);

bool folder_exists(const char *path);
/** mkdir -p. */
int folder_make(const char *path);
/** Can files be created in it? Tries with a file of its own. */
int folder_probe(const char *path);
/** Locks the first folder that it is asked for until the process ends; -1 when another process
 * holds the lock. Where folders cannot be locked, nothing is. */
int folder_lock(const char *path);
/** Makes the names in it durable. */
int folder_sync(const char *path);
/** Removes unfinished files that nobody writes. */
void folder_clean(const char *path);
/** rm -r; a folder that does not exist is fine. */
int folder_remove(const char *path);

#endif
