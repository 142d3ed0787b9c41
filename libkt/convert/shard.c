/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert/converter.h"
#include "core/context.h"
#include "weights/dtype.h"
#include "formats/file.h"
#include "formats/mapped_file.h"
#include "model/quantization.h"

static int by_data(const void *a, const void *b)
{
    const char *x = (*(const struct kt_tensor *const *)a)->data;
    const char *y = (*(const struct kt_tensor *const *)b)->data;
    return (x > y) - (x < y);
}

/* The tensors of a file in its order; free(*list). */
static kt_status list_file(const struct kt_converter *c, const char *path,
                           const struct kt_tensor ***list, size_t *num)
{
    const struct kt_checkpoint *checkpoint = c->model->checkpoint;
    *num = 0;
    *list = malloc((checkpoint->num_tensors + 1) * sizeof **list);
    if (!*list)
        return kt_fail_memory(c->ctx, checkpoint->num_tensors * sizeof **list,
                              "the list of tensors");
    for (size_t i = 0; i < checkpoint->num_tensors; i++)
        if (checkpoint->tensors[i].file == path)
            (*list)[(*num)++] = &checkpoint->tensors[i];
    qsort(*list, *num, sizeof **list, by_data);
    return KT_OK;
}

static kt_status describe_scales(const struct kt_converter *c, struct kt_convert_entry *entry,
                                 struct kt_convert_entry *scales)
{
    const struct kt_weight *w = &entry->weight;
    int64_t rows = c->to == KT_DTYPE_F8_E4M3 ? KT_CONVERT_BLOCK : 1;
    int64_t cols = c->to == KT_DTYPE_I8 ? w->cols : KT_CONVERT_BLOCK;
    char *name;
    if (asprintf(&name, "%s%s", entry->to.name, kt_scale_suffix(c->to)) < 0)
        return kt_fail_memory(c->ctx, 0, "a tensor's name");
    scales->to = (struct kt_tensor){.name = name,
                                    .dtype = KT_DTYPE_F32,
                                    .ndim = 2,
                                    .shape = {(w->rows - 1) / rows + 1, (w->cols - 1) / cols + 1}};
    scales->to.bytes = (uint64_t)(scales->to.shape[0] * scales->to.shape[1]) * sizeof(float);
    entry->to_scales = scales;
    return KT_OK;
}

static kt_status describe(struct kt_converter *c, const struct kt_tensor *t,
                          struct kt_convert_shard *s)
{
    struct kt_convert_entry *entry = &s->entries[s->num];
    s->source_size += t->bytes;
    if (kt_convert_drops(c, t))
        return KT_OK;
    KT_TRY(kt_convert_choose(c, t, &entry->weight, &entry->from_scales, &entry->converts));
    entry->from = t;
    entry->to = *t;
    entry->to.data = NULL;
    s->num++;
    if (!entry->converts)
        return KT_OK;
    const struct kt_weight *w = &entry->weight;
    c->converted++;
    entry->to.dtype = c->to == KT_DTYPE_I4 ? KT_DTYPE_U8 : c->to;
    entry->to.shape[0] = w->rows;
    entry->to.shape[1] = c->to == KT_DTYPE_I4 ? w->cols / 2 : w->cols;
    entry->to.bytes = (uint64_t)w->rows * kt_format_row_bytes(c->to, w->cols);
    return kt_scale_suffix(c->to) ? describe_scales(c, entry, &s->entries[s->num++]) : KT_OK;
}

/* Of a dtype that we do not know too; 1 when it is no power of two up to 8. */
static size_t element_size(const struct kt_tensor *t)
{
    uint64_t elements = 1;
    for (int32_t i = 0; i < t->ndim; i++)
        elements *= (uint64_t)t->shape[i];
    uint64_t size = elements ? t->bytes / elements : 1;
    return size == 2 || size == 4 || size == 8 ? (size_t)size : 1;
}

