/* SPDX-License-Identifier: Apache-2.0 */
/* A GGUF file's tokenizer, told in the words of tokenizer.json, so that there is one reader. */
#include "formats/gguf.h"

#include "core/context.h"
#include "text/tokenizer.h"

/* Kinds of tokens in tokenizer.ggml.token_type. Unused ones fill gaps of the vocabulary under names
 * that were made up for them. */
enum { CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };

/* What DeepSeek's first models take for letters of a word: cased letters of some scripts. */
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"                \
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"           \
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"               \
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"               \
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"         \
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"          \
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"                \
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"           \
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"          \
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"                \
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"       \
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"         \
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
#define DEEPSEEK_LINE_ENDS "[\r\n]"
#define DEEPSEEK_EAST_ASIAN "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

/* What tokenizer.ggml.pre stands for: the pre-tokenizers of the models that it is named after. */
static const struct pre {
    const char *name;
    bool nfc;
    const char *patterns[5];
    bool digits; /* each stands alone */
} pre_tokenizers[] = {
    {.name = "deepseek-llm",
     .patterns = {DEEPSEEK_LINE_ENDS, "\\s?[" DEEPSEEK_LETTERS "]+",
                  "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
                  DEEPSEEK_EAST_ASIAN},
     .digits = true},
    {.name = "deepseek-coder",
     .patterns = {DEEPSEEK_LINE_ENDS, "\\s?\\p{L}+", "\\s?\\p{P}+", DEEPSEEK_EAST_ASIAN},
     .digits = true},
    {.name = "deepseek-v3",
     .patterns = {"\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                  "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|"
                  "\\s+(?!\\S)|\\s+"}},
    {.name = "qwen2",
     .nfc = true,
     .patterns = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                  "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

struct source {
    kt_tokenizer *out;
    struct kt_json json; /* the metadata */
    json_t *tokens, *kinds;
};

static kt_status memory(const struct source *s)
{
    return kt_fail_memory(s->json.ctx, 0, s->json.path);
}

static kt_status needs_file(const struct source *s, const char *key, const char *value)
{
    return kt_fail(
        s->json.ctx, KT_ERROR_UNSUPPORTED,
        "%s: \"%s\" is \"%s\", which libkt cannot make a tokenizer from; put the model's "
        "tokenizer.json and tokenizer_config.json beside the file",
        s->json.path, key, value);
}

static kt_status find_pre(const struct source *s, const struct pre **pre)
{
    const char *model = "", *name = "";
    KT_TRY(kt_json_string(&s->json, "tokenizer.ggml.model", KT_JSON_OPTIONAL, &model));
    KT_TRY(kt_json_string(&s->json, "tokenizer.ggml.pre", KT_JSON_OPTIONAL, &name));
    if (strcmp(model, "gpt2") != 0)
        return needs_file(s, "tokenizer.ggml.model", model);
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof *pre_tokenizers; i++) {
        *pre = &pre_tokenizers[i];
        if (strcmp(name, (*pre)->name) == 0)
            return KT_OK;
    }
    return needs_file(s, "tokenizer.ggml.pre", name);
}

/* {"type": "Sequence", "pretokenizers": a Split for each pattern, Digits if need be, ByteLevel}. */
static json_t *make_pre_tokenizer(const struct pre *pre)
{
    json_t *list = json_array();
    int failed = 0;
    for (size_t i = 0; i < sizeof pre->patterns / sizeof *pre->patterns && pre->patterns[i]; i++)
        failed |= json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s}", "type", "Split",
                                                        "pattern", "Regex", pre->patterns[i],
                                                        "behavior", "Isolated"));
    if (pre->digits)
        failed |= json_array_append_new(
            list, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
    failed |= json_array_append_new(list, json_pack("{s:s, s:b, s:b}", "type", "ByteLevel",
                                                    "add_prefix_space", 0, "use_regex", 0));
    if (failed) {
        json_decref(list);
        return NULL;
    }
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static kt_status kind_of(const struct source *s, size_t index, json_int_t *kind)
{
    const json_t *value = json_array_get(s->kinds, index);
    *kind = json_integer_value(value);
    if (!s->kinds || json_is_integer(value))
        return KT_OK;
    return kt_fail(s->json.ctx, KT_ERROR_FORMAT,
                   "%s: \"tokenizer.ggml.token_type\" has no number for token %zu", s->json.path,
                   index);
}

static kt_status fill_tokens(const struct source *s, json_t *vocab, json_t *added)
{
    size_t i;
    json_t *token;
    json_array_foreach(s->tokens, i, token)
    {
        json_int_t kind;
        KT_TRY(kind_of(s, i, &kind));
        if (kind == UNUSED)
            continue;
        if (!json_is_string(token) || json_object_get(vocab, json_string_value(token)))
            return kt_fail(s->json.ctx, KT_ERROR_FORMAT,
                           "%s: \"tokenizer.ggml.tokens\": token %zu is not text in UTF-8, or is "
                           "there twice",
                           s->json.path, i);
        if (json_object_set_new(vocab, json_string_value(token), json_integer((json_int_t)i)))
            return memory(s);
        if ((kind == CONTROL || kind == USER_DEFINED) &&
            json_array_append_new(added, json_pack("{s:O, s:b, s:b}", "content", token, "special",
                                                   kind == CONTROL, "normalized", 0)))
            return memory(s);
    }
    return KT_OK;
}

static kt_status read_id(const struct source *s, const char *key, int32_t *id)
{
    int64_t value = -1;
    KT_TRY(kt_json_int(&s->json, key, KT_JSON_OPTIONAL, 0, (int64_t)json_array_size(s->tokens) - 1,
                       &value));
    *id = (int32_t)value;
    return KT_OK;
}

/* bos, eos and pad, and which of them go around a text. */
static kt_status read_ids(const struct source *s)
{
    kt_tokenizer *t = s->out;
    bool add_bos = false, add_eos = false;
    KT_TRY(read_id(s, "tokenizer.ggml.bos_token_id", &t->bos));
    KT_TRY(read_id(s, "tokenizer.ggml.eos_token_id", &t->eos));
    KT_TRY(read_id(s, "tokenizer.ggml.padding_token_id", &t->pad));
    KT_TRY(kt_json_bool(&s->json, "tokenizer.ggml.add_bos_token", KT_JSON_OPTIONAL, &add_bos));
    KT_TRY(kt_json_bool(&s->json, "tokenizer.ggml.add_eos_token", KT_JSON_OPTIONAL, &add_eos));
    if ((add_bos && t->bos >= 0 && !kt_ids_push(&t->prefix, t->bos)) ||
        (add_eos && t->eos >= 0 && !kt_ids_push(&t->suffix, t->eos)))
        return memory(s);
    return KT_OK;
}

static kt_status read_metadata(struct source *s)
{
    const struct pre *pre;
    json_t *merges;
    KT_TRY(find_pre(s, &pre));
    KT_TRY(kt_json_container(&s->json, "tokenizer.ggml.tokens", KT_JSON_REQUIRED, JSON_ARRAY,
                             &s->tokens));
    KT_TRY(kt_json_container(&s->json, "tokenizer.ggml.merges", KT_JSON_REQUIRED, JSON_ARRAY,
                             &merges));
    KT_TRY(kt_json_container(&s->json, "tokenizer.ggml.token_type", KT_JSON_OPTIONAL, JSON_ARRAY,
                             &s->kinds));
    json_t *vocab = json_object(), *added = json_array();
    json_t *root =
        json_pack("{s:o, s:{s:s, s:o, s:O}, s:o, s:{s:s}}", "added_tokens", added, "model", "type",
                  "BPE", "vocab", vocab, "merges", merges, "pre_tokenizer", make_pre_tokenizer(pre),
                  "decoder", "type", "ByteLevel");
    kt_status status = root ? fill_tokens(s, vocab, added) : memory(s);
    if (status == KT_OK && pre->nfc &&
        json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC")))
        status = memory(s);
    if (status == KT_OK)
        status = kt_tokenizer_read(s->out, root);
    json_decref(root);
    return status == KT_OK ? read_ids(s) : status;
}

kt_status kt_tokenizer_read_gguf(kt_tokenizer *out)
{
    struct kt_gguf *gguf;
    KT_TRY(kt_gguf_open(out->ctx, out->path, &gguf));
    struct source s = {.out = out, .json = kt_gguf_json(gguf)};
    kt_status status = read_metadata(&s);
    kt_gguf_close(gguf);
    return status;
}
