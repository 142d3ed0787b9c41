/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/atomic_file.h"
#include "formats/json.h"
#include "lora/peft_config.h"
#include "text/utf8.h"

/* The last `depth` components of a path, or all of it. */
static const char *suffix(const char *path, int depth)
{
    const char *start = path + strlen(path);
    for (; start > path; start--)
        if (start[-1] == '.' && --depth == 0)
            break;
    return start;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Distinct suffixes of the attached linears into `list`; returns how many. */
static size_t collect_suffixes(const kt_lora *lora, int depth, const char **list)
{
    size_t kept = 0;
    for (int32_t k = 0; k < lora->num_attached; k++)
        list[k] = suffix(lora->model->linears[lora->attached[k]].name, depth);
    qsort(list, (size_t)lora->num_attached, sizeof *list, compare_names);
    for (int32_t k = 0; k < lora->num_attached; k++)
        if (kept == 0 || strcmp(list[kept - 1], list[k]) != 0)
            list[kept++] = list[k];
    return kept;
}

static bool selects_others(const kt_lora *lora, int depth, const char **list, size_t count)
{
    for (int32_t i = 0; i < lora->model->num_linears; i++) {
        const char *name = suffix(lora->model->linears[i].name, depth);
        if (!lora->slots[i].a && bsearch(&name, list, count, sizeof *list, compare_names))
            return true;
    }
    return false;
}

/* The shortest suffixes, all of one depth, with which PEFT selects exactly the attached linears. */
static json_t *target_modules(const kt_lora *lora)
{
    enum { DEEPEST = 16 };
    json_t *array = json_array();
    const char **list = calloc((size_t)lora->num_attached, sizeof *list);
    if (!list || !array) {
        free(list);
        json_decref(array);
        return NULL;
    }
    size_t count = 0;
    for (int depth = 1; depth <= DEEPEST; depth++) {
        count = collect_suffixes(lora, depth, list);
        if (!selects_others(lora, depth, list, count))
            break;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++)
        ok = json_array_append_new(array, json_string(list[i])) == 0;
    free(list);
    if (ok)
        return array;
    json_decref(array);
    return NULL;
}

/* The shortest decimal that is this float again; an integer where it is one, as PEFT writes alpha.
 */
static json_t *number(float value)
{
    char text[32];
    if (value == floorf(value) && fabsf(value) < 0x1p24f)
        return json_integer((json_int_t)value);
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    return json_real(strtod(text, NULL));
}

/* Linears whose rank (alpha) is not the adapter's, by their whole path. */
static json_t *pattern(const kt_lora *lora, bool ranks)
{
    json_t *object = json_object();
    bool ok = object != NULL;
    for (int32_t k = 0; ok && k < lora->num_attached; k++) {
        const struct kt_linear *linear = &lora->model->linears[lora->attached[k]];
        int32_t rank = lora->slots[linear->index].rank;
        if (ranks && rank != lora->config.rank)
            ok = json_object_set_new(object, linear->name, json_integer(rank)) == 0;
        if (!ranks && lora->alphas[k] != lora->config.alpha)
            ok = json_object_set_new(object, linear->name, number(lora->alphas[k])) == 0;
    }
    if (ok)
        return object;
    json_decref(object);
    return NULL;
}

static json_t *build(const kt_lora *lora)
{
    static const char *const null_keys[] = {
        "auto_mapping",      "corda_config",   "eva_config",          "exclude_modules",
        "layer_replication", "layers_pattern", "layers_to_transform", "megatron_config",
        "modules_to_save",   "revision",       "target_parameters",   "trainable_token_indices"};
    static const char *const false_keys[] = {"fan_in_fan_out", "lora_bias", "use_dora",
                                             "use_qalora"};
    const struct kt_lora_config *c = &lora->config;
    json_t *root =
        json_pack("{s:s, s:s, s:{}, s:s, s:i, s:s, s:b, s:b, s:o, s:o, s:i, s:b, s:o, s:o, s:o}",
                  "peft_type", "LORA", "bias", "none", "loftq_config", "megatron_core",
                  "megatron.core", "qalora_group_size", 16, "task_type", "CAUSAL_LM",
                  "inference_mode", 1, "init_lora_weights", 1, "lora_alpha", number(c->alpha),
                  "lora_dropout", c->dropout > 0 ? number(c->dropout) : json_real(0), "r", c->rank,
                  "use_rslora", c->use_rslora, "target_modules", target_modules(lora),
                  "rank_pattern", pattern(lora, true), "alpha_pattern", pattern(lora, false));
    bool ok = root != NULL;
    for (size_t i = 0; ok && i < sizeof null_keys / sizeof null_keys[0]; i++)
        ok = json_object_set_new(root, null_keys[i], json_null()) == 0;
    for (size_t i = 0; ok && i < sizeof false_keys / sizeof false_keys[0]; i++)
        ok = json_object_set_new(root, false_keys[i], json_false()) == 0;
    const char *path = lora->model->path;
    bool is_text = kt_utf8_is_valid(path, strlen(path));
    if (ok && json_object_set_new(root, "base_model_name_or_path",
                                  is_text ? json_string(path) : json_null()) == 0)
        return root;
    json_decref(root);
    return NULL;
}

kt_status kt_peft_config_write(const kt_lora *lora, const char *file)
{
    kt_context *ctx = lora->model->ctx;
    json_t *root = build(lora);
    char *text = NULL;
    size_t flags = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9);
    kt_status status =
        root ? kt_json_encode(ctx, file, root, flags, &text) : kt_fail_memory(ctx, 4096, file);
    if (status == KT_OK)
        status = kt_atomic_write_file(ctx, file, text, strlen(text));
    free(text);
    json_decref(root);
    return status;
}
