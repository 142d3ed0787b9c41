/* SPDX-License-Identifier: Apache-2.0 */
#include "text/decoder.h"

#include "core/context.h"
#include "text/utf8.h"

/* Each step of a Sequence comes after those above it. */
enum stage { REPLACE, BYTE_FALLBACK, FUSE, STRIP, LAST };

struct reader {
    kt_context *ctx;
    const char *path;
    struct kt_decoder *out;
    int stage;
    bool fused;
};

static kt_status unsupported(const struct reader *r, const char *what)
{
    return kt_fail(r->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: decoder: %s is not supported; ByteLevel, Metaspace, and Replace, "
                   "ByteFallback, Fuse and Strip in this order are",
                   r->path, what);
}

static struct kt_replacement *add_replacement(struct kt_decoder *d)
{
    struct kt_replacement *all = realloc(d->replacements, (d->num_replacements + 1) * sizeof *all);
    if (!all)
        return NULL;
    d->replacements = all;
    all[d->num_replacements] = (struct kt_replacement){0};
    return &all[d->num_replacements++];
}

static kt_status read_replace(struct reader *r, const struct kt_json *json)
{
    struct kt_replacement *replacement = add_replacement(r->out);
    return replacement ? kt_replacement_read(json, replacement)
                       : kt_fail_memory(r->ctx, sizeof *replacement, r->path);
}

static kt_status read_byte_fallback(struct reader *r, const struct kt_json *json)
{
    (void)json;
    r->out->byte_fallback = true;
    return KT_OK;
}

static kt_status read_fuse(struct reader *r, const struct kt_json *json)
{
    (void)json;
    r->fused = true;
    return KT_OK;
}

static kt_status read_strip(struct reader *r, const struct kt_json *json)
{
    struct kt_decoder *d = r->out;
    const char *content;
    int64_t start = 0, stop = 0;
    KT_TRY(kt_json_string(json, "content", KT_JSON_REQUIRED, &content));
    KT_TRY(kt_json_int(json, "start", KT_JSON_REQUIRED, 0, INT32_MAX, &start));
    KT_TRY(kt_json_int(json, "stop", KT_JSON_REQUIRED, 0, INT32_MAX, &stop));
    size_t length = strlen(content);
    if (!length || kt_utf8_next(content, length).length != length)
        return kt_fail(r->ctx, KT_ERROR_FORMAT, "%s: decoder: Strip: \"content\" is no character",
                       r->path);
    if (!r->fused)
        return unsupported(r, "Strip without Fuse");
    if (stop != 0 || start > 16)
        return unsupported(r, "Strip of the end, or of more than 16 characters,");
    memcpy(d->strip, content, length);
    d->strip_length = (uint8_t)length;
    d->strip_most = (uint8_t)start;
    return KT_OK;
}

static kt_status read_step(struct reader *r, const json_t *item)
{
    static const struct {
        const char *type;
        kt_status (*read)(struct reader *r, const struct kt_json *json);
    } steps[] = {[REPLACE] = {"Replace", read_replace},
                 [BYTE_FALLBACK] = {"ByteFallback", read_byte_fallback},
                 [FUSE] = {"Fuse", read_fuse},
                 [STRIP] = {"Strip", read_strip}};
    struct kt_json json = {r->ctx, r->path, "decoder.", item};
    const char *type;
    KT_TRY(kt_json_string(&json, "type", KT_JSON_REQUIRED, &type));
    for (int i = r->stage; i < LAST; i++) {
        if (strcmp(type, steps[i].type) == 0) {
            r->stage = i == REPLACE ? REPLACE : i + 1;
            return steps[i].read(r, &json);
        }
    }
    return unsupported(r, type);
}

static kt_status read_metaspace(struct reader *r, const struct kt_json *json)
{
    const char *from, *scheme = "always";
    KT_TRY(kt_json_string(json, "replacement", KT_JSON_REQUIRED, &from));
    KT_TRY(kt_json_string(json, "prepend_scheme", KT_JSON_OPTIONAL, &scheme));
    struct kt_replacement *replacement = add_replacement(r->out);
    if (!replacement)
        return kt_fail_memory(r->ctx, sizeof *replacement, r->path);
    *replacement = (struct kt_replacement){strdup(from), strdup(" "), strlen(from), 1};
    r->out->drop_in_first = strcmp(scheme, "never") != 0;
    return replacement->from && replacement->to ? KT_OK
                                                : kt_fail_memory(r->ctx, strlen(from), r->path);
}

