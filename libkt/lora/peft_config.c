/* SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "lora/peft_config.h"

#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/json.h"

struct kt_peft_pattern {
    pcre2_code *code;
    pcre2_match_data *match;
    int32_t rank; /* 0 = this is an alpha */
    float alpha;
};

enum { MAX_RANK = 1 << 20 };

/* Keys that say nothing about the mathematics of a saved adapter, or are read elsewhere here. */
static const char *const harmless_keys[] = {"alpha_pattern",
                                            "auto_mapping",
                                            "base_model_name_or_path",
                                            "corda_config",
                                            "eva_config",
                                            "exclude_modules",
                                            "fan_in_fan_out",
                                            "inference_mode",
                                            "init_lora_weights",
                                            "layers_pattern",
                                            "layers_to_transform",
                                            "loftq_config",
                                            "lora_alpha",
                                            "lora_dropout",
                                            "megatron_config",
                                            "megatron_core",
                                            "peft_type",
                                            "peft_version",
                                            "qalora_group_size",
                                            "r",
                                            "rank_pattern",
                                            "revision",
                                            "runtime_config",
                                            "target_modules",
                                            "task_type",
                                            "use_rslora",
                                            NULL};

static bool is_harmless(const char *key)
{
    for (const char *const *known = harmless_keys; *known; known++)
        if (strcmp(*known, key) == 0)
            return true;
    return false;
}

static bool is_unset(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE:
        return true;
    case JSON_STRING:
        return strcmp(json_string_value(value), "none") == 0;
    case JSON_ARRAY:
        return json_array_size(value) == 0;
    case JSON_OBJECT:
        return json_object_size(value) == 0;
    default:
        return false;
    }
}

/* These initialisations take a part out of the base weights, which the saved matrices then hold. */
static bool changes_base_weights(const char *init)
{
    return strncmp(init, "pissa", 5) == 0 || strncmp(init, "corda", 5) == 0 ||
           strcasecmp(init, "olora") == 0 || strcmp(init, "loftq") == 0;
}

static kt_status check_features(const struct kt_json *json)
{
    const char *key, *peft_type = "LORA",
                     *init = json_string_value(json_object_get(json->object, "init_lora_weights"));
    json_t *value;
    KT_TRY(kt_json_string(json, "peft_type", KT_JSON_REQUIRED, &peft_type));
    if (strcmp(peft_type, "LORA") != 0)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"peft_type\" is \"%s\"; only \"LORA\" adapters can be loaded",
                       json->path, peft_type);
    if (init && changes_base_weights(init))
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"init_lora_weights\" is \"%s\", which changes the base weights; "
                       "convert the adapter to plain LoRA in PEFT "
                       "(path_initial_model_for_weight_conversion)",
                       json->path, init);
    json_object_foreach((json_t *)json->object, key, value)
    {
        if (!is_harmless(key) && !is_unset(value))
            return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"%s\" is set, a PEFT feature beyond plain LoRA; save the adapter "
                           "without it",
                           json->path, key);
    }
    return KT_OK;
}

static kt_status read_alpha(const struct kt_json *json, const char *key, enum kt_json_need need,
                            float *alpha)
{
    double value = *alpha;
    KT_TRY(kt_json_real(json, key, need, &value));
    *alpha = (float)value;
    if (!isfinite(*alpha))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s%s\" is not a finite number",
                       json->path, json->prefix, key);
    return KT_OK;
}

static kt_status compile(const struct kt_json *json, const char *key,
                         struct kt_peft_pattern *pattern)
{
    char *text;
    int error;
    PCRE2_SIZE offset;
    if (asprintf(&text, "^(.*\\.)?(%s)$", key) < 0)
        return kt_fail_memory(json->ctx, strlen(key), "a pattern");
    pattern->code =
        pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, &error, &offset, NULL);
    free(text);
    if (!pattern->code)
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s%s\" is not a valid regular expression",
                       json->path, json->prefix, key);
    pattern->match = pcre2_match_data_create_from_pattern(pattern->code, NULL);
    if (!pattern->match)
        return kt_fail_memory(json->ctx, strlen(key), "a pattern");
    return KT_OK;
}

