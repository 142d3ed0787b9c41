/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "core/context.h"
#include "formats/file.h"
#include "formats/json.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

struct reader {
    kt_context *ctx;
    kt_tokenizer *out;
};

static kt_status unsupported(const struct reader *r, const char *what)
{
    return kt_fail(r->ctx, KT_ERROR_UNSUPPORTED, "%s: %s is not supported", r->out->path, what);
}

static kt_status malformed(const struct reader *r, const char *what, size_t index)
{
    return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s: %s %zu is malformed", r->out->path, what, index);
}

static kt_status memory(const struct reader *r)
{
    return kt_fail_memory(r->ctx, 0, r->out->path);
}

static struct kt_json at(const struct reader *r, const char *prefix, const json_t *object)
{
    return (struct kt_json){r->ctx, r->out->path, prefix, object};
}

/* Ids may have gaps, but a table of them must not be mostly gaps. */
static kt_status check_largest(const struct reader *r, json_t *vocab)
{
    struct kt_budget budget;
    const char *token;
    json_t *value;
    json_int_t largest = 0;
    json_object_foreach(vocab, token, value) if (json_integer_value(value) > largest) largest =
        json_integer_value(value);
    kt_budget_start(&budget, r->ctx, r->out->path, json_object_size(vocab) * 64);
    return largest < KT_VOCAB_LIMIT
               ? kt_budget_bytes(&budget,
                                 2 * sizeof *r->out->vocab.entries * ((uint64_t)largest + 1),
                                 "model.vocab with ids so far apart")
               : KT_OK;
}

static kt_status read_vocab(const struct reader *r, json_t *vocab)
{
    const char *token;
    json_t *value;
    KT_TRY(check_largest(r, vocab));
    json_object_foreach(vocab, token, value)
    {
        size_t length;
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= KT_VOCAB_LIMIT)
            return kt_fail(r->ctx, KT_ERROR_FORMAT,
                           "%s: model.vocab: the id of \"%s\" must be an integer from 0 to %d",
                           r->out->path, token, KT_VOCAB_LIMIT - 1);
        if (kt_vocab_text(&r->out->vocab, (int32_t)id, &length))
            return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s: model.vocab: two tokens have the id %d",
                           r->out->path, (int)id);
        if (!kt_vocab_add(&r->out->vocab, token, strlen(token), (int32_t)id))
            return memory(r);
    }
    if (r->out->vocab.count == 0)
        return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s: model.vocab is empty", r->out->path);
    for (int b = 0; b < 256; b++) {
        char spelled[8];
        size_t n = kt_utf8_put(kt_alphabet_from_byte((unsigned char)b), spelled);
        r->out->bpe.byte_ids[b] = kt_vocab_find(&r->out->vocab, spelled, n);
        n = (size_t)snprintf(spelled, sizeof spelled, "<0x%02X>", b);
        r->out->bpe.fallback_ids[b] = kt_vocab_find(&r->out->vocab, spelled, n);
    }
    return KT_OK;
}

/* A merge is "left right" or ["left", "right"]. */
static bool split_merge(const json_t *merge, const char **left, size_t *num_left,
                        const char **right, size_t *num_right)
{
    if (json_is_string(merge)) {
        *left = json_string_value(merge);
        *num_left = strcspn(*left, " ");
        *right = *left + *num_left + 1;
        *num_right = json_string_length(merge) - *num_left - 1;
        return *num_left < json_string_length(merge) && !memchr(*right, ' ', *num_right);
    }
    const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
    *left = json_string_value(a);
    *right = json_string_value(b);
    *num_left = json_string_length(a);
    *num_right = json_string_length(b);
    return json_array_size(merge) == 2 && *left && *right;
}

static kt_status read_merge(const struct reader *r, const json_t *merge, size_t rank,
                            struct kt_bytes *joined)
{
    const struct kt_vocab *vocab = &r->out->vocab;
    const char *left, *right;
    size_t num_left, num_right;
    if (!split_merge(merge, &left, &num_left, &right, &num_right))
        return malformed(r, "model.merges: entry", rank);
    joined->count = 0;
    if (!kt_bytes_append(joined, left, num_left) || !kt_bytes_append(joined, right, num_right))
        return memory(r);
    int32_t a = kt_vocab_find(vocab, left, num_left), b = kt_vocab_find(vocab, right, num_right);
    int32_t id = kt_vocab_find(vocab, joined->data, joined->count);
    if (a < 0 || b < 0 || id < 0)
        return kt_fail(r->ctx, KT_ERROR_FORMAT,
                       "%s: model.merges: entry %zu has a token that model.vocab lacks",
                       r->out->path, rank);
    kt_bpe_add_merge(&r->out->bpe, a, b, (uint32_t)rank, id);
    return KT_OK;
}

