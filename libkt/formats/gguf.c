/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/gguf.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"
#include "formats/gguf_header.h"
#include "formats/safetensors_header.h"

static const char extension[] = ".gguf";

enum {
    EXTENSION = sizeof extension - 1,
    SPLIT = sizeof "-00001-of-00009.gguf" - 1,
    MAX_SPLIT = 99999
};

bool kt_gguf_is_name(const char *path)
{
    size_t length = strlen(path);
    return length > EXTENSION && strcmp(path + length - EXTENSION, extension) == 0;
}

/* Whether the name ends as those of a set do, and then the file's number and the set's size. */
static bool is_split(const char *path, int *number, int *count)
{
    size_t length = strlen(path);
    int end = 0;
    return length > SPLIT &&
           sscanf(path + length - SPLIT, "-%5d-of-%5d.gguf%n", number, count, &end) == 2 &&
           end == SPLIT;
}

/* Another file of the set; NULL without memory. */
static char *split_path(const char *path, int number, int count)
{
    char *other;
    int stem = (int)(strlen(path) - SPLIT);
    return asprintf(&other, "%.*s-%05d-of-%05d.gguf", stem, path, number, count) < 0 ? NULL : other;
}

static kt_status add_tensors(struct kt_gguf *g, struct kt_tensor *tensors, size_t num)
{
    struct kt_tensor *all = realloc(g->tensors, (g->num_tensors + num + 1) * sizeof *all);
    if (!all) {
        kt_tensors_free(tensors, num);
        return kt_fail_memory(g->ctx, num * sizeof *all, "the list of tensors");
    }
    memcpy(all + g->num_tensors, tensors, num * sizeof *all);
    g->tensors = all;
    g->num_tensors += num;
    free(tensors);
    return KT_OK;
}

/* Takes `path`. */
static kt_status add_file(struct kt_gguf *g, char *path, json_t **metadata)
{
    struct kt_tensor *tensors;
    size_t num;
    struct kt_mapped_file *file = &g->files[g->num_files++];
    KT_TRY(kt_map_file(g->ctx, path, file));
    KT_TRY(kt_gguf_parse(g->ctx, file->path, file->map, file->size, &tensors, &num, metadata));
    kt_status status = add_tensors(g, tensors, num);
    if (status != KT_OK) {
        json_decref(*metadata);
        *metadata = NULL;
    }
    return status;
}

static kt_status check_member(const struct kt_gguf *g, const json_t *metadata, int number,
                              int count)
{
    const char *path = g->files[g->num_files - 1].path;
    struct kt_json json = {g->ctx, path, "", metadata};
    int64_t in_file = 0, of = 0;
    KT_TRY(kt_json_int(&json, "split.no", KT_JSON_REQUIRED, 0, MAX_SPLIT, &in_file));
    KT_TRY(kt_json_int(&json, "split.count", KT_JSON_REQUIRED, 0, MAX_SPLIT, &of));
    if (in_file == number - 1 && of == count)
        return KT_OK;
    return kt_fail(g->ctx, KT_ERROR_FORMAT,
                   "%s: the file says that it is number %lld of %lld, but its name says %d of %d; "
                   "rename it or download the set again",
                   path, (long long)in_file + 1, (long long)of, number, count);
}

static kt_status open_set(struct kt_gguf *g, const char *path, int count)
{
    int64_t expected = -1;
    for (int i = 1; i <= count; i++) {
        json_t *metadata = NULL;
        KT_TRY(add_file(g, split_path(path, i, count), &metadata));
        kt_status status = check_member(g, metadata, i, count);
        if (i == 1)
            g->metadata = metadata;
        else
            json_decref(metadata);
        KT_TRY(status);
    }
    struct kt_json json = kt_gguf_json(g);
    KT_TRY(kt_json_int(&json, "split.tensors.count", KT_JSON_OPTIONAL, 0, INT64_MAX, &expected));
    if (expected >= 0 && (uint64_t)expected != g->num_tensors)
        return kt_fail(g->ctx, KT_ERROR_FORMAT,
                       "%s: the set should have %lld tensors but has %zu; download it again",
                       json.path, (long long)expected, g->num_tensors);
    return KT_OK;
}

