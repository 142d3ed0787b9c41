/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "formats/file.h"
#include "formats/json.h"
#include "text/tokenizer.h"

static kt_status memory(const kt_tokenizer *t)
{
    return kt_fail_memory(t->ctx, 0, t->path);
}

/* A special token is named by its string or described as an added token. It keeps the flags that
 * an added token of the same content has, but for being special. */
static kt_status put_special(kt_tokenizer *t, const struct kt_json *json, const json_t *value,
                             const char **content)
{
    struct kt_json object = {json->ctx, json->path, json->prefix, value};
    *content = NULL;
    if (json_is_object(value))
        KT_TRY(kt_json_string(&object, "content", KT_JSON_REQUIRED, content));
    else if (json_is_string(value))
        *content = json_string_value(value);
    if (!*content || !**content)
        return KT_OK;
    struct kt_added_token *old = kt_added_find(&t->added, *content, strlen(*content));
    if (old) {
        old->special = true;
        return KT_OK;
    }
    if (json_is_object(value))
        return kt_added_read(&object, true, &t->vocab, &t->added);
    struct kt_added_token token = {
        .content = (char *)*content, .length = strlen(*content), .special = true};
    return kt_added_put(&t->added, &t->vocab, &token) ? KT_OK : memory(t);
}

static kt_status read_special(kt_tokenizer *t, const struct kt_json *json, const char *key,
                              int32_t *id)
{
    const char *content;
    KT_TRY(put_special(t, json, json_object_get(json->object, key), &content));
    if (content)
        *id = kt_tokenizer_find(t, &t->added, content, strlen(content));
    return KT_OK;
}

static kt_status read_specials(kt_tokenizer *t, const struct kt_json *json)
{
    int32_t other;
    size_t i;
    json_t *item;
    const char *content;
    KT_TRY(read_special(t, json, "bos_token", &t->bos));
    KT_TRY(read_special(t, json, "eos_token", &t->eos));
    KT_TRY(read_special(t, json, "unk_token", &other));
    KT_TRY(read_special(t, json, "sep_token", &other));
    KT_TRY(read_special(t, json, "pad_token", &t->pad));
    KT_TRY(read_special(t, json, "cls_token", &other));
    KT_TRY(read_special(t, json, "mask_token", &other));
    json_array_foreach(json_object_get(json->object, "additional_special_tokens"), i, item)
        KT_TRY(put_special(t, json, item, &content));
    return KT_OK;
}

static kt_status read_added_decoder(kt_tokenizer *t, const struct kt_json *json, json_t *decoder)
{
    const char *id;
    json_t *token;
    json_object_foreach(decoder, id, token)
    {
        struct kt_json object = {json->ctx, json->path, "added_tokens_decoder.", token};
        KT_TRY(kt_added_read(&object, false, &t->vocab, &t->added));
    }
    return KT_OK;
}

/* LlamaTokenizerFast puts its own post-processor in place of the file's. */
static kt_status set_post_processor(kt_tokenizer *t, const struct kt_json *json)
{
    const char *class = "";
    bool add_bos = true, add_eos = false;
    KT_TRY(kt_json_string(json, "tokenizer_class", KT_JSON_OPTIONAL, &class));
    if (strcmp(class, "LlamaTokenizerFast") != 0 && strcmp(class, "LlamaTokenizer") != 0)
        return KT_OK;
    KT_TRY(kt_json_bool(json, "add_bos_token", KT_JSON_OPTIONAL, &add_bos));
    KT_TRY(kt_json_bool(json, "add_eos_token", KT_JSON_OPTIONAL, &add_eos));
    if ((add_bos && t->bos < 0) || (add_eos && t->eos < 0))
        return kt_fail(t->ctx, KT_ERROR_FORMAT, "%s: \"%s\" is true, but there is no \"%s\"",
                       json->path, add_bos && t->bos < 0 ? "add_bos_token" : "add_eos_token",
                       add_bos && t->bos < 0 ? "bos_token" : "eos_token");
    t->prefix.count = t->suffix.count = 0;
    if ((add_bos && !kt_ids_push(&t->prefix, t->bos)) ||
        (add_eos && !kt_ids_push(&t->suffix, t->eos)))
        return memory(t);
    return KT_OK;
}

static kt_status apply_config(kt_tokenizer *t, const char *path, const json_t *root,
                              bool *has_decoder)
{
    struct kt_json json = {t->ctx, path, "", root};
    json_t *decoder = NULL;
    if (!json_is_object(root))
        return kt_fail(t->ctx, KT_ERROR_FORMAT, "%s: must be a JSON object", path);
    KT_TRY(
        kt_json_container(&json, "added_tokens_decoder", KT_JSON_OPTIONAL, JSON_OBJECT, &decoder));
    *has_decoder = decoder != NULL;
    KT_TRY(read_added_decoder(t, &json, decoder));
    KT_TRY(read_specials(t, &json));
    if (t->pretokenizer.lone_byte_level) {
        t->pretokenizer.add_space = false;
        KT_TRY(
            kt_json_bool(&json, "add_prefix_space", KT_JSON_OPTIONAL, &t->pretokenizer.add_space));
    }
    return set_post_processor(t, &json);
}

/* Loads folder/name; *root stays NULL when the file does not exist. */
static kt_status load_optional(kt_tokenizer *t, const char *folder, const char *name, char **path,
                               json_t **root)
{
    *path = kt_path_join(folder, name);
    if (!*path)
        return memory(t);
    return kt_file_exists(*path) ? kt_json_load(t->ctx, *path, KT_JSON_CONFIG_MAX, root) : KT_OK;
}

kt_status kt_tokenizer_read_config(kt_tokenizer *t, const char *folder)
{
    char *path = NULL;
    json_t *root = NULL;
    bool has_decoder = false;
    kt_status status = load_optional(t, folder, "tokenizer_config.json", &path, &root);
    if (status == KT_OK && root)
        status = apply_config(t, path, root, &has_decoder);
    json_decref(root);
    free(path);
    path = NULL;
    root = NULL;
    if (status != KT_OK || has_decoder)
        return status;
    status = load_optional(t, folder, "special_tokens_map.json", &path, &root);
    struct kt_json json = {t->ctx, path, "", root};
    if (status == KT_OK && root)
        status = read_specials(t, &json);
    json_decref(root);
    free(path);
    return status;
}