static kt_status read_any(struct reader *r, const json_t *value)
{
    struct kt_json json = {r->ctx, r->path, "decoder.", value};
    const char *type;
    json_t *list, *item;
    size_t i;
    KT_TRY(kt_json_string(&json, "type", KT_JSON_REQUIRED, &type));
    if (strcmp(type, "ByteLevel") == 0) {
        r->out->byte_level = true;
        return KT_OK;
    }
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(r, &json);
    if (strcmp(type, "Sequence") != 0)
        return read_step(r, value);
    KT_TRY(kt_json_container(&json, "decoders", KT_JSON_REQUIRED, JSON_ARRAY, &list));
    json_array_foreach(list, i, item) KT_TRY(read_step(r, item));
    return KT_OK;
}

kt_status kt_decoder_read(kt_context *ctx, const char *path, const json_t *json,
                          struct kt_decoder *out)
{
    struct reader r = {.ctx = ctx, .path = path, .out = out};
    return read_any(&r, json);
}

void kt_decoder_free(struct kt_decoder *d)
{
    for (size_t i = 0; i < d->num_replacements; i++)
        kt_replacement_free(&d->replacements[i]);
    free(d->replacements);
    *d = (struct kt_decoder){0};
}

/* The byte that "<0x0A>" stands for; -1 for other tokens. The tokenizers package reads the two
 * digits as Rust reads a number, which may begin with a plus sign. */
static int fallback_byte(const char *token, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    int value = 0;
    if (length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    for (int i = token[3] == '+' ? 4 : 3; i < 5; i++) {
        char c = token[i] >= 'A' && token[i] <= 'F' ? (char)(token[i] | 32) : token[i];
        const char *digit = c ? strchr(digits, c) : NULL;
        if (!digit)
            return -1;
        value = value * 16 + (int)(digit - digits);
    }
    return value;
}

/* False when a letter is not of the byte-level alphabet, or memory ran out (*memory false). */
static bool spell_bytes(const char *token, size_t length, struct kt_bytes *out, bool *memory)
{
    for (size_t i = 0; i < length;) {
        struct kt_utf8 c = kt_utf8_next(token + i, length - i);
        int byte = kt_alphabet_to_byte(c.code);
        char b = (char)byte;
        *memory = byte < 0 || kt_bytes_append(out, &b, 1);
        if (byte < 0 || !*memory)
            return false;
        i += c.length;
    }
    return true;
}

/* All replacements, one after the other. */
static kt_status replace_all(struct kt_budget *budget, const struct kt_decoder *d, bool first,
                             struct kt_bytes *out)
{
    struct kt_bytes from = {0};
    kt_status status = KT_OK;
    for (size_t i = 0; i < d->num_replacements && status == KT_OK && out->count; i++) {
        struct kt_replacement r = d->replacements[i];
        struct kt_bytes before = *out;
        *out = from;
        from = before;
        out->count = 0;
        if (first && d->drop_in_first)
            r.to_length = 0;
        status = kt_replace(budget, "the decoder", &r, from.data, from.count, out);
    }
    free(from.data);
    return status;
}

kt_status kt_decoder_spell(struct kt_budget *budget, const struct kt_decoder *d, const char *token,
                           size_t length, bool first, struct kt_bytes *out, bool *bytes)
{
    bool memory = true;
    out->count = 0;
    *bytes = d->byte_level;
    if (d->byte_level && spell_bytes(token, length, out, &memory))
        return KT_OK;
    out->count = 0;
    if (!memory || !kt_bytes_append(out, token, length))
        return kt_fail_memory(budget->ctx, length, "the text of a token");
    KT_TRY(replace_all(budget, d, first, out));
    int byte = d->byte_fallback ? fallback_byte(out->data, out->count) : -1;
    if (byte >= 0) {
        *bytes = true;
        out->data[0] = (char)byte;
        out->count = 1;
    }
    return KT_OK;
}