static kt_status open_single(struct kt_gguf *g, const char *path)
{
    int64_t count = 1;
    KT_TRY(add_file(g, strdup(path), &g->metadata));
    struct kt_json json = kt_gguf_json(g);
    KT_TRY(kt_json_int(&json, "split.count", KT_JSON_OPTIONAL, 0, INT64_MAX, &count));
    if (count > 1)
        return kt_fail(g->ctx, KT_ERROR_FORMAT,
                       "%s: is one of %lld files of a model, which must be named "
                       "NAME-00001-of-%05lld.gguf and so on",
                       path, (long long)count, (long long)count);
    return KT_OK;
}

kt_status kt_gguf_open(kt_context *ctx, const char *path, struct kt_gguf **out)
{
    int number = 1, count = 1;
    bool split = is_split(path, &number, &count) && count >= 1 && number >= 1 && number <= count;
    *out = NULL;
    struct kt_gguf *g = calloc(1, sizeof *g);
    if (!g)
        return kt_fail_memory(ctx, sizeof *g, "a GGUF file");
    g->ctx = ctx;
    g->files = calloc(split ? (size_t)count : 1, sizeof *g->files);
    kt_status status = !g->files ? kt_fail_memory(ctx, sizeof *g->files, "the list of files")
                       : split   ? open_set(g, path, count)
                                 : open_single(g, path);
    if (status == KT_OK)
        *out = g;
    else
        kt_gguf_close(g);
    return status;
}

void kt_gguf_close(struct kt_gguf *g)
{
    if (!g)
        return;
    kt_tensors_free(g->tensors, g->num_tensors);
    for (size_t i = 0; i < g->num_files; i++)
        kt_unmap_file(&g->files[i]);
    free(g->files);
    json_decref(g->metadata);
    free(g);
}

const struct kt_tensor *kt_gguf_find(const struct kt_gguf *g, const char *name)
{
    for (size_t i = 0; i < g->num_tensors; i++)
        if (strcmp(g->tensors[i].name, name) == 0)
            return &g->tensors[i];
    return NULL;
}

struct kt_json kt_gguf_json(const struct kt_gguf *g)
{
    return (struct kt_json){g->ctx, g->files[0].path, "", g->metadata};
}

static kt_status cannot_list(kt_context *ctx, const char *folder)
{
    return errno == ENOMEM
               ? kt_fail_memory(ctx, 0, folder)
               : kt_fail(ctx, KT_ERROR_IO, "%s: cannot be listed: %s", folder, strerror(errno));
}

/* The model's only or first file in the folder. */
static kt_status search_folder(kt_context *ctx, const char *folder, DIR *dir, char **file)
{
    int number, count;
    for (struct dirent *entry; (errno = 0, entry = readdir(dir));) {
        if (!kt_gguf_is_name(entry->d_name) ||
            (is_split(entry->d_name, &number, &count) && number != 1))
            continue;
        if (*file)
            return kt_fail(ctx, KT_ERROR_FORMAT,
                           "%s: holds several GGUF models, such as %s and %s; name the file of one",
                           folder, strrchr(*file, '/') + 1, entry->d_name);
        *file = kt_path_join(folder, entry->d_name);
        if (!*file)
            return kt_fail_memory(ctx, 0, "a file name");
    }
    return errno ? cannot_list(ctx, folder) : KT_OK;
}

static kt_status has_safetensors(kt_context *ctx, const char *folder, bool *has)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    for (int i = 0; i < 2 && !*has; i++) {
        char *path = kt_path_join(folder, names[i]);
        if (!path)
            return kt_fail_memory(ctx, 0, "a file name");
        *has = kt_file_exists(path);
        free(path);
    }
    return KT_OK;
}

kt_status kt_gguf_locate(kt_context *ctx, const char *path, char **file)
{
    bool other = false;
    *file = NULL;
    if (!kt_is_directory(path)) {
        if (kt_gguf_is_name(path) && !(*file = strdup(path)))
            return kt_fail_memory(ctx, strlen(path), "a file name");
        return KT_OK;
    }
    KT_TRY(has_safetensors(ctx, path, &other));
    DIR *dir = other ? NULL : opendir(path);
    if (!dir && !other && errno != EACCES) /* a folder that may not be listed can be read by name */
        return cannot_list(ctx, path);
    if (!dir)
        return KT_OK;
    kt_status status = search_folder(ctx, path, dir, file);
    closedir(dir);
    if (status != KT_OK) {
        free(*file);
        *file = NULL;
    }
    return status;
}
