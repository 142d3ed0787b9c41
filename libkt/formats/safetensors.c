/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"
#include "core/memory.h"
#include "formats/file.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors_header.h"

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

/* Takes `path`, which is freed with the checkpoint. */
static kt_status add_file(struct kt_checkpoint *c, char *path)
{
    struct kt_tensor *tensors, *all;
    size_t num;
    struct kt_mapped_file *file = &c->files[c->num_files++];
    KT_TRY(kt_map_file(c->ctx, path, file));
    KT_TRY(kt_safetensors_parse(c->ctx, path, file->map, file->size, &tensors, &num));
    all = realloc(c->tensors, (c->num_tensors + num + 1) * sizeof *all);
    if (!all) {
        kt_tensors_free(tensors, num);
        return kt_fail_memory(c->ctx, num * sizeof *all, "the list of tensors");
    }
    if (num)
        memcpy(all + c->num_tensors, tensors, num * sizeof *all);
    c->tensors = all;
    c->num_tensors += num;
    free(tensors);
    return KT_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct kt_tensor *)a)->name, ((const struct kt_tensor *)b)->name);
}

size_t kt_checkpoint_file(const struct kt_checkpoint *c, const void *data)
{
    size_t f = 0;
    while (f < c->num_files && (uintptr_t)data - (uintptr_t)c->files[f].map >= c->files[f].size)
        f++;
    return f;
}

kt_status kt_checkpoint_check(const struct kt_checkpoint *c, const void *data)
{
    size_t file = kt_checkpoint_file(c, data);
    return file < c->num_files ? kt_mapped_file_check(c->ctx, &c->files[file]) : KT_OK;
}

kt_status kt_checkpoint_sort(struct kt_checkpoint *c)
{
    struct kt_tensor *t = c->tensors;
    qsort(t, c->num_tensors, sizeof *t, by_name);
    for (size_t i = 1; i < c->num_tensors; i++)
        if (strcmp(t[i - 1].name, t[i].name) == 0)
            return kt_fail(c->ctx, KT_ERROR_FORMAT, "tensor %s is in both %s and %s", t[i].name,
                           t[i - 1].file, t[i].file);
    return KT_OK;
}

static bool has_file(const struct kt_checkpoint *c, const char *shard)
{
    for (size_t i = 0; i < c->num_files; i++)
        if (strcmp(strrchr(c->files[i].path, '/') + 1, shard) == 0)
            return true;
    return false;
}

static kt_status add_shards(struct kt_checkpoint *c, const char *folder, const char *index,
                            json_t *weight_map)
{
    const char *name;
    json_t *value;
    c->files = calloc(json_object_size(weight_map), sizeof *c->files);
    if (!c->files)
        return kt_fail_memory(c->ctx, json_object_size(weight_map), "the list of shards");
    json_object_foreach(weight_map, name, value)
    {
        const char *shard = json_string_value(value);
        if (!shard || !*shard || strchr(shard, '/'))
            return kt_fail(c->ctx, KT_ERROR_FORMAT,
                           "%s: \"weight_map\" gives tensor %s no file name", index, name);
        if (!has_file(c, shard))
            KT_TRY(add_file(c, kt_path_join(folder, shard)));
    }
    KT_TRY(kt_checkpoint_sort(c));
    json_object_foreach(weight_map, name, value)
    {
        if (!kt_checkpoint_find(c, name))
            return kt_fail(c->ctx, KT_ERROR_NOT_FOUND,
                           "%s: tensor %s should be in shard %s but is not; download it again",
                           index, name, json_string_value(value));
    }
    return KT_OK;
}

static kt_status open_index(struct kt_checkpoint *c, const char *folder, const char *index)
{
    json_t *root, *weight_map = NULL;
    KT_TRY(kt_json_load(c->ctx, index, KT_JSON_LARGE_MAX, &root));
    struct kt_json json = {c->ctx, index, "", root};
    kt_status status =
        kt_json_container(&json, "weight_map", KT_JSON_REQUIRED, JSON_OBJECT, &weight_map);
    if (status == KT_OK)
        status = json_object_size(weight_map)
                     ? add_shards(c, folder, index, weight_map)
                     : kt_fail(c->ctx, KT_ERROR_FORMAT, "%s: \"weight_map\" is empty", index);
    json_decref(root);
    return status;
}

static kt_status open_single(struct kt_checkpoint *c, char *path)
{
    c->files = calloc(1, sizeof *c->files);
    if (!c->files) {
        free(path);
        return kt_fail_memory(c->ctx, sizeof *c->files, "the list of shards");
    }
    KT_TRY(add_file(c, path));
    return kt_checkpoint_sort(c);
}

static kt_status open_folder(struct kt_checkpoint *c, const char *folder)
{
    char *single = kt_path_join(folder, single_name), *index = kt_path_join(folder, index_name);
    kt_status status;
    if (!single || !index) {
        status = kt_fail_memory(c->ctx, 0, "a file name");
    } else if (kt_file_exists(single)) {
        status = open_single(c, single);
        single = NULL;
    } else if (kt_file_exists(index)) {
        status = open_index(c, folder, index);
    } else {
        status = kt_fail(c->ctx, KT_ERROR_NOT_FOUND, "%s: has neither %s nor %s nor a GGUF file",
                         folder, single_name, index_name);
    }
    free(single);
    free(index);
    return status;
}

kt_status kt_checkpoint_open(kt_context *ctx, const char *path, struct kt_checkpoint **out)
{
    struct stat info;
    *out = NULL;
    if (stat(path, &info) != 0)
        return kt_fail(ctx, errno == ENOENT ? KT_ERROR_NOT_FOUND : KT_ERROR_IO, "%s: %s", path,
                       strerror(errno));
    struct kt_checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return kt_fail_memory(ctx, sizeof *c, "a checkpoint");
    c->ctx = ctx;
    kt_status status = S_ISDIR(info.st_mode) ? open_folder(c, path) : open_single(c, strdup(path));
    if (status == KT_OK)
        *out = c;
    else
        kt_checkpoint_close(c);
    return status;
}

void kt_checkpoint_close(struct kt_checkpoint *c)
{
    if (!c)
        return;
    kt_tensors_free(c->tensors, c->num_tensors);
    for (size_t i = 0; i < c->num_files; i++)
        kt_unmap_file(&c->files[i]);
    for (size_t i = 0; i < c->num_owned; i++)
        kt_buffer_free(c->ctx, c->owned[i]);
    free(c->owned);
    free(c->files);
    free(c);
}

const struct kt_tensor *kt_checkpoint_find(const struct kt_checkpoint *c, const char *name)
{
    struct kt_tensor key = {.name = name};
    if (!c->num_tensors)
        return NULL;
    return bsearch(&key, c->tensors, c->num_tensors, sizeof key, by_name);
}

const char *kt_shape_text(int32_t ndim, const int64_t *shape, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (int32_t i = 0; i < ndim && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? ", " : "",
                                 (long long)shape[i]);
    if (used < size)
        snprintf(text + used, size - used, "]");
    return text;
}
