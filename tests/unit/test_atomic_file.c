/* SPDX-License-Identifier: Apache-2.0 */
/* Files that appear whole or not at all, and what killed writers leave. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "fixture.h"
#include "formats/atomic_file.h"
#include "formats/file.h"
#include "main.h"

/* The library's calls come here. */
static bool writes_nothing;
static int syncs, failing_sync;

ssize_t write(int fd, const void *data, size_t bytes)
{
    return writes_nothing ? 0 : syscall(SYS_write, fd, data, bytes);
}

int fsync(int fd)
{
    (void)fd;
    errno = EIO;
    return ++syncs == failing_sync ? -1 : 0;
}

static bool holds(const char *name, const char *text)
{
    char *data;
    size_t size;
    if (kt_file_read(fixture_context, fixture_path(name), 100, &data, &size) != KT_OK)
        return false;
    bool same = size == strlen(text) && memcmp(data, text, size) == 0;
    free(data);
    return same;
}

static kt_status put(const char *name, const char *text)
{
    return kt_atomic_write_file(fixture_context, fixture_path(name), text, strlen(text));
}

START_TEST(unfinished_files_have_names_of_their_own)
{
    static const char *const yes[] = {"a.1-0.tmp", "adapter_model.safetensors.123-17.tmp",
                                      "b.2-3.tmp.4-5.tmp"};
    static const char *const no[] = {"a.tmp",     "a-1.tmp",    ".1-0.tmp",    "a.1-.tmp",
                                     "a.-1.tmp",  "a.1-0.tmp2", "a.1-0-0.tmp", "a.1-0.2.tmp",
                                     "a.x-0.tmp", "",           ".tmp",        "a.1-0"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        ck_assert_msg(kt_atomic_is_unfinished(yes[i]), "%s", yes[i]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        ck_assert_msg(!kt_atomic_is_unfinished(no[i]), "%s", no[i]);
}
END_TEST

START_TEST(what_dead_writers_left_is_removed)
{
    struct kt_atomic_file *alive;
    fixture_write("f.4711-0.tmp", "x", 1);
    fixture_write("f.4711-1.tmp", "x", 1);
    fixture_write("f.tmp", "x", 1);
    fixture_write("other.4711-0.tmp", "x", 1);
    ck_assert_int_eq(kt_atomic_open(fixture_context, fixture_path("f"), &alive), KT_OK);
    ck_assert_int_eq(fixture_files(0), 3);
    ck_assert_int_eq(put("f", "second"), KT_OK);
    ck_assert_int_eq(fixture_files(0), 4);
    ck_assert(holds("f", "second"));
    ck_assert_int_eq(kt_atomic_write(alive, "first", 5), KT_OK);
    ck_assert_int_eq(kt_atomic_commit(alive), KT_OK);
    ck_assert(holds("f", "first"));
    ck_assert_int_eq(fixture_files(0), 3);
}
END_TEST

START_TEST(nothing_is_written_through_a_link)
{
    char name[64];
    snprintf(name, sizeof name, "f.%ld-0.tmp", (long)getpid());
    fixture_write("victim", "mine", 4);
    ck_assert_int_eq(symlink(fixture_path("victim"), fixture_path(name)), 0);
    ck_assert_int_eq(symlink(fixture_path("victim"), fixture_path("f")), 0);
    ck_assert_int_eq(put("f", "new"), KT_OK);
    ck_assert(holds("f", "new"));
    ck_assert(holds("victim", "mine"));
}
END_TEST

/* A folder's name has none of a file in it: what lies there is not what a dead writer left. */
START_TEST(what_is_no_file_is_not_replaced)
{
    char here[PATH_MAX], folder[PATH_MAX];
    fixture_write("mine", "x", 1);
    snprintf(folder, sizeof folder, "%s/", fixture_folder);
    ck_assert_fails(kt_atomic_write_file(fixture_context, folder, "new", 3), KT_ERROR_IO,
                    "cannot write: Is a directory");
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    ck_assert_int_eq(chdir(fixture_folder), 0);
    kt_status status = kt_atomic_write_file(fixture_context, "", "new", 3);
    ck_assert_int_eq(chdir(here), 0);
    ck_assert_fails(status, KT_ERROR_IO, "the name of the file to write is empty");
    ck_assert(holds("mine", "x"));
    ck_assert_int_eq(mkfifo(fixture_path("pipe"), 0600), 0);
    ck_assert_fails(put("pipe", "new"), KT_ERROR_IO, "pipe: is not a regular file");
    ck_assert_int_eq(mkdir(fixture_path("folder"), 0700), 0);
    ck_assert_fails(put("folder", "new"), KT_ERROR_IO, "folder: cannot write: Is a directory");
    ck_assert_int_eq(rmdir(fixture_path("folder")), 0);
    ck_assert_int_eq(fixture_files(0), 2);
}
END_TEST

START_TEST(a_device_that_takes_nothing_is_an_error)
{
    ck_assert_int_eq(put("f", "old"), KT_OK);
    writes_nothing = true;
    kt_status status = put("f", "new");
    writes_nothing = false;
    ck_assert_int_eq(status, KT_ERROR_IO);
    ck_assert(holds("f", "old"));
    ck_assert_int_eq(fixture_files(0), 1);
}
END_TEST

START_TEST(what_cannot_be_flushed_is_an_error)
{
    ck_assert_int_eq(put("f", "old"), KT_OK);
    ck_assert_int_eq(syncs, 2); /* the file, and its folder */
    failing_sync = syncs + 1;
    ck_assert_fails(put("f", "new"), KT_ERROR_IO, "/f: cannot write");
    ck_assert(holds("f", "old"));
    failing_sync = syncs + 2;
    ck_assert_fails(put("f", "new"), KT_ERROR_IO, "/f: cannot write");
    ck_assert_int_eq(fixture_files(0), 1);
}
END_TEST

/* A link to itself stands for whatever cannot be looked at. */
START_TEST(an_error_of_reading_is_not_absence)
{
    kt_model *model;
    ck_assert(!kt_file_exists(fixture_path("f")));
    ck_assert_int_eq(symlink("model.safetensors", fixture_path("model.safetensors")), 0);
    ck_assert(kt_file_exists(fixture_path("model.safetensors")));
    fixture_write("config.json", "{}", 2);
    fixture_write("a.gguf", "x", 1);
    ck_assert_int_ne(kt_model_load(fixture_context, fixture_folder, NULL, &model), KT_OK);
    ck_assert_ptr_null(strstr(kt_last_error(fixture_context), "a.gguf"));
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("atomic_file", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(unfinished_files_have_names_of_their_own),
        TEST(what_dead_writers_left_is_removed),
        TEST(nothing_is_written_through_a_link),
        TEST(what_is_no_file_is_not_replaced),
        TEST(a_device_that_takes_nothing_is_an_error),
        TEST(what_cannot_be_flushed_is_an_error),
        TEST(an_error_of_reading_is_not_absence),
    };
    return RUN_TESTS("atomic_file", tests);
}
