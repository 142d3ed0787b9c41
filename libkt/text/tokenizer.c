/* SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer.h"

#include "core/context.h"
#include "formats/file.h"
#include "formats/gguf.h"

static void destroy(void *handle)
{
    kt_tokenizer *t = handle;
    kt_vocab_free(&t->vocab);
    kt_bpe_free(&t->bpe);
    kt_added_free(&t->added);
    kt_normalizer_free(&t->normalizer);
    kt_pretokenizer_free(&t->pretokenizer);
    kt_decoder_free(&t->decoder);
    free(t->prefix.data);
    free(t->suffix.data);
    free(t->path);
}

void kt_tokenizer_free(kt_tokenizer *tokenizer)
{
    kt_handle_free(tokenizer);
}

/* A checkpoint may have SentencePiece's own file alone. */
static kt_status check_file(const kt_tokenizer *t, const char *folder)
{
    char *other = kt_path_join(folder, "tokenizer.model");
    bool only_other = other && !kt_file_exists(t->path) && kt_file_exists(other);
    free(other);
    return only_other
               ? kt_fail(t->ctx, KT_ERROR_NOT_FOUND,
                         "%s: does not exist, and tokenizer.model beside it is no file that libkt "
                         "reads; transformers' AutoTokenizer writes the one from the other",
                         t->path)
               : KT_OK;
}

/* tokenizer.json for a folder, or beside a GGUF file; the GGUF file itself where there is none. */
static kt_status find_file(kt_context *ctx, const char *path, char **file)
{
    char *model = NULL;
    kt_status status = KT_OK;
    bool folder = kt_is_directory(path), gguf = kt_gguf_is_name(path);
    *file = folder ? kt_path_join(path, "tokenizer.json")
            : gguf ? kt_path_beside(path, "tokenizer.json")
                   : strdup(path);
    if (!*file)
        return kt_fail_memory(ctx, strlen(path), "a file name");
    if ((folder || gguf) && !kt_file_exists(*file))
        status = kt_gguf_locate(ctx, path, &model);
    if (status != KT_OK || model) {
        free(*file);
        *file = model;
    }
    return status;
}

static kt_status load_from(kt_tokenizer *t, const char *folder)
{
    json_t *root;
    KT_TRY(check_file(t, folder));
    KT_TRY(kt_json_load(t->ctx, t->path, KT_JSON_LARGE_MAX, &root));
    kt_status status = kt_tokenizer_read(t, root);
    json_decref(root);
    KT_TRY(status);
    return kt_tokenizer_read_config(t, folder);
}

static kt_status load_json(kt_tokenizer *t)
{
    char *folder = kt_path_beside(t->path, "");
    if (!folder)
        return kt_fail_memory(t->ctx, strlen(t->path), t->path);
    kt_status status = load_from(t, folder);
    free(folder);
    return status;
}

static kt_status load(kt_tokenizer *t)
{
    KT_TRY(kt_gguf_is_name(t->path) ? kt_tokenizer_read_gguf(t) : load_json(t));
    return kt_added_index(t->ctx, t->path, &t->added, &t->normalizer);
}

kt_status kt_tokenizer_load(kt_context *ctx, const char *path, kt_tokenizer **out)
{
    kt_tokenizer *t;
    KT_ENTER_CONTEXT_OUT(ctx, out);
    KT_TRY(kt_check_given(ctx, path, "the path of a tokenizer"));
    KT_TRY(kt_handle_new(ctx, sizeof *t, destroy, "a tokenizer", (void **)&t));
    t->bos = t->eos = t->pad = -1;
    kt_status status = find_file(ctx, path, &t->path);
    if (status == KT_OK)
        status = load(t);
    if (status != KT_OK)
        kt_tokenizer_free(t);
    else
        *out = t;
    return status;
}

int32_t kt_tokenizer_vocab_size(const kt_tokenizer *t)
{
    int32_t size = t ? (int32_t)t->vocab.num_entries : 0;
    for (size_t i = 0; t && i < t->added.count; i++)
        if (t->added.tokens[i].id >= size)
            size = t->added.tokens[i].id + 1;
    return size;
}

int32_t kt_tokenizer_bos_id(const kt_tokenizer *t)
{
    return t ? t->bos : -1;
}

int32_t kt_tokenizer_eos_id(const kt_tokenizer *t)
{
    return t ? t->eos : -1;
}

int32_t kt_tokenizer_pad_id(const kt_tokenizer *t)
{
    return t ? t->pad : -1;
}

int32_t kt_tokenizer_find(const kt_tokenizer *t, const struct kt_added *added, const char *token,
                          size_t length)
{
    const struct kt_added_token *found = kt_added_find(added, token, length);
    return found ? found->id : kt_vocab_find(&t->vocab, token, length);
}

int32_t kt_tokenizer_token_id(const kt_tokenizer *t, const char *token)
{
    return t && token ? kt_tokenizer_find(t, &t->added, token, strlen(token)) : -1;
}
