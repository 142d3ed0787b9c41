/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "model/gguf_builder.h"

/* Settings of llama.cpp that nothing here computes; 0 and 1 turn them off. */
static kt_status refuse_settings(const struct kt_gguf_builder *b)
{
    static const char *const keys[] = {"attention.sliding_window",
                                       "attention.temperature_scale",
                                       "attn_logit_softcapping",
                                       "final_logit_softcapping",
                                       "logit_scale",
                                       "rope.scale_linear",
                                       "rope.scaling.attn_factor",
                                       "rope.scaling.yarn_ext_factor"};
    char text[KT_GGUF_KEY_BYTES];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double value = 0;
        KT_TRY(
            kt_json_real(&b->json, kt_gguf_full_key(b, keys[i], text), KT_JSON_OPTIONAL, &value));
        if (value != 0 && value != 1)
            return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"%s\" is %g, and what it asks for is not supported; if the model "
                           "does without, put its config.json beside the file",
                           b->json.path, text, value);
    }
    return KT_OK;
}

/* YaRN's mscale and mscale_all_dim, which are equal in released models, stand in the file as a
 * tenth: the factor before the logarithm. The shortest decimal of float32 undoes that exactly. */
static kt_status put_mscale(const struct kt_gguf_builder *b, json_t *scaling)
{
    char text[KT_GGUF_KEY_BYTES];
    double tenth = 0;
    KT_TRY(kt_json_real(&b->json, kt_gguf_full_key(b, "rope.scaling.yarn_log_multiplier", text),
                        KT_JSON_OPTIONAL, &tenth));
    if (tenth == 0)
        return KT_OK;
    snprintf(text, sizeof text, "%.7g", tenth * 10);
    double mscale = strtod(text, NULL);
    if (json_object_set_new(scaling, "mscale", json_real(mscale)) == 0 &&
        json_object_set_new(scaling, "mscale_all_dim", json_real(mscale)) == 0)
        return KT_OK;
    return kt_fail_memory(b->json.ctx, 0, "a configuration");
}

static kt_status fill_scaling(const struct kt_gguf_builder *b, const char *type, json_t *scaling)
{
    int64_t original = -1;
    if (json_object_set_new(scaling, "rope_type", json_string(type)) != 0)
        return kt_fail_memory(b->json.ctx, 0, "a configuration");
    KT_TRY(kt_gguf_copy_real(b, "rope.scaling.factor", scaling, "factor"));
    if (strcmp(type, "yarn") != 0)
        return KT_OK;
    KT_TRY(kt_gguf_copy_real(b, "rope.scaling.yarn_beta_fast", scaling, "beta_fast"));
    KT_TRY(kt_gguf_copy_real(b, "rope.scaling.yarn_beta_slow", scaling, "beta_slow"));
    KT_TRY(kt_gguf_copy_real(b, "rope.scaling.yarn_attn_factor", scaling, "attention_factor"));
    KT_TRY(kt_gguf_get(b, "rope.scaling.original_context_length", KT_JSON_REQUIRED, &original));
    if (json_object_set_new(scaling, "original_max_position_embeddings", json_integer(original)))
        return kt_fail_memory(b->json.ctx, 0, "a configuration");
    return put_mscale(b, scaling);
}

static kt_status build_rope(const struct kt_gguf_builder *b)
{
    char text[KT_GGUF_KEY_BYTES];
    const char *type = "none";
    KT_TRY(kt_gguf_copy_real(b, "rope.freq_base", b->config, "rope_theta"));
    KT_TRY(kt_json_string(&b->json, kt_gguf_full_key(b, "rope.scaling.type", text),
                          KT_JSON_OPTIONAL, &type));
    if (strcmp(type, "none") == 0)
        return KT_OK;
    if (strcmp(type, "linear") != 0 && strcmp(type, "yarn") != 0)
        return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                       "%s: \"%s\" is \"%s\"; none, linear and yarn are supported", b->json.path,
                       text, type);
    json_t *scaling = json_object();
    KT_TRY(kt_gguf_put(b, "rope_scaling", scaling));
    return fill_scaling(b, type, scaling);
}

