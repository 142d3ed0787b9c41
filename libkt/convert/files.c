/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
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
#include "formats/json.h"
#include "model/quantization.h"

enum { COPY_BYTES = 1 << 16 };

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), n = strlen(end);
    return length >= n && strcmp(name + length - n, end) == 0;
}

/* What belongs to a model and is no weights: configuration, tokenizer, templates, code, texts. */
static bool is_copied(const char *name)
{
    static const char *const ends[] = {".json", ".jinja",    ".model", ".txt",
                                       ".py",   ".tiktoken", ".md"};
    if (*name == '.' || strcmp(name, "config.json") == 0 || ends_with(name, ".index.json"))
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (ends_with(name, ends[i]))
            return true;
    return strncmp(name, "LICENSE", 7) == 0;
}

static kt_status copy_open(kt_context *ctx, const char *from, int fd, struct kt_atomic_file *file)
{
    char buffer[COPY_BYTES];
    for (;;) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kt_fail(ctx, KT_ERROR_IO, "%s: cannot be read: %s", from, strerror(errno));
        if (n == 0)
            return KT_OK;
        KT_TRY(kt_atomic_write(file, buffer, (size_t)n));
    }
}

static kt_status copy_file(kt_context *ctx, const char *from, const char *to)
{
    struct stat info;
    struct kt_atomic_file *file;
    int fd = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: cannot be read: %s", from, strerror(errno));
    if (fstat(fd, &info) == 0 && !S_ISREG(info.st_mode)) {
        close(fd);
        return KT_OK;
    }
    kt_status status = kt_atomic_open(ctx, to, &file);
    if (status == KT_OK) {
        status = copy_open(ctx, from, fd, file);
        if (status == KT_OK)
            status = kt_atomic_commit(file);
        else
            kt_atomic_discard(file);
    }
    close(fd);
    return status;
}

static kt_status copy_name(const struct kt_converter *c, const char *name)
{
    char *from = kt_path_join(c->model->path, name), *to = kt_path_join(c->target, name);
    kt_status status =
        from && to ? copy_file(c->ctx, from, to) : kt_fail_memory(c->ctx, 0, "a file name");
    free(from);
    free(to);
    return status;
}

static kt_status cannot_list(const struct kt_converter *c)
{
    return errno == ENOMEM ? kt_fail_memory(c->ctx, 0, c->model->path)
                           : kt_fail(c->ctx, KT_ERROR_IO, "%s: cannot be listed: %s",
                                     c->model->path, strerror(errno));
}

kt_status kt_convert_copy_files(const struct kt_converter *c)
{
    kt_status status = KT_OK;
    DIR *folder = opendir(c->model->path);
    if (!folder)
        return cannot_list(c);
    while (status == KT_OK) {
        errno = 0; /* tells the end from an error */
        struct dirent *entry = readdir(folder);
        if (!entry && errno)
            status = cannot_list(c);
        if (!entry)
            break;
        if (is_copied(entry->d_name))
            status = copy_name(c, entry->d_name);
    }
    closedir(folder);
    return status;
}

static kt_status write_json(const struct kt_converter *c, const char *name, const json_t *json,
                            size_t flags)
{
    char *path = kt_path_join(c->target, name), *text = NULL;
    kt_status status = path ? kt_json_encode(c->ctx, path, json, JSON_INDENT(2) | flags, &text)
                            : kt_fail_memory(c->ctx, 0, "a file name");
    if (status == KT_OK) {
        size_t length = strlen(text);
        text[length] = '\n'; /* in place of the zero byte */
        status = kt_atomic_write_file(c->ctx, path, text, length + 1);
    }
    free(text);
    free(path);
    return status;
}

kt_status kt_convert_write_index(const struct kt_converter *c, json_t *weight_map,
                                 uint64_t total_size)
{
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total_size,
                              "weight_map", weight_map);
    if (!index)
        return kt_fail_memory(c->ctx, 0, "the index of shards");
    kt_status status = write_json(c, "model.safetensors.index.json", index, JSON_SORT_KEYS);
    json_decref(index);
    return status;
}

/* Dtypes of quantised matrices that the target holds, as bits. */
static unsigned quantised_dtypes(const struct kt_converter *c)
{
    const struct kt_checkpoint *checkpoint = c->model->checkpoint;
    unsigned dtypes = kt_scale_suffix(c->to) ? 1u << c->to : 0;
    for (size_t i = 0; i < checkpoint->num_tensors; i++) {
        const struct kt_tensor *t = &checkpoint->tensors[i];
        if (kt_convert_is_quantised(c, t) && !kt_convert_is_chosen(c, t))
            dtypes |= 1u << kt_tensor_weight_dtype(t);
    }
    return dtypes;
}

