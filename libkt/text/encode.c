/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

struct encoder {
    const kt_tokenizer *tokenizer;
    const struct kt_added *added;
    struct kt_ids *ids;
    struct kt_added_spans raw, inner;
    struct kt_bytes valid, normalized;
    struct kt_pretokenize_scratch words;
    struct kt_bpe_scratch bpe;
    struct kt_budget budget;
};

static kt_status memory(const struct encoder *e, size_t bytes)
{
    return kt_fail_memory(e->tokenizer->ctx, bytes, "the tokens of a text");
}

/* `begins` = the text begins where the whole one does. */
static kt_status encode_words(struct encoder *e, const char *text, size_t length, bool begins)
{
    const kt_tokenizer *t = e->tokenizer;
    if (length > KT_BPE_WORD_MAX / 4)
        return kt_fail(t->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a text of %zu bytes is too long to tokenize in one piece", length);
    KT_TRY(kt_pretokenize(&e->budget, &t->pretokenizer, &e->words, text, length, begins));
    for (size_t i = 0; i < e->words.words.count; i++) {
        const struct kt_piece *word = &e->words.words.data[i];
        if (!kt_bpe_encode(&t->bpe, &t->vocab, &e->bpe, word->data, word->length, e->ids))
            return memory(e, word->length);
    }
    return KT_OK;
}

/* Text between raw added tokens: normalize it, then look for the other added tokens. */
static kt_status encode_part(struct encoder *e, const char *text, size_t length, bool begins)
{
    if (e->tokenizer->normalizer.count) {
        KT_TRY(kt_normalizer_apply(&e->budget, &e->tokenizer->normalizer, text, length,
                                   &e->normalized));
        text = e->normalized.data;
        length = e->normalized.count;
    }
    e->inner.count = 0;
    KT_TRY(kt_added_split(&e->budget, e->added, 1, text, length, &e->inner));
    for (size_t i = 0; i < e->inner.count; i++) {
        struct kt_added_span span = e->inner.data[i];
        if (span.id < 0)
            KT_TRY(encode_words(e, text + span.begin, span.end - span.begin,
                                begins && span.begin == 0));
        else if (!kt_ids_push(e->ids, span.id))
            return memory(e, 4);
    }
    return KT_OK;
}

static kt_status encode(struct encoder *e, const char *text, size_t length)
{
    if (!kt_utf8_is_valid(text, length)) {
        if (!kt_utf8_append_lossy(&e->valid, text, length))
            return memory(e, length);
        text = e->valid.data;
        length = e->valid.count;
    }
    KT_TRY(kt_added_split(&e->budget, e->added, 0, text, length, &e->raw));
    for (size_t i = 0; i < e->raw.count; i++) {
        struct kt_added_span span = e->raw.data[i];
        if (span.id < 0)
            KT_TRY(encode_part(e, text + span.begin, span.end - span.begin, span.begin == 0));
        else if (!kt_ids_push(e->ids, span.id))
            return memory(e, 4);
    }
    return KT_OK;
}

kt_status kt_tokenizer_encode_with(const kt_tokenizer *tokenizer, const struct kt_added *added,
                                   const char *text, size_t length, struct kt_ids *ids)
{
    struct encoder e = {.tokenizer = tokenizer, .added = added, .ids = ids};
    kt_budget_start(&e.budget, tokenizer->ctx, tokenizer->path, length);
    kt_status status = encode(&e, text, length);
    free(e.raw.data);
    free(e.inner.data);
    free(e.valid.data);
    free(e.normalized.data);
    kt_pretokenize_scratch_free(&e.words);
    kt_bpe_scratch_free(&e.bpe);
    return status;
}

kt_status kt_tokenizer_encode(const kt_tokenizer *tokenizer, const char *text, size_t length,
                              int32_t add_special, int32_t **ids, size_t *num_ids)
{
    struct kt_ids all = {0};
    kt_status status = KT_OK;
    KT_ENTER_OUT(tokenizer, "tokenizer", ids);
    KT_TRY(kt_check_out(tokenizer->ctx, num_ids, __func__));
    if (length)
        KT_TRY(kt_check_given(tokenizer->ctx, text, "text"));
    *num_ids = 0;
    if (add_special && !kt_ids_append(&all, tokenizer->prefix.data, tokenizer->prefix.count))
        status = kt_fail_memory(tokenizer->ctx, length, "the tokens of a text");
    if (status == KT_OK)
        status = kt_tokenizer_encode_with(tokenizer, &tokenizer->added, text, length, &all);
    if (status == KT_OK && add_special &&
        !kt_ids_append(&all, tokenizer->suffix.data, tokenizer->suffix.count))
        status = kt_fail_memory(tokenizer->ctx, length, "the tokens of a text");
    if (status != KT_OK) {
        free(all.data);
        return status;
    }
    *ids = all.data;
    *num_ids = all.count;
    return KT_OK;
}