static kt_status read_merges(const struct reader *r, json_t *merges)
{
    struct kt_bytes joined = {0};
    kt_status status = KT_OK;
    size_t i;
    json_t *merge;
    if (!kt_bpe_init(&r->out->bpe, json_array_size(merges)))
        return memory(r);
    json_array_foreach(merges, i, merge)
    {
        status = read_merge(r, merge, i, &joined);
        if (status != KT_OK)
            break;
    }
    free(joined.data);
    return status;
}

/* Looks at the kind first: what else such a file holds follows from it. */
static kt_status check_kind(const struct reader *r, const struct kt_json *model)
{
    const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = "BPE";
    double dropout = 0;
    KT_TRY(kt_json_string(model, "type", KT_JSON_OPTIONAL, &type));
    if (strcmp(type, "BPE") != 0)
        return kt_fail(
            r->ctx, KT_ERROR_UNSUPPORTED,
            "%s: model.type is \"%s\"; libkt reads BPE tokenizers alone, byte-level ones "
            "and SentencePiece's",
            r->out->path, type);
    for (int i = 0; i < 2; i++) {
        const char *affix = "";
        KT_TRY(kt_json_string(model, affixes[i], KT_JSON_OPTIONAL, &affix));
        if (*affix)
            return unsupported(r, affixes[i]);
    }
    KT_TRY(kt_json_real(model, "dropout", KT_JSON_OPTIONAL, &dropout));
    return dropout != 0 ? unsupported(r, "model.dropout") : KT_OK;
}

/* Without unk_token a symbol that has no token is left out, as the tokenizers package does; one
 * that is not in the vocabulary would fail there at the first such symbol. */
static kt_status read_unknown(const struct reader *r, const struct kt_json *model)
{
    struct kt_bpe *bpe = &r->out->bpe;
    const char *token = NULL;
    bool complete = bpe->byte_level;
    KT_TRY(kt_json_string(model, "unk_token", KT_JSON_OPTIONAL, &token));
    bpe->unknown = token ? kt_vocab_find(&r->out->vocab, token, strlen(token)) : -1;
    for (int b = 0; b < 256; b++)
        complete = complete && bpe->byte_ids[b] >= 0;
    if (token && bpe->unknown < 0 && !complete)
        return kt_fail(r->ctx, KT_ERROR_FORMAT,
                       "%s: model.unk_token is \"%s\", which model.vocab lacks", r->out->path,
                       token);
    return KT_OK;
}

static kt_status read_model(const struct reader *r, const struct kt_json *model)
{
    json_t *vocab, *merges;
    struct kt_bpe *bpe = &r->out->bpe;
    KT_TRY(kt_json_bool(model, "byte_fallback", KT_JSON_OPTIONAL, &bpe->byte_fallback));
    KT_TRY(kt_json_bool(model, "ignore_merges", KT_JSON_OPTIONAL, &bpe->ignore_merges));
    KT_TRY(kt_json_bool(model, "fuse_unk", KT_JSON_OPTIONAL, &bpe->fuse_unknown));
    KT_TRY(kt_json_container(model, "vocab", KT_JSON_REQUIRED, JSON_OBJECT, &vocab));
    KT_TRY(kt_json_container(model, "merges", KT_JSON_REQUIRED, JSON_ARRAY, &merges));
    KT_TRY(read_vocab(r, vocab));
    bpe->byte_level = r->out->pretokenizer.bytes;
    KT_TRY(read_unknown(r, model));
    return read_merges(r, merges);
}

/* TemplateProcessing's "single": ids before and after the text. */
static kt_status read_template_item(const struct reader *r, const json_t *item,
                                    const struct kt_json *specials, bool *after)
{
    const json_t *special = json_object_get(item, "SpecialToken");
    struct kt_json json = at(r, "post_processor.single.", special);
    const char *name;
    json_t *entry, *ids, *id;
    size_t i;
    if (!special) {
        *after = true;
        return KT_OK;
    }
    KT_TRY(kt_json_string(&json, "id", KT_JSON_REQUIRED, &name));
    KT_TRY(kt_json_container(specials, name, KT_JSON_REQUIRED, JSON_OBJECT, &entry));
    struct kt_json inner = at(r, "post_processor.special_tokens.", entry);
    KT_TRY(kt_json_container(&inner, "ids", KT_JSON_REQUIRED, JSON_ARRAY, &ids));
    json_array_foreach(ids, i, id)
    {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= KT_VOCAB_LIMIT)
            return malformed(r, "post_processor.special_tokens: id", i);
        if (!kt_ids_push(*after ? &r->out->suffix : &r->out->prefix, (int32_t)value))
            return memory(r);
    }
    return KT_OK;
}

static kt_status read_template(const struct reader *r, const struct kt_json *json)
{
    json_t *single, *specials, *item;
    size_t i;
    bool after = false;
    KT_TRY(kt_json_container(json, "single", KT_JSON_REQUIRED, JSON_ARRAY, &single));
    KT_TRY(kt_json_container(json, "special_tokens", KT_JSON_REQUIRED, JSON_OBJECT, &specials));
    struct kt_json names = at(r, "post_processor.special_tokens.", specials);
    json_array_foreach(single, i, item) KT_TRY(read_template_item(r, item, &names, &after));
    return KT_OK;
}

