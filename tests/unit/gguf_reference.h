/* SPDX-License-Identifier: Apache-2.0 */
/** \file gguf_reference.h
 * Files of tests/reference/gguf. */
#ifndef KT_TESTS_GGUF_REFERENCE_H
#define KT_TESTS_GGUF_REFERENCE_H

#include <check.h>
#include <stdio.h>

/** In one of a few static buffers. */
static inline const char *reference_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/gguf/%s", KT_REFERENCE_DIR, name);
    return path;
}

/** Reads a whole file; its size. */
static inline size_t reference_read(const char *name, void *bytes, size_t capacity)
{
    FILE *f = fopen(reference_path(name), "rb");
    ck_assert_ptr_nonnull(f);
    size_t size = fread(bytes, 1, capacity, f);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_uint_lt(size, capacity);
    return size;
}

#endif
