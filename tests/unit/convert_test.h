/* SPDX-License-Identifier: Apache-2.0 */
/** \file convert_test.h
 * What the tests of kt_convert share: folders below the fixture's, and conversions between them. */
#ifndef KT_TESTS_CONVERT_TEST_H
#define KT_TESTS_CONVERT_TEST_H

#include <ftw.h>
#include <sys/stat.h>

#include "fixture.h"
#include "formats/file.h"
#include "formats/safetensors.h"

static const kt_dtype convert_formats[] = {KT_DTYPE_BF16, KT_DTYPE_F32, KT_DTYPE_F8_E4M3,
                                           KT_DTYPE_I8, KT_DTYPE_I4};
enum { CONVERT_FORMATS = sizeof convert_formats / sizeof *convert_formats };

static int convert_remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

/** Removes the fixture's folder with all that is in it. */
__attribute__((unused)) static void convert_teardown(void)
{
    nftw(fixture_folder, convert_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    kt_context_free(fixture_context);
}

/** The model of a case of tests/reference. */
__attribute__((unused)) static const char *convert_case(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/cases/%s/model", KT_REFERENCE_DIR, name);
    return path;
}

__attribute__((unused)) static kt_status convert_to(const char *source, const char *target,
                                                    kt_dtype to, int experts_only)
{
    kt_convert_options options;
    kt_convert_options_init(&options, sizeof options);
    options.to = to;
    options.experts_only = experts_only;
    return kt_convert(fixture_context, source, target, &options);
}

#define ck_assert_converts(source, target, to, experts_only)                                       \
    ck_assert_msg(convert_to((source), (target), (to), (experts_only)) == KT_OK, "%s",             \
                  kt_last_error(fixture_context))

/** The whole file; free it. */
static char *convert_read(const char *folder, const char *name, size_t *size)
{
    char *path = kt_path_join(folder, name), *data;
    ck_assert_msg(kt_file_read(fixture_context, path, (uint64_t)1 << 30, &data, size) == KT_OK,
                  "%s", kt_last_error(fixture_context));
    free(path);
    return data;
}

static int convert_has(const char *folder, const char *name)
{
    char *path = kt_path_join(folder, name);
    int has = kt_file_exists(path);
    free(path);
    return has;
}

/** Number of entries; 0 where there is no folder. */
__attribute__((unused)) static int convert_entries(const char *folder)
{
    int num = 0;
    DIR *dir = opendir(folder);
    if (!dir)
        return 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        num += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return num;
}

/** The same names with the same bytes. */
__attribute__((unused)) static void convert_same_folders(const char *a, const char *b)
{
    DIR *dir = opendir(a);
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t size_a, size_b;
        if (entry->d_name[0] == '.')
            continue;
        ck_assert_msg(convert_has(b, entry->d_name), "%s lacks %s", b, entry->d_name);
        char *x = convert_read(a, entry->d_name, &size_a);
        char *y = convert_read(b, entry->d_name, &size_b);
        ck_assert_msg(size_a == size_b && memcmp(x, y, size_a) == 0, "%s differs", entry->d_name);
        free(x);
        free(y);
    }
    closedir(dir);
    ck_assert_int_eq(convert_entries(a), convert_entries(b));
}

#endif
