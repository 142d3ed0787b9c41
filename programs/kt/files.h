/* SPDX-License-Identifier: Apache-2.0 */
/** \file files.h
 * Files and folders. Functions return 0, or -1 with errno set. */
#ifndef KT_FILES_H
#define KT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/** Writes beside `path` and renames, so that the old file stays whole until the new one is. */
int file_write(const char *path, const void *data, size_t size);
/** Appends in one write. */
int file_append(const char *path, const void *data, size_t size);
/** The whole file with a zero byte after it, in new memory; NULL on error. */
char *file_read(const char *path, size_t *size);
int file_copy(const char *from, const char *to);

bool folder_exists(const char *path);
/** mkdir -p. */
int folder_make(const char *path);
/** Can files be created in it? Tries with a file of its own. */
int folder_probe(const char *path);
/** Locks the folder for this process until it ends; -1 when another holds the lock. Where folders
 * cannot be locked, nothing is. */
int folder_lock(const char *path);
/** rm -r; a folder that does not exist is fine. */
int folder_remove(const char *path);

#endif
