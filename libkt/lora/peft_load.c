/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/lora.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "formats/file.h"
#include "formats/safetensors.h"
#include "lora/peft_config.h"
#include "lora/target.h"

static const char prefix[] = "base_model.model.",
                  suffixes[2][16] = {".lora_A.weight", ".lora_B.weight"};

struct loader {
    kt_context *ctx;
    kt_model *model;
    const char *path; /* of the tensors' file */
    const struct kt_peft_config *config;
    const struct kt_checkpoint *file;
    const struct kt_linear **by_name;    /* [num_linears], sorted */
    const struct kt_tensor *(*found)[2]; /* [num_linears]: A, B */
    struct kt_lora_choice *choices;      /* [num_linears] */
};

static int compare_linears(const void *a, const void *b)
{
    return strcmp((*(const struct kt_linear *const *)a)->name,
                  (*(const struct kt_linear *const *)b)->name);
}

/* Splits "base_model.model.PATH.lora_A.weight"; `which` is 0 for A, 1 for B. */
static bool split_name(const char *name, char *path, size_t size, int *which)
{
    size_t head = sizeof prefix - 1, tail = strlen(suffixes[0]), length = strlen(name);
    if (strncmp(name, prefix, head) != 0 || length <= head + tail || length - head - tail >= size)
        return false;
    for (*which = 0; *which < 2; (*which)++)
        if (strcmp(name + length - tail, suffixes[*which]) == 0)
            break;
    memcpy(path, name + head, length - head - tail);
    path[length - head - tail] = '\0';
    return *which < 2;
}

static kt_status unknown_module(const struct loader *l, const struct kt_tensor *t, const char *path)
{
    char names[512];
    if (strcmp(kt_last_component(path), "experts") == 0 || strstr(path, ".experts.base_layer"))
        return kt_fail(l->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: %s adapts all experts as one parameter; train the adapter with "
                       "target_modules, which names each expert's linears",
                       t->file, t->name);
    kt_target_list_names(l->model, names, sizeof names);
    return kt_fail(l->ctx, KT_ERROR_MISMATCH,
                   "%s: %s belongs to another model: %s has no linear %s (it has %s)", t->file,
                   t->name, l->model->path, path, names);
}

