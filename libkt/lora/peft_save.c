/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/lora.h>

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"
#include "formats/atomic_file.h"
#include "formats/file.h"
#include "formats/safetensors.h"
#include "lora/peft_config.h"

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const struct kt_tensor *)a)->name, ((const struct kt_tensor *)b)->name);
}

static kt_status write_tensors(const kt_lora *lora, const char *file)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    size_t num = kt_lora_num_tensors(lora);
    struct kt_tensor *tensors = calloc(num, sizeof *tensors);
    if (!tensors)
        return kt_fail_memory(lora->model->ctx, num * sizeof *tensors, "a list of tensors");
    for (size_t i = 0; i < num; i++) {
        kt_lora_tensor t = {.size = sizeof t};
        kt_lora_get_tensor(lora, i, &t);
        tensors[i] = (struct kt_tensor){.name = t.name,
                                        .dtype = KT_DTYPE_F32,
                                        .ndim = 2,
                                        .shape = {t.rows, t.cols},
                                        .data = t.data,
                                        .bytes = (uint64_t)(t.rows * t.cols) * sizeof(float)};
    }
    qsort(tensors, num, sizeof *tensors, compare_tensors);
    kt_status status = kt_safetensors_write(lora->model->ctx, file, tensors, num, metadata);
    free(tensors);
    return status;
}

static int sync_parent(const char *path)
{
    char *copy = strdup(path);
    int result = copy ? kt_sync_folder(dirname(copy)) : -1;
    free(copy);
    return result;
}

/* Creates the folder and those it lies in; *created is set when the last one is new. */
static kt_status make_folder(kt_context *ctx, const char *path, bool *created)
{
    char *copy = strdup(path);
    *created = false;
    if (!copy)
        return kt_fail_memory(ctx, strlen(path), "a path");
    for (char *p = copy + 1; *copy && *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        mkdir(copy, 0777);
        *p = '/';
    }
    free(copy);
    *created = mkdir(path, 0777) == 0;
    int error = errno;
    if (*created && sync_parent(path) != 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
    if (*created || kt_is_directory(path))
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_IO, "%s: cannot make this folder: %s", path, strerror(error));
}

kt_status kt_lora_save(const kt_lora *lora, const char *path)
{
    KT_ENTER(lora, "lora");
    kt_context *ctx = lora->ctx;
    bool created;
    KT_TRY(kt_check_given(ctx, path, "the path of an adapter"));
    KT_TRY(make_folder(ctx, path, &created));
    char *tensors = kt_path_join(path, "adapter_model.safetensors");
    char *config = kt_path_join(path, "adapter_config.json");
    kt_status status =
        tensors && config ? write_tensors(lora, tensors) : kt_fail_memory(ctx, 4096, "a path");
    if (status == KT_OK)
        status = kt_peft_config_write(lora, config);
    if (status != KT_OK && created)
        rmdir(path);
    free(tensors);
    free(config);
    return status;
}