/* Reads rank_pattern or alpha_pattern. */
static kt_status read_patterns(const struct kt_json *json, const char *key, bool ranks,
                               struct kt_peft_config *config)
{
    json_t *object = NULL, *value;
    const char *name;
    KT_TRY(kt_json_container(json, key, KT_JSON_OPTIONAL, JSON_OBJECT, &object));
    size_t count = config->num_patterns + json_object_size(object);
    if (count == config->num_patterns)
        return KT_OK;
    struct kt_peft_pattern *grown = realloc(config->patterns, count * sizeof *grown);
    if (!grown)
        return kt_fail_memory(json->ctx, count * sizeof *grown, key);
    config->patterns = grown;
    struct kt_json inner = {json->ctx, json->path, ranks ? "rank_pattern." : "alpha_pattern.",
                            object};
    json_object_foreach(object, name, value)
    {
        struct kt_peft_pattern *pattern = &config->patterns[config->num_patterns++];
        int64_t rank = 0;
        *pattern = (struct kt_peft_pattern){0};
        KT_TRY(compile(&inner, name, pattern));
        if (ranks)
            KT_TRY(kt_json_int(&inner, name, KT_JSON_REQUIRED, 1, MAX_RANK, &rank));
        else
            KT_TRY(read_alpha(&inner, name, KT_JSON_REQUIRED, &pattern->alpha));
        pattern->rank = (int32_t)rank;
    }
    return KT_OK;
}

static kt_status read_config(const struct kt_json *json, struct kt_peft_config *config)
{
    int64_t rank = 8;
    double dropout = 0;
    bool rslora = false;
    if (!json_is_object(json->object))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: this is not a JSON object", json->path);
    KT_TRY(check_features(json));
    KT_TRY(kt_json_int(json, "r", KT_JSON_REQUIRED, 1, MAX_RANK, &rank));
    config->lora.rank = (int32_t)rank;
    config->lora.alpha = 8; /* PEFT's default, as the rank's */
    KT_TRY(read_alpha(json, "lora_alpha", KT_JSON_OPTIONAL, &config->lora.alpha));
    KT_TRY(kt_json_bool(json, "use_rslora", KT_JSON_OPTIONAL, &rslora));
    KT_TRY(kt_json_real(json, "lora_dropout", KT_JSON_OPTIONAL, &dropout));
    if (!(dropout >= 0 && dropout < 1))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"lora_dropout\" is %g, outside of [0, 1)",
                       json->path, dropout);
    config->lora.dropout = (float)dropout;
    config->lora.use_rslora = rslora;
    KT_TRY(read_patterns(json, "rank_pattern", true, config));
    return read_patterns(json, "alpha_pattern", false, config);
}

kt_status kt_peft_config_read(kt_context *ctx, const char *file, struct kt_peft_config *config)
{
    json_t *root;
    *config = (struct kt_peft_config){0};
    KT_TRY(kt_json_load(ctx, file, KT_JSON_CONFIG_MAX, &root));
    struct kt_json json = {ctx, file, "", root};
    kt_status status = read_config(&json, config);
    json_decref(root);
    if (status != KT_OK)
        kt_peft_config_clear(config);
    return status;
}

void kt_peft_config_clear(struct kt_peft_config *config)
{
    for (size_t i = 0; i < config->num_patterns; i++) {
        pcre2_match_data_free(config->patterns[i].match);
        pcre2_code_free(config->patterns[i].code);
    }
    free(config->patterns);
    *config = (struct kt_peft_config){0};
}

static const struct kt_peft_pattern *find_pattern(const struct kt_peft_config *config,
                                                  const char *path, bool rank)
{
    for (size_t i = 0; i < config->num_patterns; i++) {
        const struct kt_peft_pattern *p = &config->patterns[i];
        if ((p->rank > 0) == rank && pcre2_match(p->code, (PCRE2_SPTR)path, PCRE2_ZERO_TERMINATED,
                                                 0, 0, p->match, NULL) >= 0)
            return p;
    }
    return NULL;
}

struct kt_lora_choice kt_peft_config_choice(const struct kt_peft_config *config, const char *path)
{
    const struct kt_peft_pattern *rank = find_pattern(config, path, true);
    const struct kt_peft_pattern *alpha = find_pattern(config, path, false);
    return (struct kt_lora_choice){rank ? rank->rank : config->lora.rank,
                                   alpha ? alpha->alpha : config->lora.alpha};
}
