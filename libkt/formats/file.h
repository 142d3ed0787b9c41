/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/file.h
 * Whole small files (configurations, vocabularies, datasets) into memory. */
#ifndef KT_FORMATS_FILE_H
#define KT_FORMATS_FILE_H

#include <kt/types.h>

/** Reads a regular file of at most `max_bytes` bytes; *data (free with free) has a zero byte beyond
 * *size. Errors, naming the file: NOT_FOUND (does not exist), IO (cannot be read, not a regular
 * file), FORMAT (larger than max_bytes), OUT_OF_MEMORY. */
kt_status kt_file_read(kt_context *ctx, const char *path, uint64_t max_bytes, char **data,
                       size_t *size);

/** True when `path` exists as a directory. */
bool kt_is_directory(const char *path);

/** True when `path` exists, whatever it is, and when that cannot be found out: opening it tells
 * why. */
bool kt_file_exists(const char *path);

/** "folder/name" (no doubled slash; `name` alone when it is absolute or folder is ""), malloc'ed;
 * NULL when memory ran out. */
char *kt_path_join(const char *folder, const char *name);

/** The file `name` in the folder of `file`; with name "" the folder, ending in '/', or "" where
 * `file` names none. malloc'ed; NULL when memory ran out. */
char *kt_path_beside(const char *file, const char *name);

#endif