static kt_status assign_tensor(struct loader *l, const struct kt_tensor *t)
{
    char path[512];
    int which;
    if (!split_name(t->name, path, sizeof path, &which))
        return kt_fail(l->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: %s is not a matrix of plain LoRA (..., .lora_A.weight or "
                       ".lora_B.weight); save the adapter without other trained parameters",
                       t->file, t->name);
    struct kt_linear key = {.name = path};
    const struct kt_linear *wanted = &key;
    const struct kt_linear **linear = bsearch(&wanted, l->by_name, (size_t)l->model->num_linears,
                                              sizeof *l->by_name, compare_linears);
    if (!linear)
        return unknown_module(l, t, path);
    if (t->dtype != KT_DTYPE_F32 && t->dtype != KT_DTYPE_F16 && t->dtype != KT_DTYPE_BF16)
        return kt_fail(l->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: %s has dtype %s; an adapter must be F32, F16 or BF16", t->file, t->name,
                       t->dtype_name);
    l->found[(*linear)->index][which] = t;
    return KT_OK;
}

static kt_status check_shape(const struct loader *l, const struct kt_linear *linear,
                             const struct kt_tensor *t, int64_t rows, int64_t cols)
{
    char got[128], want[128];
    int64_t shape[2] = {rows, cols};
    if (t->ndim == 2 && t->shape[0] == rows && t->shape[1] == cols)
        return KT_OK;
    return kt_fail(l->ctx, KT_ERROR_MISMATCH,
                   "%s: %s has shape %s, but rank %lld on %s [%lld, %lld] of %s needs %s", t->file,
                   t->name, kt_shape_text(t->ndim, t->shape, got, sizeof got),
                   (long long)l->choices[linear->index].rank, linear->name,
                   (long long)linear->weight.rows, (long long)linear->weight.cols, l->model->path,
                   kt_shape_text(2, shape, want, sizeof want));
}

/* Both matrices or neither, with the shapes that the configuration and the model say. */
static kt_status check_linear(struct loader *l, const struct kt_linear *linear)
{
    const struct kt_tensor *const *pair = l->found[linear->index];
    if (!pair[0] && !pair[1])
        return KT_OK;
    for (int i = 0; i < 2; i++)
        if (!pair[i])
            return kt_fail(l->ctx, KT_ERROR_MISMATCH, "%s: %s stands alone, %s%s%s is missing",
                           pair[1 - i]->file, pair[1 - i]->name, prefix, linear->name, suffixes[i]);
    struct kt_lora_choice choice = kt_peft_config_choice(l->config, linear->name);
    l->choices[linear->index] = choice;
    KT_TRY(check_shape(l, linear, pair[0], choice.rank, linear->weight.cols));
    return check_shape(l, linear, pair[1], linear->weight.rows, choice.rank);
}

static kt_status copy_tensor(const struct kt_tensor *t, kt_context *ctx, float *to)
{
    size_t n = (size_t)(t->shape[0] * t->shape[1]);
    kt_dtype_to_f32(t->dtype, t->data, to, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(to[i]))
            return kt_fail(ctx, KT_ERROR_NUMERIC,
                           "%s: %s has %s at [%zu, %zu]; the adapter is broken, use an earlier "
                           "checkpoint",
                           t->file, t->name, isnan(to[i]) ? "NaN" : "an infinity",
                           i / (size_t)t->shape[1], i % (size_t)t->shape[1]);
    return KT_OK;
}

static kt_status copy_all(const struct loader *l, kt_lora *lora)
{
    for (int32_t k = 0; k < lora->num_attached; k++) {
        const struct kt_tensor *const *pair = l->found[lora->attached[k]];
        float *a = lora->data + kt_adapter_pair_offset(lora, k);
        KT_TRY(copy_tensor(pair[0], l->ctx, a));
        KT_TRY(copy_tensor(pair[1], l->ctx, a + pair[0]->shape[0] * pair[0]->shape[1]));
    }
    return KT_OK;
}

static kt_status load(struct loader *l, kt_lora **out)
{
    if (l->file->num_tensors == 0)
        return kt_fail(l->ctx, KT_ERROR_FORMAT, "%s: this adapter has no tensors", l->path);
    for (int32_t i = 0; i < l->model->num_linears; i++)
        l->by_name[i] = &l->model->linears[i];
    qsort(l->by_name, (size_t)l->model->num_linears, sizeof *l->by_name, compare_linears);
    for (size_t i = 0; i < l->file->num_tensors; i++)
        KT_TRY(assign_tensor(l, &l->file->tensors[i]));
    for (int32_t i = 0; i < l->model->num_linears; i++)
        KT_TRY(check_linear(l, &l->model->linears[i]));
    KT_TRY(kt_lora_attach(l->model, &l->config->lora, l->choices, out));
    (*out)->seed = 42;
    kt_status status = copy_all(l, *out);
    if (status != KT_OK) {
        kt_lora_free(*out);
        *out = NULL;
    }
    return status;
}

static kt_status load_tensors(kt_model *model, const struct kt_peft_config *config,
                              const char *file, kt_lora **out)
{
    struct kt_checkpoint *checkpoint;
    size_t linears = (size_t)model->num_linears;
    KT_TRY(kt_checkpoint_open(model->ctx, file, &checkpoint));
    struct loader l = {
        .ctx = model->ctx, .model = model, .path = file, .config = config, .file = checkpoint};
    l.by_name = calloc(linears, sizeof *l.by_name);
    l.found = calloc(linears, sizeof *l.found);
    l.choices = calloc(linears, sizeof *l.choices);
    kt_status status = l.by_name && l.found && l.choices
                           ? load(&l, out)
                           : kt_fail_memory(model->ctx, linears * sizeof *l.found, file);
    free(l.by_name);
    free(l.found);
    free(l.choices);
    kt_checkpoint_close(checkpoint);
    return status;
}

kt_status kt_lora_load(kt_model *model, const char *path, kt_lora **out)
{
    KT_ENTER_OUT(model, "model", out);
    kt_context *ctx = model->ctx;
    struct kt_peft_config config = {0};
    KT_TRY(kt_check_given(ctx, path, "the path of an adapter"));
    char *config_file = kt_path_join(path, "adapter_config.json");
    char *tensors_file = kt_path_join(path, "adapter_model.safetensors");
    kt_status status = config_file && tensors_file ? kt_peft_config_read(ctx, config_file, &config)
                                                   : kt_fail_memory(ctx, 4096, "a path");
    if (status == KT_OK)
        status = load_tensors(model, &config, tensors_file, out);
    kt_peft_config_clear(&config);
    free(config_file);
    free(tensors_file);
    return status;
}
