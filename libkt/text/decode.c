/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

/* kt_decode_state.pending holds up to MAX_PENDING bytes of a character; the byte after them counts
 * the characters that the decoder stripped from the beginning, or is BEGUN once there was text. */
enum { MAX_PENDING = 3, BEGUN = 255 };

/* Spelling of an id in the vocabulary; NULL when there is none or it is a special one to skip. */
static const char *spelling(const kt_tokenizer *t, int32_t id, bool skip_special, size_t *length)
{
    const struct kt_added_token *added = kt_added_by_id(&t->added, id);
    if (!added)
        return kt_vocab_text(&t->vocab, id, length);
    *length = added->length;
    return skip_special && added->special ? NULL : added->content;
}

/* A run of bytes as text. ByteLevel replaces each malformed part by U+FFFD, ByteFallback each of
 * its bytes. */
static bool append_bytes(const struct kt_decoder *d, struct kt_bytes *out, const char *bytes,
                         size_t size)
{
    for (size_t i = 0; i < size;) {
        struct kt_utf8 c = kt_utf8_next(bytes + i, size - i);
        bool good = c.kind == KT_UTF8_VALID;
        for (int n = good || d->byte_level ? 1 : c.length; n > 0; n--)
            if (!kt_bytes_append(out, good ? bytes + i : "\xef\xbf\xbd", good ? c.length : 3))
                return false;
        i += c.length;
    }
    return true;
}

/* With ByteFallback, one malformed part spoils its whole run. */
static bool flush_run(const struct kt_decoder *d, struct kt_bytes *run, struct kt_bytes *out)
{
    bool ok = true;
    if (d->byte_level || kt_utf8_is_valid(run->data, run->count))
        ok = append_bytes(d, out, run->data, run->count);
    else
        for (size_t i = 0; i < run->count && ok; i++)
            ok = kt_bytes_append(out, "\xef\xbf\xbd", 3);
    run->count = 0;
    return ok;
}

/* Removes what Strip takes from the beginning of a text of which *seen says how much has been
 * there. */
static void strip(const struct kt_decoder *d, struct kt_bytes *text, unsigned char *seen)
{
    size_t done = 0, length = d->strip_length;
    while (*seen < d->strip_most && text->count - done >= length &&
           memcmp(text->data + done, d->strip, length) == 0) {
        done += length;
        ++*seen;
    }
    text->count -= done;
    if (done)
        memmove(text->data, text->data + done, text->count);
    if (text->count || *seen >= d->strip_most)
        *seen = BEGUN;
}

static kt_status memory(const kt_tokenizer *t, size_t bytes)
{
    return kt_fail_memory(t->ctx, bytes, "the text of tokens");
}

struct decoding {
    struct kt_bytes run, spelled, text;
    struct kt_budget budget;
};

static kt_status decode(const kt_tokenizer *t, const int32_t *ids, size_t num_ids,
                        bool skip_special, struct decoding *d)
{
    bool bytes, first = true;
    unsigned char seen = 0;
    for (size_t i = 0; i < num_ids; i++) {
        size_t n;
        const char *token = spelling(t, ids[i], skip_special, &n);
        if (!token)
            continue;
        KT_TRY(kt_decoder_spell(&d->budget, &t->decoder, token, n, first, &d->spelled, &bytes));
        first = false;
        bool ok = bytes ? kt_bytes_append(&d->run, d->spelled.data, d->spelled.count)
                        : flush_run(&t->decoder, &d->run, &d->text) &&
                              kt_bytes_append(&d->text, d->spelled.data, d->spelled.count);
        if (!ok)
            return memory(t, d->text.count);
    }
    if (!flush_run(&t->decoder, &d->run, &d->text))
        return memory(t, d->text.count);
    strip(&t->decoder, &d->text, &seen);
    return kt_bytes_append(&d->text, "", 1) ? KT_OK : memory(t, d->text.count);
}

/* Bytes that a token has at most for its budget; a longer one takes more than its share. */
enum { TOKEN_BYTES = 256 };