/* Wide elements come first, so that all are aligned, whatever the length of others is. */
static kt_status arrange(struct kt_converter *c, const char *path, struct kt_convert_shard *s)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    struct kt_tensor *order = malloc((s->num + 1) * sizeof *order);
    uint64_t at = 0;
    size_t num = 0;
    if (!order)
        return kt_fail_memory(c->ctx, s->num * sizeof *order, "the list of tensors");
    for (size_t size = 8; size; size /= 2) {
        for (size_t i = 0; i < s->num; i++) {
            if (element_size(&s->entries[i].to) != size)
                continue;
            order[num++] = s->entries[i].to;
            s->entries[i].offset = at;
            at += s->entries[i].to.bytes;
        }
    }
    kt_status status =
        kt_safetensors_header(c->ctx, path, order, num, metadata, &s->header, &s->header_size);
    free(order);
    for (size_t i = 0; i < s->num; i++)
        s->entries[i].offset += s->header_size;
    s->size = at + s->header_size;
    return status;
}

kt_status kt_convert_plan_shard(struct kt_converter *c, size_t index, struct kt_convert_shard *s)
{
    const char *path = c->model->checkpoint->files[index].path;
    const struct kt_tensor **list;
    size_t num;
    *s = (struct kt_convert_shard){.name = strdup(strrchr(path, '/') + 1)};
    KT_TRY(list_file(c, path, &list, &num));
    s->entries = calloc(2 * num + 1, sizeof *s->entries);
    kt_status status = s->name && s->entries ? KT_OK
                                             : kt_fail_memory(c->ctx, 2 * num * sizeof *s->entries,
                                                              "the list of tensors");
    for (size_t i = 0; i < num && status == KT_OK; i++)
        status = describe(c, list[i], s);
    free(list);
    return status == KT_OK ? arrange(c, path, s) : status;
}

void kt_convert_free_shard(struct kt_convert_shard *s)
{
    for (size_t i = 0; i < s->num; i++)
        if (!s->entries[i].from)
            free((char *)s->entries[i].to.name);
    free(s->entries);
    free(s->header);
    free(s->name);
    *s = (struct kt_convert_shard){0};
}

static bool begins_with(int fd, const char *header, size_t size)
{
    char *found = malloc(size);
    bool same = found && pread(fd, found, size, 0) == (ssize_t)size && !memcmp(found, header, size);
    free(found);
    return same;
}

kt_status kt_convert_is_whole(const struct kt_converter *c, const struct kt_convert_shard *s,
                              bool *whole)
{
    struct stat info;
    *whole = false;
    int fd = openat(c->folder, s->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return KT_OK;
    if (fd < 0)
        return kt_fail(c->ctx, KT_ERROR_IO, "%s/%s: cannot be read: %s", c->target, s->name,
                       strerror(errno));
    *whole = fstat(fd, &info) == 0 && (uint64_t)info.st_size == s->size &&
             begins_with(fd, s->header, s->header_size);
    close(fd);
    return *whole ? KT_OK
                  : kt_fail(c->ctx, KT_ERROR_STATE,
                            "%s/%s: is not a file of this conversion; remove it, or choose another "
                            "folder",
                            c->target, s->name);
}

kt_status kt_convert_write_shard(struct kt_converter *c, const struct kt_convert_shard *s)
{
    struct kt_atomic_file *file = NULL;
    char *path = kt_path_join(c->target, s->name);
    if (!path)
        return kt_fail_memory(c->ctx, strlen(c->target), "a file name");
    kt_status status = kt_atomic_open(c->ctx, path, &file);
    free(path);
    if (status == KT_OK)
        status = kt_atomic_write_at(file, 0, s->header, s->header_size);
    for (size_t i = 0; i < s->num && status == KT_OK; i++)
        if (s->entries[i].from)
            status = kt_convert_stream(c, &s->entries[i], file);
    if (status == KT_OK)
        return kt_atomic_commit(file);
    kt_atomic_discard(file);
    return status;
}
