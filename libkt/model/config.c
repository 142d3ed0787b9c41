/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"
#include "formats/json.h"
#include "model/model.h"
#include "model/quantization.h"

enum { MAX_SIZE = 1 << 24 };

kt_status kt_config_int(const struct kt_json *json, const char *key, bool required, int64_t low,
                        int64_t high, int32_t *value)
{
    int64_t number = *value;
    KT_TRY(
        kt_json_int(json, key, required ? KT_JSON_REQUIRED : KT_JSON_OPTIONAL, low, high, &number));
    *value = (int32_t)number;
    return KT_OK;
}

static const struct kt_architecture *find_architecture(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "model_type"));
    const json_t *names = json_object_get(object, "architectures");
    const char *name = json_string_value(json_array_get(names, 0));
    for (size_t i = 0; kt_architectures[i]; i++) {
        const struct kt_architecture *a = kt_architectures[i];
        if (name ? strcmp(name, a->name) == 0 : type && strcmp(type, a->model_type) == 0)
            return a;
    }
    return NULL;
}

static kt_status unknown_architecture(const struct kt_json *json)
{
    char known[512] = "";
    const char *name =
        json_string_value(json_array_get(json_object_get(json->object, "architectures"), 0));
    const char *type = json_string_value(json_object_get(json->object, "model_type"));
    for (size_t i = 0; kt_architectures[i]; i++) {
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, kt_architectures[i]->name, sizeof known - strlen(known) - 1);
    }
    if (!name && !type)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: the keys \"architectures\" and \"model_type\" are missing; is it the "
                       "config.json of a language model?",
                       json->path);
    return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: architecture \"%s\" is not supported; the supported ones are %s",
                   json->path, name ? name : type, known);
}

/* A number, or a list of which the first counts; -1 = none. */
static kt_status read_token_id(const struct kt_json *json, const char *key,
                               const struct kt_model_config *c, int32_t *id)
{
    json_t *value = json_object_get(json->object, key);
    *id = -1;
    if (!json_is_array(value))
        return kt_config_int(json, key, false, -1, c->vocab_size - 1, id);
    json_t *first = json_array_get(value, 0);
    if (!json_is_integer(first) || json_integer_value(first) < 0 ||
        json_integer_value(first) >= c->vocab_size)
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s\" does not begin with a token id",
                       json->path, key);
    *id = (int32_t)json_integer_value(first);
    return KT_OK;
}

static kt_status read_activation(const struct kt_json *json, struct kt_model_config *c)
{
    const char *name = "silu";
    KT_TRY(kt_json_string(json, "hidden_act", KT_JSON_OPTIONAL, &name));
    if (strcmp(name, "silu") != 0)
        return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"hidden_act\" is \"%s\"; only silu is supported", json->path, name);
    c->activation = KT_ACTIVATION_SILU;
    return KT_OK;
}

static kt_status read_epsilon(const struct kt_json *json, struct kt_model_config *c)
{
    double eps = 1e-6;
    KT_TRY(kt_json_real(json, "rms_norm_eps", KT_JSON_OPTIONAL, &eps));
    if (!(eps >= 0 && eps <= 1))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"rms_norm_eps\" is %g, outside of 0 to 1",
                       json->path, eps);
    c->rms_norm_eps = (float)eps;
    return KT_OK;
}

static kt_status warn_dropout(const struct kt_json *json)
{
    double dropout = 0;
    KT_TRY(kt_json_real(json, "attention_dropout", KT_JSON_OPTIONAL, &dropout));
    if (dropout != 0)
        kt_log(json->ctx, KT_LOG_WARNING, "%s: \"attention_dropout\" %g is not applied", json->path,
               dropout);
    return KT_OK;
}

static kt_status read_shared(const struct kt_json *json, struct kt_model_config *c)
{
    bool tied = false;
    KT_TRY(kt_config_int(json, "vocab_size", true, 1, MAX_SIZE, &c->vocab_size));
    KT_TRY(kt_config_int(json, "hidden_size", true, 1, MAX_SIZE, &c->hidden_size));
    KT_TRY(kt_config_int(json, "num_hidden_layers", true, 1, KT_MAX_LAYERS, &c->num_hidden_layers));
    KT_TRY(kt_config_int(json, "num_attention_heads", true, 1, 65536, &c->num_attention_heads));
    c->num_key_value_heads = c->num_attention_heads;
    KT_TRY(kt_config_int(json, "num_key_value_heads", false, 1, 65536, &c->num_key_value_heads));
    KT_TRY(kt_config_int(json, "max_position_embeddings", true, 1, 1 << 30,
                         &c->max_position_embeddings));
    KT_TRY(kt_json_bool(json, "tie_word_embeddings", KT_JSON_OPTIONAL, &tied));
    c->tie_word_embeddings = tied;
    KT_TRY(read_token_id(json, "bos_token_id", c, &c->bos_token_id));
    KT_TRY(read_token_id(json, "eos_token_id", c, &c->eos_token_id));
    KT_TRY(read_activation(json, c));
    KT_TRY(read_epsilon(json, c));
    return warn_dropout(json);
}

kt_status kt_config_read_object(kt_context *ctx, const char *path, const json_t *object,
                                struct kt_model_config *config)
{
    struct kt_json json = {ctx, path, "", object};
    memset(config, 0, sizeof *config);
    if (!json_is_object(object))
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: not a JSON object", path);
    config->architecture = find_architecture(object);
    if (!config->architecture)
        return unknown_architecture(&json);
    KT_TRY(kt_quantization_read(&json, &config->quantization));
    KT_TRY(read_shared(&json, config));
    return config->architecture->configure(&json, config);
}

kt_status kt_config_read(kt_context *ctx, const char *path, struct kt_model_config *config)
{
    json_t *root;
    char *file = kt_path_join(path, "config.json");
    if (!file)
        return kt_fail_memory(ctx, strlen(path), "a file name");
    kt_status status = kt_json_load(ctx, file, KT_JSON_CONFIG_MAX, &root);
    if (status == KT_OK) {
        status = kt_config_read_object(ctx, file, root, config);
        json_decref(root);
    }
    free(file);
    return status;
}
