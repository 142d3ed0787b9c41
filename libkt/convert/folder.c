/* SPDX-License-Identifier: Apache-2.0 */
/* The target folder. While a conversion is not finished, a record in it says which one it is. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "convert/converter.h"
#include "core/context.h"
#include "formats/file.h"
#include "formats/json.h"
#include "text/utf8.h"
#include "formats/mapped_file.h"

static const char record_name[] = "kt_convert.json";

static kt_status failed(const struct kt_converter *c)
{
    if (errno == ENOMEM)
        return kt_fail_memory(c->ctx, 0, c->target);
    return kt_fail(c->ctx, KT_ERROR_IO, "%s: %s%s", c->target, strerror(errno),
                   errno == ENOENT ? "; create the folder above it first" : "");
}

/* Changes when another file takes the place of a shard. NULL when memory is out. */
static json_t *describe_files(const struct kt_checkpoint *checkpoint)
{
    json_t *files = json_object();
    int failed = 0;
    for (size_t i = 0; i < checkpoint->num_files; i++) {
        struct stat info = {0};
        const char *path = checkpoint->files[i].path;
        (void)stat(path, &info);
        failed |= json_object_set_new(files, strrchr(path, '/') + 1,
                                      json_pack("[I, I, I]", (json_int_t)info.st_size,
                                                (json_int_t)info.st_mtim.tv_sec,
                                                (json_int_t)info.st_mtim.tv_nsec));
    }
    if (!failed)
        return files;
    json_decref(files);
    return NULL;
}

static kt_status make_record(const struct kt_converter *c, char **text)
{
    char *source = realpath(c->model->path, NULL);
    if (!source && errno == ENOMEM)
        return kt_fail_memory(c->ctx, 0, "a file name");
    if (!source)
        return kt_fail(c->ctx, KT_ERROR_IO, "%s: %s", c->model->path, strerror(errno));
    if (!kt_utf8_is_valid(source, strlen(source))) {
        free(source);
        return kt_fail(c->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: the full path of the checkpoint is not UTF-8; rename its folders",
                       c->model->path);
    }
    json_t *record = json_pack("{s:s, s:s, s:b, s:i, s:o}", "source", source, "to",
                               kt_dtype_name(c->to), "experts_only", c->experts_only, "libkt",
                               (int)kt_version(), "files", describe_files(c->model->checkpoint));
    free(source);
    if (!record)
        return kt_fail_memory(c->ctx, 0, record_name);
    kt_status status =
        kt_json_encode(c->ctx, record_name, record, JSON_INDENT(2) | JSON_SORT_KEYS, text);
    json_decref(record);
    return status;
}

static kt_status another_record(const struct kt_converter *c, const char *path)
{
    json_t *record;
    KT_TRY(kt_json_load(c->ctx, path, KT_JSON_CONFIG_MAX, &record));
    const char *source = json_string_value(json_object_get(record, "source"));
    const char *to = json_string_value(json_object_get(record, "to"));
    kt_fail(c->ctx, KT_ERROR_STATE,
            "%s: holds another conversion that is not finished, of %s to %s%s; finish that one, or "
            "choose another folder (if the source changed, remove this one)",
            c->target, source ? source : "?", to ? to : "?",
            json_is_true(json_object_get(record, "experts_only")) ? " (experts alone)" : "");
    json_decref(record);
    return KT_ERROR_STATE;
}

