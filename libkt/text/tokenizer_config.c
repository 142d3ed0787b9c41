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

/* Tokenizer classes of transformers with special tokens of their own where the file lacks the key;
 * a null in the file means none. */
static const struct class_defaults {
    const char *name, *bos, *eos, *unk, *pad;
} classes[] = {
    {"LlamaTokenizer", "<s>", "</s>", "<unk>", NULL},
    {"Qwen2Tokenizer", NULL, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"},
    {"GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", NULL},
    {"", NULL, NULL, NULL, NULL},
};

/* A class is known with and without "Fast" at its end; the last row stands for all others. */
static const struct class_defaults *find_class(const char *name)
{
    const struct class_defaults *c = classes;
    for (; *c->name; c++) {
        size_t length = strlen(c->name);
        if (strncmp(name, c->name, length) == 0 &&
            (!name[length] || strcmp(name + length, "Fast") == 0))
            break;
    }
    return c;
}

static kt_status read_special(kt_tokenizer *t, const struct kt_json *json, const char *key,
                              const char *otherwise, int32_t *id)
{
    const char *content;
    json_t *value = json_object_get(json->object, key);
    json_t *fallback = !value && otherwise ? json_string(otherwise) : NULL;
    if (!value && otherwise && !fallback)
        return memory(t);
    kt_status status = put_special(t, json, fallback ? fallback : value, &content);
    if (status == KT_OK && content)
        *id = kt_tokenizer_find(t, &t->added, content, strlen(content));
    json_decref(fallback);
    return status;
}

static kt_status read_specials(kt_tokenizer *t, const struct kt_json *json,
                               const struct class_defaults *class)
{
    int32_t other;
    size_t i;
    json_t *item;
    const char *content;
    KT_TRY(read_special(t, json, "bos_token", class->bos, &t->bos));
    KT_TRY(read_special(t, json, "eos_token", class->eos, &t->eos));
    KT_TRY(read_special(t, json, "unk_token", class->unk, &other));
    KT_TRY(read_special(t, json, "sep_token", NULL, &other));
    KT_TRY(read_special(t, json, "pad_token", class->pad, &t->pad));
    KT_TRY(read_special(t, json, "cls_token", NULL, &other));
    KT_TRY(read_special(t, json, "mask_token", NULL, &other));
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
    bool add_bos = true, add_eos = false;
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

#define MARK "\u2581" /* what stands for a space in SentencePiece's tokens */

static json_t *replace(const char *from, const char *to)
{
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                     to);
}

/* How LlamaTokenizerFast treats spaces when it is made from tokenizer.model, in the words of
 * tokenizer.json; with `add_space` one goes before a text. */
static json_t *make_spaces(bool legacy, bool add_space)
{
    json_t *decoders =
        json_pack("[o, {s:s}, {s:s}]", replace(MARK, " "), "type", "ByteFallback", "type", "Fuse");
    json_t *steps = json_array();
    int failed = 0;
    if (add_space) {
        failed |= json_array_append_new(
            steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", MARK));
        failed |= json_array_append_new(decoders, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip",
                                                            "content", " ", "start", 1, "stop", 0));
    }
    failed |= json_array_append_new(steps, replace(" ", MARK));
    json_t *root =
        json_pack("{s:{s:s, s:o}, s:{s:s, s:o}, s:{s:s, s:s, s:s, s:b}}", "decoder", "type",
                  "Sequence", "decoders", decoders, "normalizer", "type", "Sequence", "normalizers",
                  steps, "pre_tokenizer", "type", "Metaspace", "replacement", MARK,
                  "prepend_scheme", add_space ? "first" : "never", "split", 0);
    if (failed || !root || json_object_del(root, legacy ? "pre_tokenizer" : "normalizer")) {
        json_decref(root);
        return NULL;
    }
    return root;
}

static kt_status read_spaces(kt_tokenizer *t, const json_t *root)
{
    if (!root)
        return memory(t);
    kt_normalizer_free(&t->normalizer);
    kt_pretokenizer_free(&t->pretokenizer);
    kt_decoder_free(&t->decoder);
    KT_TRY(
        kt_normalizer_read(t->ctx, t->path, json_object_get(root, "normalizer"), &t->normalizer));
    KT_TRY(kt_pretokenizer_read(t->ctx, t->path, json_object_get(root, "pre_tokenizer"),
                                &t->pretokenizer));
    return kt_decoder_read(t->ctx, t->path, json_object_get(root, "decoder"), &t->decoder);
}

/* With add_prefix_space, true or false, LlamaTokenizerFast is made from the tokenizer.model beside
 * tokenizer.json, which holds the same tokens; without that file transformers loads nothing, and
 * what tokenizer.json says of spaces stands here. */
static kt_status set_prefix_space(kt_tokenizer *t, const struct kt_json *json, const char *folder)
{
    const json_t *given = json_object_get(json->object, "add_prefix_space");
    bool add_space = false, legacy = true;
    KT_TRY(kt_json_bool(json, "add_prefix_space", KT_JSON_OPTIONAL, &add_space));
    KT_TRY(kt_json_bool(json, "legacy", KT_JSON_OPTIONAL, &legacy));
    if (!json_is_boolean(given) || t->pretokenizer.bytes)
        return KT_OK;
    char *model = kt_path_join(folder, "tokenizer.model");
    if (!model)
        return memory(t);
    bool found = kt_file_exists(model);
    free(model);
    if (!found)
        return KT_OK;
    json_t *root = make_spaces(legacy, add_space);
    kt_status status = read_spaces(t, root);
    json_decref(root);
    return status;
}

static kt_status apply_config(kt_tokenizer *t, const char *path, const char *folder,
                              const json_t *root, bool *has_decoder)
{
    struct kt_json json = {t->ctx, path, "", root};
    const char *name = "";
    json_t *decoder = NULL;
    if (!json_is_object(root))
        return kt_fail(t->ctx, KT_ERROR_FORMAT, "%s: must be a JSON object", path);
    KT_TRY(
        kt_json_container(&json, "added_tokens_decoder", KT_JSON_OPTIONAL, JSON_OBJECT, &decoder));
    *has_decoder = decoder != NULL;
    KT_TRY(read_added_decoder(t, &json, decoder));
    KT_TRY(kt_json_string(&json, "tokenizer_class", KT_JSON_OPTIONAL, &name));
    const struct class_defaults *class = find_class(name);
    KT_TRY(read_specials(t, &json, class));
    if (t->pretokenizer.lone_byte_level) {
        t->pretokenizer.add_space = false;
        KT_TRY(
            kt_json_bool(&json, "add_prefix_space", KT_JSON_OPTIONAL, &t->pretokenizer.add_space));
    }
    if (class != classes)
        return KT_OK;
    KT_TRY(set_prefix_space(t, &json, folder));
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
        status = apply_config(t, path, folder, root, &has_decoder);
    json_decref(root);
    free(path);
    path = NULL;
    root = NULL;
    if (status != KT_OK || has_decoder)
        return status;
    status = load_optional(t, folder, "special_tokens_map.json", &path, &root);
    struct kt_json json = {t->ctx, path, "", root};
    if (status == KT_OK && root)
        status = read_specials(t, &json, find_class(""));
    json_decref(root);
    free(path);
    return status;
}