/* Modules whose matrices stay as they are: other programs want to be told. NULL when memory is out.
 */
static json_t *kept_modules(const struct kt_converter *c)
{
    const struct kt_checkpoint *checkpoint = c->model->checkpoint;
    json_t *names = json_array();
    int failed = 0;
    for (size_t i = 0; i < checkpoint->num_tensors; i++) {
        const struct kt_tensor *t = &checkpoint->tensors[i];
        if (t->ndim == 2 && ends_with(t->name, ".weight") && !kt_convert_is_chosen(c, t) &&
            !kt_convert_is_quantised(c, t))
            failed |= json_array_append_new(names, json_stringn(t->name, strlen(t->name) - 7));
    }
    if (!failed)
        return names;
    json_decref(names);
    return NULL;
}

/* NULL when memory is out. */
static json_t *quantization_config(const struct kt_converter *c, unsigned dtypes)
{
    const struct kt_quantization *q = &c->model->config.quantization;
    unsigned f8 = 1u << KT_DTYPE_F8_E4M3, i4 = 1u << KT_DTYPE_I4;
    bool copied = q->block_rows && c->to != KT_DTYPE_F8_E4M3;
    json_t *sizes = json_pack("[i, i]", copied ? q->block_rows : KT_CONVERT_BLOCK,
                              copied ? q->block_cols : KT_CONVERT_BLOCK);
    if (dtypes == f8)
        return json_pack("{s:s, s:s, s:o, s:s, s:o}", "quant_method", "fp8", "fmt", "e4m3",
                         "weight_block_size", sizes, "activation_scheme", "dynamic",
                         "modules_to_not_convert", kept_modules(c));
    int32_t group = c->to == KT_DTYPE_I4 ? KT_CONVERT_BLOCK : q->group_size;
    json_t *object = json_pack("{s:s, s:i}", "quant_method", "kt", "bits", dtypes & i4 ? 4 : 8);
    int failed = !object || !sizes;
    if (dtypes & i4)
        failed |= json_object_set_new(object, "group_size", json_integer(group));
    if (dtypes & f8)
        failed |= json_object_set(object, "weight_block_size", sizes);
    json_decref(sizes);
    if (!failed)
        return object;
    json_decref(object);
    return NULL;
}

/* The dtype in which other programs load a checkpoint that is not quantised. False when memory is
 * out. */
static bool set_plain_dtype(const struct kt_converter *c, json_t *config)
{
    static const char *const keys[] = {"torch_dtype", "dtype"};
    const char *name = c->to == KT_DTYPE_F32 ? "float32" : "bfloat16";
    int failed = 0;
    if (c->experts_only || kt_scale_suffix(c->to))
        return true;
    for (int i = 0; i < 2; i++)
        if (json_object_get(config, keys[i]))
            failed |= json_object_set_new(config, keys[i], json_string(name));
    return !failed;
}

static bool set_quantization(const struct kt_converter *c, json_t *config)
{
    unsigned dtypes = quantised_dtypes(c);
    if (dtypes)
        return json_object_set_new(config, "quantization_config", quantization_config(c, dtypes)) ==
               0;
    json_object_del(config, "quantization_config");
    return true;
}

/* Writes config.json with the fewest digits that keep every number of it. */
static kt_status write_config(const struct kt_converter *c, const json_t *config)
{
    bool same = false;
    size_t digits = 14;
    while (!same && ++digits < 17) {
        char *text = NULL;
        json_t *back = NULL;
        kt_status status =
            kt_json_encode(c->ctx, "config.json", config, JSON_REAL_PRECISION(digits), &text);
        if (status == KT_OK)
            status =
                kt_json_parse(c->ctx, "config.json", 1, text, strlen(text), KT_JSON_STRICT, &back);
        same = status == KT_OK && json_equal(config, back);
        json_decref(back);
        free(text);
        KT_TRY(status);
    }
    return write_json(c, "config.json", config, JSON_REAL_PRECISION(digits));
}

kt_status kt_convert_write_config(const struct kt_converter *c)
{
    json_t *config;
    char *path = kt_path_join(c->model->path, "config.json");
    if (!path)
        return kt_fail_memory(c->ctx, 0, "a file name");
    kt_status status = kt_json_load(c->ctx, path, KT_JSON_CONFIG_MAX, &config);
    free(path);
    if (status != KT_OK)
        return status;
    status = set_quantization(c, config) && set_plain_dtype(c, config)
                 ? write_config(c, config)
                 : kt_fail_memory(c->ctx, 0, "config.json");
    json_decref(config);
    return status;
}
