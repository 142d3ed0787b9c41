/* SPDX-License-Identifier: Apache-2.0 */
/** \file fixture.h
 * Contexts and temporary files for tests. */
#ifndef KT_TESTS_FIXTURE_H
#define KT_TESTS_FIXTURE_H

#include <check.h>
#include <dirent.h>
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/context.h"

static kt_context *fixture_context;
static char fixture_folder[64];
static char fixture_log[4096]; /* lines logged since the set-up, newest last */

static void fixture_log_line(void *user, int32_t level, const char *message)
{
    (void)user, (void)level;
    size_t used = strlen(fixture_log);
    snprintf(fixture_log + used, sizeof fixture_log - used, "%s\n", message);
}

static void fixture_setup(void)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 2;
    options.log = fixture_log_line;
    fixture_log[0] = 0;
    ck_assert_int_eq(kt_context_create(&options, &fixture_context), KT_OK);
    strcpy(fixture_folder, "/tmp/kt-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(fixture_folder));
}

/** folder/name in one of a few static buffers. */
static const char *fixture_path(const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", fixture_folder, name);
    return path;
}

/** Number of files in the temporary folder; removes them if asked. */
static int fixture_files(int clear)
{
    int num = 0;
    DIR *dir = opendir(fixture_folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        num++;
        if (clear)
            unlink(fixture_path(entry->d_name));
    }
    closedir(dir);
    return num;
}

__attribute__((unused)) static void fixture_teardown(void)
{
    fixture_files(1);
    rmdir(fixture_folder);
    kt_context_free(fixture_context);
}

__attribute__((unused)) static void fixture_write(const char *name, const void *data, size_t size)
{
    unlink(fixture_path(name)); /* truncating a file in place can make the disk wait */
    FILE *f = fopen(fixture_path(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, size, f), size);
    ck_assert_int_eq(fclose(f), 0);
}

/** The status is the expected one and the sentence holds `part`. */
#define ck_assert_fails(call, status, part)                                                        \
    do {                                                                                           \
        ck_assert_int_eq((call), (status));                                                        \
        ck_assert_msg(strstr(kt_last_error(fixture_context), (part)) != NULL,                      \
                      "'%s' is not in: %s", (part), kt_last_error(fixture_context));               \
    } while (0)

#endif
