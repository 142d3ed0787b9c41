/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

/* Spelling of an id in the vocabulary; NULL when there is none or it is a special one to skip. */
static const char *spelling(const kt_tokenizer *t, int32_t id, bool skip_special, size_t *length)
{
    const struct kt_added_token *added = kt_added_by_id(&t->added, id);
    if (!added)
        return kt_vocab_text(&t->vocab, id, length);
    *length = added->length;
    return skip_special && added->special ? NULL : added->content;
}

/* Appends the bytes that a token stands for: its letters as bytes if all are of the byte-level
 * alphabet, otherwise the text itself. */
static bool append_token(struct kt_bytes *out, const char *text, size_t length)
{
    size_t start = out->count;
    for (size_t i = 0; i < length;) {
        struct kt_utf8 c = kt_utf8_next(text + i, length - i);
        int byte = kt_alphabet_to_byte(c.code);
        if (byte < 0) {
            out->count = start;
            return kt_bytes_append(out, text, length);
        }
        char b = (char)byte;
        if (!kt_bytes_append(out, &b, 1))
            return false;
        i += c.length;
    }
    return true;
}

kt_status kt_tokenizer_decode(const kt_tokenizer *t, const int32_t *ids, size_t num_ids,
                              int skip_special, char **text, size_t *length)
{
    struct kt_bytes raw = {0}, valid = {0};
    bool ok = true;
    for (size_t i = 0; i < num_ids && ok; i++) {
        size_t n;
        const char *token = spelling(t, ids[i], skip_special, &n);
        ok = !token || append_token(&raw, token, n);
    }
    ok = ok && kt_utf8_append_lossy(&valid, raw.data, raw.count) && kt_bytes_append(&valid, "", 1);
    free(raw.data);
    if (!ok) {
        free(valid.data);
        return kt_fail_memory(t->ctx, num_ids, "the text of tokens");
    }
    *text = valid.data;
    *length = valid.count - 1;
    return KT_OK;
}

/* Bytes of `raw` that can be shown: all but a sequence that its end cuts in two. */
static size_t complete_prefix(const struct kt_bytes *raw)
{
    size_t i = 0;
    while (i < raw->count) {
        struct kt_utf8 c = kt_utf8_next(raw->data + i, raw->count - i);
        if (c.kind == KT_UTF8_TRUNCATED)
            break;
        i += c.length;
    }
    return i;
}

static kt_status show(const kt_tokenizer *t, struct kt_decode_state *state,
                      const struct kt_bytes *raw, bool flush, char *out, size_t capacity,
                      size_t *length)
{
    struct kt_bytes text = {0};
    size_t complete = flush ? raw->count : complete_prefix(raw);
    kt_status status = KT_OK;
    if (!kt_utf8_append_lossy(&text, raw->data, complete))
        status = kt_fail_memory(t->ctx, complete, "the text of a token");
    else if (text.count > capacity)
        status = kt_fail(t->ctx, KT_ERROR_INVALID_ARGUMENT,
                         "the text of a token needs %zu bytes, and there is room for %zu",
                         text.count, capacity);
    if (status == KT_OK) {
        if (text.count)
            memcpy(out, text.data, text.count);
        *length = text.count;
        state->num_pending = (int32_t)(raw->count - complete);
        if (state->num_pending)
            memcpy(state->pending, raw->data + complete, raw->count - complete);
    }
    free(text.data);
    return status;
}

kt_status kt_tokenizer_decode_next(const kt_tokenizer *t, kt_decode_state *state, int32_t id,
                                   char *out, size_t capacity, size_t *length)
{
    struct kt_bytes raw = {0};
    size_t n = 0;
    *length = 0;
    if (state->num_pending < 0 || (size_t)state->num_pending > sizeof state->pending)
        return kt_fail(t->ctx, KT_ERROR_INVALID_ARGUMENT, "the decode state was not zeroed");
    const char *token = id < 0 ? NULL : spelling(t, id, true, &n);
    if (id >= 0 && !token)
        return KT_OK;
    kt_status status = KT_OK;
    if (!kt_bytes_append(&raw, (const char *)state->pending, (size_t)state->num_pending) ||
        !append_token(&raw, token, n))
        status = kt_fail_memory(t->ctx, n, "the text of a token");
    else
        status = show(t, state, &raw, id < 0, out, capacity, length);
    free(raw.data);
    return status;
}
