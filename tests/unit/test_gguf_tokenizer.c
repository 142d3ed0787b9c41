/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenizers from the metadata of GGUF files, against those of tokenizer.json. */
#include "fixture.h"
#include "gguf_reference.h"
#include "text_goldens.h"
#include "main.h"

static kt_tokenizer *load(const char *path)
{
    kt_tokenizer *tokenizer;
    kt_status status = kt_tokenizer_load(fixture_context, path, &tokenizer);
    ck_assert_msg(status == KT_OK, "%s", kt_last_error(fixture_context));
    return tokenizer;
}

/* The file with the string `from` in its metadata changed, as x.gguf in the fixture's folder. */
static void write_changed(const char *from, const char *to)
{
    static unsigned char bytes[1 << 16];
    size_t size = reference_read("tokenizer.gguf", bytes, sizeof bytes);
    size_t n = strlen(from), m = strlen(to);
    unsigned char *at = memmem(bytes, size, from, n);
    ck_assert_ptr_nonnull(at);
    ck_assert_int_eq(at[-8], (int)n); /* its length */
    at[-8] = (unsigned char)m;
    memmove(at + m, at + n, size - (size_t)(at + n - bytes));
    memcpy(at, to, m);
    fixture_write("x.gguf", bytes, size + m - n);
}

START_TEST(ids_are_those_of_tokenizer_json)
{
    json_t *goldens = load_json(DIR "tokenizer_goldens.json");
    kt_tokenizer *t = load(reference_path("tokenizer.gguf"));
    compare_ids("deepseek-v3", t, json_object_get(goldens, "texts"),
                json_object_get(goldens, "auto"), 1);
    ck_assert_int_eq(kt_tokenizer_bos_id(t), 0);
    ck_assert_int_eq(kt_tokenizer_eos_id(t), 1);
    ck_assert_int_eq(kt_tokenizer_pad_id(t), 2);
    ck_assert_int_eq(kt_tokenizer_vocab_size(t), 903);
    ck_assert_int_eq(kt_tokenizer_token_id(t, "<｜Assistant｜>"), 901);
    ck_assert_int_eq(kt_tokenizer_token_id(t, "[PAD905]"), -1);
    kt_tokenizer_free(t);

    /* A control token is special, a user-defined one is not. */
    const int32_t ids[] = {900, 902, 910};
    char *text;
    size_t length;
    t = load(reference_path("tokenizer.gguf"));
    ck_assert_int_eq(kt_tokenizer_decode(t, ids, 3, 1, &text, &length), KT_OK);
    ck_assert_str_eq(text, "<｜tool▁sep｜>");
    kt_free(text);
    kt_tokenizer_free(t);
    json_decref(goldens);
}
END_TEST

/* Values of tokenizer.ggml.pre, and the variants in the goldens that split like them. */
static const struct {
    const char *pre, *variant;
} others[] = {
    {"qwen2", "qwen"}, {"deepseek-llm", "deepseek-llm"}, {"deepseek-coder", "deepseek-coder"}};

START_TEST(ids_of_other_pre_tokenizers)
{
    json_t *goldens = load_json(DIR "tokenizer_goldens.json"), *golden;
    size_t i;
    int found = 0;
    write_changed("deepseek-v3", others[_i].pre);
    kt_tokenizer *t = load(fixture_path("x.gguf"));
    json_array_foreach(json_object_get(goldens, "cases"), i, golden)
    {
        if (strcmp(json_string_value(json_object_get(golden, "name")), others[_i].variant) != 0)
            continue;
        compare_ids(others[_i].pre, t, json_object_get(goldens, "texts"),
                    json_object_get(golden, "ids"), 0);
        found++;
    }
    ck_assert_int_eq(found, 1);
    kt_tokenizer_free(t);
    json_decref(goldens);
}
END_TEST

START_TEST(tokenizer_json_beside_comes_first)
{
    kt_tokenizer *t;
    write_changed("deepseek-v3", "smaug-bpe");
    ck_assert_fails(
        kt_tokenizer_load(fixture_context, fixture_path("x.gguf"), &t), KT_ERROR_UNSUPPORTED,
        "\"tokenizer.ggml.pre\" is \"smaug-bpe\", which libkt cannot make a tokenizer "
        "from; put the model's tokenizer.json and tokenizer_config.json beside the file");
    ck_assert_int_eq(symlink(DIR "tiny/tokenizer.json", fixture_path("tokenizer.json")), 0);
    kt_tokenizer_free(load(fixture_path("x.gguf")));
    kt_tokenizer_free(load(fixture_folder));
    unlink(fixture_path("tokenizer.json"));
    write_changed("gpt2", "llama");
    ck_assert_fails(kt_tokenizer_load(fixture_context, fixture_folder, &t), KT_ERROR_UNSUPPORTED,
                    "\"tokenizer.ggml.model\" is \"llama\"");
    unlink(fixture_path("x.gguf"));
    ck_assert_fails(kt_tokenizer_load(fixture_context, fixture_folder, &t), KT_ERROR_NOT_FOUND,
                    "tokenizer.json");
}
END_TEST

/* Keys with other names are missing; their values are not what they should be. */
static const struct {
    const char *from, *to;
    kt_status status;
    const char *sentence;
} bad[] = {
    {"tokenizer.ggml.tokens", "tokenizer.ggml.xxxxxx", KT_ERROR_NOT_FOUND, "tokenizer.ggml.tokens"},
    {"tokenizer.ggml.merges", "tokenizer.ggml.xxxxxx", KT_ERROR_NOT_FOUND, "tokenizer.ggml.merges"},
    {"<｜User｜>", "a", KT_ERROR_FORMAT, "token 900 is not text in UTF-8, or is there twice"},
    {"<｜User｜>", "\xff", KT_ERROR_FORMAT, "token 900 is not text in UTF-8, or is there twice"},
};

START_TEST(metadata_that_makes_no_tokenizer)
{
    kt_tokenizer *t;
    write_changed(bad[_i].from, bad[_i].to);
    ck_assert_fails(kt_tokenizer_load(fixture_context, fixture_path("x.gguf"), &t), bad[_i].status,
                    bad[_i].sentence);
    ck_assert_ptr_null(t);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("tokenizers", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(ids_are_those_of_tokenizer_json),
        LOOP(ids_of_other_pre_tokenizers, sizeof others / sizeof *others),
        TEST(tokenizer_json_beside_comes_first),
        LOOP(metadata_that_makes_no_tokenizer, sizeof bad / sizeof *bad),
    };
    return RUN_TESTS("gguf_tokenizer", tests);
}