/* Calls `visit` for each name until it returns something else than 0. */
static int each_name(const struct kt_converter *c,
                     int (*visit)(const struct kt_converter *c, const char *name))
{
    int result = 0;
    DIR *folder = opendir(c->target);
    if (!folder)
        return -1;
    while (!result) {
        errno = 0; /* tells the end from an error */
        struct dirent *entry = readdir(folder);
        if (!entry) {
            result = errno ? -1 : 0;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            result = visit(c, entry->d_name);
    }
    int error = errno;
    closedir(folder);
    errno = error;
    return result;
}

/* What a kill leaves while the record itself is written does not count. */
static int is_whole(const struct kt_converter *c, const char *name)
{
    (void)c;
    return !kt_atomic_is_unfinished(name);
}

static int remove_torn(const struct kt_converter *c, const char *name)
{
    return kt_atomic_is_unfinished(name) ? unlinkat(c->folder, name, 0) : 0;
}

static int is_config(const struct kt_converter *c, const char *name)
{
    (void)c;
    return strcmp(name, "config.json") == 0;
}

static kt_status begin_record(struct kt_converter *c, const char *path, const char *text)
{
    int found = each_name(c, is_whole);
    if (found < 0)
        return failed(c);
    if (found)
        return kt_fail(
            c->ctx, KT_ERROR_STATE, "%s: %s; choose another folder, or empty this one", c->target,
            each_name(c, is_config) > 0 ? "holds a complete checkpoint already"
                                        : "is not empty and holds no conversion that could go on");
    if (each_name(c, remove_torn))
        return failed(c);
    KT_TRY(kt_atomic_write_file(c->ctx, path, text, strlen(text)));
    c->recorded = true;
    return KT_OK;
}

static kt_status compare_record(struct kt_converter *c, const char *path, const char *text)
{
    char *found;
    size_t size;
    KT_TRY(kt_file_read(c->ctx, path, KT_JSON_CONFIG_MAX, &found, &size));
    bool same = size == strlen(text) && memcmp(found, text, size) == 0;
    free(found);
    if (!same)
        return another_record(c, path);
    return each_name(c, remove_torn) ? failed(c) : KT_OK;
}

static kt_status check_record(struct kt_converter *c)
{
    struct stat info;
    char *path = kt_path_join(c->target, record_name), *text;
    if (!path)
        return kt_fail_memory(c->ctx, strlen(c->target), "a file name");
    kt_status status = make_record(c, &text);
    if (status == KT_OK) {
        bool found = fstatat(c->folder, record_name, &info, AT_SYMLINK_NOFOLLOW) == 0;
        if (!found && errno != ENOENT)
            status = failed(c);
        else
            status = found ? compare_record(c, path, text) : begin_record(c, path, text);
        free(text);
    }
    free(path);
    return status;
}

static bool is_source(const struct kt_converter *c)
{
    struct stat source, target;
    return stat(c->model->path, &source) == 0 && fstat(c->folder, &target) == 0 &&
           source.st_dev == target.st_dev && source.st_ino == target.st_ino;
}

kt_status kt_convert_open_folder(struct kt_converter *c)
{
    c->created = mkdir(c->target, 0777) == 0;
    if (!c->created && errno != EEXIST)
        return failed(c);
    c->folder = open(c->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->folder < 0)
        return failed(c);
    if (is_source(c))
        return kt_fail(c->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: is the folder of the checkpoint itself; choose another one", c->target);
    if (flock(c->folder, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return kt_fail(c->ctx, KT_ERROR_STATE, "%s: another conversion writes into this folder",
                       c->target);
    return check_record(c);
}

kt_status kt_convert_check_space(const struct kt_converter *c, uint64_t bytes)
{
    struct statvfs info;
    char needed[KT_SIZE_TEXT], have[KT_SIZE_TEXT];
    if (fstatvfs(c->folder, &info) != 0)
        return failed(c);
    uint64_t free_bytes;
    if (__builtin_mul_overflow((uint64_t)info.f_bavail, (uint64_t)info.f_frsize, &free_bytes) ||
        bytes <= free_bytes)
        return KT_OK;
    return kt_fail(c->ctx, KT_ERROR_IO,
                   "%s: %s are needed, but the file system has %s free; free some space or choose "
                   "another one",
                   c->target, kt_size_text(bytes, needed), kt_size_text(free_bytes, have));
}

kt_status kt_convert_finish_folder(struct kt_converter *c)
{
    if (unlinkat(c->folder, record_name, 0) != 0)
        return failed(c);
    return kt_sync_folder(c->target) == 0 ? KT_OK : failed(c);
}

void kt_convert_close_folder(struct kt_converter *c, bool undo)
{
    if (c->folder < 0)
        return;
    if (undo && c->recorded)
        unlinkat(c->folder, record_name, 0);
    if (undo && c->created)
        rmdir(c->target); /* fails when it is not empty */
    close(c->folder);
    c->folder = -1;
}