static kt_status read_post_processor(const struct reader *r, const json_t *processor, int depth)
{
    struct kt_json json = at(r, "post_processor.", processor);
    const char *type;
    json_t *list, *item;
    size_t i;
    if (!processor || json_is_null(processor))
        return KT_OK;
    KT_TRY(kt_json_string(&json, "type", KT_JSON_REQUIRED, &type));
    if (strcmp(type, "ByteLevel") == 0)
        return KT_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(r, &json);
    if (strcmp(type, "Sequence") != 0 || depth > 0)
        return unsupported(r, "this post_processor");
    KT_TRY(kt_json_container(&json, "processors", KT_JSON_REQUIRED, JSON_ARRAY, &list));
    json_array_foreach(list, i, item) KT_TRY(read_post_processor(r, item, depth + 1));
    return KT_OK;
}

static kt_status read_added(const struct reader *r, const json_t *root)
{
    struct kt_json file = at(r, "", root);
    json_t *list = NULL, *item;
    size_t i;
    KT_TRY(kt_json_container(&file, "added_tokens", KT_JSON_OPTIONAL, JSON_ARRAY, &list));
    json_array_foreach(list, i, item)
    {
        struct kt_json json = at(r, "added_tokens.", item);
        KT_TRY(kt_added_read(&json, false, &r->out->vocab, &r->out->added));
    }
    return KT_OK;
}

kt_status kt_added_read(const struct kt_json *json, bool special, const struct kt_vocab *vocab,
                        struct kt_added *added)
{
    const char *content;
    struct kt_added_token token = {.special = special};
    KT_TRY(kt_json_string(json, "content", KT_JSON_REQUIRED, &content));
    KT_TRY(kt_json_bool(json, "special", KT_JSON_OPTIONAL, &token.special));
    token.normalized = !token.special;
    KT_TRY(kt_json_bool(json, "normalized", KT_JSON_OPTIONAL, &token.normalized));
    KT_TRY(kt_json_bool(json, "single_word", KT_JSON_OPTIONAL, &token.single_word));
    KT_TRY(kt_json_bool(json, "lstrip", KT_JSON_OPTIONAL, &token.lstrip));
    KT_TRY(kt_json_bool(json, "rstrip", KT_JSON_OPTIONAL, &token.rstrip));
    token.content = (char *)content;
    token.length = strlen(content);
    if (token.length == 0)
        return KT_OK;
    return kt_added_put(added, vocab, &token) ? KT_OK
                                              : kt_fail_memory(json->ctx, 0, "the added tokens");
}

static bool is_character(const char *text, size_t length)
{
    return length && kt_utf8_next(text, length).length == length;
}

/* The tokenizers package prepends where its alignments say that a text begins; they lose or double
 * the beginning where a normalizer changes how many characters there are. */
static kt_status check_first(const struct reader *r)
{
    const struct kt_metaspace *m = &r->out->pretokenizer.metaspace;
    const struct kt_normalizer *n = &r->out->normalizer;
    for (size_t i = 0; m->space.from && m->prepend == KT_PREPEND_FIRST && i < n->count; i++) {
        const struct kt_replacement *p = &n->steps[i].replacement;
        if (n->steps[i].kind != KT_NORMALIZE_NFC &&
            !(is_character(p->from, p->from_length) && is_character(p->to, p->to_length)))
            return unsupported(r, "Metaspace that prepends \"first\" after a normalizer that adds "
                                  "or takes characters");
    }
    return KT_OK;
}

kt_status kt_tokenizer_read(kt_tokenizer *out, const json_t *root)
{
    struct reader r = {out->ctx, out};
    struct kt_json file = at(&r, "", root);
    json_t *object;
    if (!json_is_object(root))
        return kt_fail(r.ctx, KT_ERROR_FORMAT, "%s: must be a JSON object", out->path);
    KT_TRY(kt_json_container(&file, "model", KT_JSON_REQUIRED, JSON_OBJECT, &object));
    struct kt_json model = at(&r, "model.", object);
    KT_TRY(check_kind(&r, &model));
    KT_TRY(kt_normalizer_read(r.ctx, out->path, json_object_get(root, "normalizer"),
                              &out->normalizer));
    KT_TRY(kt_pretokenizer_read(r.ctx, out->path, json_object_get(root, "pre_tokenizer"),
                                &out->pretokenizer));
    KT_TRY(check_first(&r));
    KT_TRY(read_model(&r, &model));
    KT_TRY(kt_decoder_read(r.ctx, out->path, json_object_get(root, "decoder"), &out->decoder));
    KT_TRY(read_post_processor(&r, json_object_get(root, "post_processor"), 0));
    return read_added(&r, root);
}