kt_status kt_tokenizer_decode(const kt_tokenizer *t, const int32_t *ids, size_t num_ids,
                              int32_t skip_special, char **text, size_t *length)
{
    struct decoding d = {0};
    uint64_t size;
    KT_ENTER_OUT(t, "tokenizer", text);
    KT_TRY(kt_check_out(t->ctx, length, __func__));
    if (num_ids)
        KT_TRY(kt_check_given(t->ctx, ids, "ids"));
    if (!kt_mul_u64(num_ids, TOKEN_BYTES, &size))
        return memory(t, num_ids);
    kt_budget_start(&d.budget, t->ctx, t->path, size);
    kt_status status = decode(t, ids, num_ids, skip_special, &d);
    free(d.run.data);
    free(d.spelled.data);
    if (status != KT_OK) {
        free(d.text.data);
        return status;
    }
    *text = d.text.data;
    *length = d.text.count - 1;
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

struct stream {
    struct kt_bytes raw;     /* pending bytes, then the token's if it is bytes */
    struct kt_bytes spelled; /* the token */
    struct kt_bytes text;
};

/* Text of the next token (NULL = the end), and the state after it. */
static kt_status next_text(const kt_tokenizer *t, struct stream *s, const char *token,
                           size_t length, kt_decode_state *state)
{
    const struct kt_decoder *d = &t->decoder;
    struct kt_budget budget;
    bool bytes = false, first = state->pending[MAX_PENDING] == 0;
    kt_budget_start(&budget, t->ctx, t->path, TOKEN_BYTES);
    if (!kt_bytes_append(&s->raw, (const char *)state->pending, (size_t)state->num_pending))
        return memory(t, length);
    if (token)
        KT_TRY(kt_decoder_spell(&budget, d, token, length, first, &s->spelled, &bytes));
    if (bytes && !kt_bytes_append(&s->raw, s->spelled.data, s->spelled.count))
        return memory(t, length);
    size_t complete = bytes ? complete_prefix(&s->raw) : s->raw.count;
    if (!append_bytes(d, &s->text, s->raw.data, complete) ||
        (!bytes && !kt_bytes_append(&s->text, s->spelled.data, s->spelled.count)))
        return memory(t, length);
    state->num_pending = (int32_t)(s->raw.count - complete);
    if (state->num_pending)
        memcpy(state->pending, s->raw.data + complete, (size_t)state->num_pending);
    strip(d, &s->text, &state->pending[MAX_PENDING]);
    if (!token)
        *state = (kt_decode_state){.size = state->size};
    return KT_OK;
}

static kt_status check_state(kt_context *ctx, const kt_decode_state *state)
{
    kt_decode_state known;
    KT_TRY(kt_check_given(ctx, state, "state"));
    KT_TRY(kt_options_copy(ctx, &known, state, KT_SIZED(kt_decode_state)));
    return known.num_pending >= 0 && known.num_pending <= MAX_PENDING
               ? KT_OK
               : kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                         "the decode state is broken; begin with {.size = sizeof state}");
}

kt_status kt_tokenizer_decode_next(const kt_tokenizer *t, kt_decode_state *given, int32_t id,
                                   char *out, size_t capacity, size_t *length)
{
    struct stream s = {0};
    size_t n = 0;
    KT_ENTER(t, "tokenizer");
    KT_TRY(kt_check_out(t->ctx, length, __func__));
    *length = 0;
    KT_TRY(check_state(t->ctx, given));
    if (capacity)
        KT_TRY(kt_check_given(t->ctx, out, "out"));
    kt_decode_state after = *given;
    const char *token = id < 0 ? NULL : spelling(t, id, true, &n);
    if (id >= 0 && !token)
        return KT_OK;
    kt_status status = next_text(t, &s, token, n, &after);
    if (status == KT_OK && s.text.count > capacity)
        status = kt_fail(t->ctx, KT_ERROR_INVALID_ARGUMENT,
                         "the text of a token needs %zu bytes, and there is room for %zu",
                         s.text.count, capacity);
    if (status == KT_OK) {
        kt_give(t->ctx, given, &after, KT_SIZED(kt_decode_state));
        *length = s.text.count;
        if (s.text.count)
            memcpy(out, s.text.data, s.text.count);
    }
    free(s.raw.data);
    free(s.spelled.data);
    free(s.text.data);
    return status;
}