static kt_status build_vocabulary(const struct kt_gguf_builder *b)
{
    static const char *const ids[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                         {"tokenizer.ggml.eos_token_id", "eos_token_id"}};
    const struct kt_tensor *table = kt_gguf_find(b->gguf, "token_embd.weight");
    int64_t size = table && table->ndim == 2 ? table->shape[0] : 0;
    KT_TRY(kt_gguf_get(b, "vocab_size", KT_JSON_OPTIONAL, &size));
    KT_TRY(kt_gguf_put(b, "vocab_size", json_integer(size)));
    for (int i = 0; i < 2; i++) {
        int64_t id = -1;
        KT_TRY(kt_json_int(&b->json, ids[i][0], KT_JSON_OPTIONAL, 0, INT32_MAX, &id));
        if (id >= 0)
            KT_TRY(kt_gguf_put(b, ids[i][1], json_integer(id)));
    }
    return kt_gguf_put(b, "tie_word_embeddings",
                       json_boolean(!kt_gguf_find(b->gguf, "output.weight")));
}

static kt_status build_common(const struct kt_gguf_builder *b)
{
    static const char *const keys[][2] = {{"embedding_length", "hidden_size"},
                                          {"feed_forward_length", "intermediate_size"},
                                          {"attention.head_count", "num_attention_heads"},
                                          {"context_length", "max_position_embeddings"},
                                          {NULL, NULL}};
    int64_t blocks = 0, nextn = 0;
    KT_TRY(refuse_settings(b));
    KT_TRY(kt_gguf_get(b, "block_count", KT_JSON_REQUIRED, &blocks));
    KT_TRY(kt_gguf_get(b, "nextn_predict_layers", KT_JSON_OPTIONAL, &nextn));
    KT_TRY(kt_gguf_put(b, "num_hidden_layers", json_integer(blocks - nextn)));
    KT_TRY(kt_gguf_put(b, "num_nextn_predict_layers", json_integer(nextn)));
    KT_TRY(kt_gguf_copy_required(b, keys));
    KT_TRY(kt_gguf_copy_real(b, "attention.layer_norm_rms_epsilon", b->config, "rms_norm_eps"));
    KT_TRY(build_rope(b));
    return build_vocabulary(b);
}

static const struct kt_gguf_architecture *find_architecture(const char *name)
{
    const struct kt_gguf_architecture *a = kt_gguf_architectures;
    while (a->name && strcmp(a->name, name) != 0)
        a++;
    return a->name ? a : NULL;
}

kt_status kt_gguf_check_architecture(const struct kt_gguf *gguf, const char **name)
{
    char known[256] = "";
    struct kt_json json = kt_gguf_json(gguf);
    KT_TRY(kt_json_string(&json, "general.architecture", KT_JSON_REQUIRED, name));
    if (find_architecture(*name))
        return KT_OK;
    for (const struct kt_gguf_architecture *a = kt_gguf_architectures; a->name; a++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "",
                 a->name);
    return kt_fail(gguf->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: architecture \"%s\" is not supported in GGUF files; the supported ones are "
                   "%s",
                   json.path, *name, known);
}

kt_status kt_gguf_config(const struct kt_gguf *gguf, json_t **config)
{
    struct kt_gguf_builder b = {.gguf = gguf, .json = kt_gguf_json(gguf)};
    *config = NULL;
    KT_TRY(kt_gguf_check_architecture(gguf, &b.architecture));
    b.config = json_object();
    if (!b.config)
        return kt_fail_memory(gguf->ctx, 0, "a configuration");
    kt_status status = build_common(&b);
    if (status == KT_OK)
        status = find_architecture(b.architecture)->build(&b);
    if (status == KT_OK)
        *config = b.config;
    else
        json_decref(b.config);
    return status;
}
