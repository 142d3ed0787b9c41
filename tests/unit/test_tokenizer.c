/* SPDX-License-Identifier: Apache-2.0 */
/* Ids against goldens of the tokenizers package; see tests/reference/text. */
#include <check.h>
#include <jansson.h>
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "text_goldens.h"
#include "main.h"

static kt_context *ctx;
static char folder[sizeof "/tmp/kt-tokenizer-XXXXXX"];
static char path[64];

static void setup(void)
{
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
    strcpy(folder, "/tmp/kt-tokenizer-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
}

static void teardown(void)
{
    unlink(path);
    rmdir(folder);
    kt_context_free(ctx);
}

static kt_tokenizer *load(const char *file)
{
    kt_tokenizer *tokenizer;
    kt_status status = kt_tokenizer_load(ctx, file, &tokenizer);
    ck_assert_msg(status == KT_OK, "%s", kt_last_error(ctx));
    return tokenizer;
}

static size_t to_ids(const json_t *list, int32_t *ids)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return json_array_size(list);
}

static void compare_decoded(const char *what, const kt_tokenizer *tokenizer, const json_t *texts,
                            const json_t *all_ids)
{
    int32_t ids[8192];
    json_t *want;
    size_t i;
    json_array_foreach(texts, i, want)
    {
        char *text, streamed[16384];
        size_t length, at = 0, num = to_ids(json_array_get(all_ids, i), ids);
        ck_assert_int_eq(kt_tokenizer_decode(tokenizer, ids, num, 0, &text, &length), KT_OK);
        ck_assert_msg(length == json_string_length(want) &&
                          memcmp(text, json_string_value(want), length) == 0,
                      "%s: text %zu decodes to \"%s\"", what, i, text);
        kt_free(text);

        ck_assert_int_eq(kt_tokenizer_decode(tokenizer, ids, num, 1, &text, &length), KT_OK);
        kt_decode_state state = {.size = sizeof state};
        for (size_t j = 0; j <= num; j++) {
            size_t part;
            ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, j < num ? ids[j] : -1,
                                                      streamed + at, sizeof streamed - at, &part),
                             KT_OK);
            at += part;
        }
        ck_assert_uint_eq(at, length);
        ck_assert_mem_eq(text, streamed, at);
        kt_free(text);
    }
}

/* Replaces keys of tokenizer.json as make_tokenizer_goldens.py does. */
static void write_variant(const json_t *base, const json_t *patch)
{
    json_t *data = json_deep_copy(base), *value;
    const char *key;
    json_object_foreach((json_t *)patch, key, value)
    {
        if (strcmp(key, "model") != 0) {
            json_object_set(data, key, value);
            continue;
        }
        json_object_update(json_object_get(data, "model"), value);
        if (!json_is_string(json_object_get(value, "merges")))
            continue;
        json_t *pairs = json_array(), *merge;
        size_t i;
        json_array_foreach(json_object_get(json_object_get(base, "model"), "merges"), i, merge)
        {
            const char *text = json_string_value(merge), *space = strchr(text, ' ');
            json_array_append_new(pairs, json_pack("[s%s]", text, (int)(space - text), space + 1));
        }
        json_object_set_new(json_object_get(data, "model"), "merges", pairs);
    }
    ck_assert_int_eq(json_dump_file(data, path, 0), 0);
    json_decref(data);
}

static const char *const goldens_files[] = {DIR "tokenizer_goldens.json",
                                            DIR "sentencepiece_goldens.json"};
static const char *const base_folders[] = {DIR "tiny", DIR "tiny_sp"};

START_TEST(every_variant_gives_the_same_ids)
{
    json_t *goldens = load_json(goldens_files[_i]), *item;
    char file[512];
    snprintf(file, sizeof file, "%s/tokenizer.json", base_folders[_i]);
    json_t *base = load_json(file);
    size_t i;
    ck_assert_uint_gt(json_array_size(json_object_get(goldens, "cases")), 10);
    json_array_foreach(json_object_get(goldens, "cases"), i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *ids = json_object_get(item, "ids");
        write_variant(base, json_object_get(item, "patch"));
        kt_tokenizer *tokenizer = load(i % 2 ? path : folder);
        compare_ids(name, tokenizer, json_object_get(goldens, "texts"), ids, 1);
        compare_decoded(name, tokenizer, json_object_get(item, "decoded"), ids);
        ck_assert_int_eq(kt_tokenizer_vocab_size(tokenizer),
                         json_integer_value(json_object_get(item, "size")));
        kt_tokenizer_free(tokenizer);
    }
    json_decref(base);
    json_decref(goldens);
}
END_TEST

START_TEST(transformers_loads_the_same)
{
    json_t *goldens = load_json(goldens_files[_i]);
    kt_tokenizer *tokenizer = load(base_folders[_i]);
    compare_ids("auto", tokenizer, json_object_get(goldens, "texts"),
                json_object_get(goldens, "auto"), 1);
    kt_tokenizer_free(tokenizer);
    json_decref(goldens);
}
END_TEST

START_TEST(any_ids_decode_to_the_same_text)
{
    json_t *goldens = load_json(goldens_files[_i]), *want;
    char file[512];
    snprintf(file, sizeof file, "%s/tokenizer.json", base_folders[_i]);
    kt_tokenizer *tokenizer = load(file);
    size_t i;
    ck_assert_uint_gt(json_array_size(json_object_get(goldens, "random_decoded")), 100);
    json_array_foreach(json_object_get(goldens, "random_decoded"), i, want)
    {
        int32_t ids[16];
        char *text;
        size_t length;
        size_t num = to_ids(json_array_get(json_object_get(goldens, "random_ids"), i), ids);
        ck_assert_int_eq(kt_tokenizer_decode(tokenizer, ids, num, 1, &text, &length), KT_OK);
        ck_assert_msg(length == json_string_length(want) &&
                          memcmp(text, json_string_value(want), length) == 0,
                      "ids %zu decode to \"%s\"", i, text);
        kt_free(text);
    }
    kt_tokenizer_free(tokenizer);
    json_decref(goldens);
}
END_TEST

/* Tokens of tiny_sp: byte b is 3 + b. */
static const struct {
    int32_t ids[8]; /* up to a -1 */
    const char *shown[8];
} streams[] = {
    {{3 + 0xe4, 3 + 0xbd, 3 + 0xa0, 3 + 0xe5, -1}, {"", "", "你", "", "\xef\xbf\xbd"}},
    {{3 + 0xe4, 3 + 0xbd, 3 + 'a', -1},
     {"", "",
      "\xef\xbf\xbd\xef\xbf\xbd"
      "a",
      ""}},
    {{3 + ' ', 3 + ' ', 3 + 'x', 3 + ' ', -1}, {"", " ", "x", " ", ""}},
    {{3 + 0xf0, 1, 3 + 0x9f, 0, 3 + 0x98, 3 + 0x80, -1}, {"", "", "", "", "", "😀", ""}},
    {{3 + 0xff, 3 + 0x80, -1}, {"\xef\xbf\xbd", "\xef\xbf\xbd", ""}},
};

START_TEST(bytes_stream_as_characters)
{
    kt_tokenizer *tokenizer = load(DIR "tiny_sp");
    kt_decode_state state = {.size = sizeof state};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        for (size_t j = 0;; j++) {
            char out[16] = "";
            size_t length;
            int32_t id = streams[i].ids[j];
            ck_assert_int_eq(
                kt_tokenizer_decode_next(tokenizer, &state, id, out, sizeof out, &length), KT_OK);
            ck_assert_msg(strcmp(out, streams[i].shown[j]) == 0, "stream %zu, token %zu: \"%s\"", i,
                          j, out);
            if (id < 0)
                break;
        }
    }
    kt_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(config_beside_it_is_read)
{
    kt_tokenizer *tokenizer = load(DIR "tiny");
    ck_assert_int_eq(kt_tokenizer_bos_id(tokenizer), 0);
    ck_assert_int_eq(kt_tokenizer_eos_id(tokenizer), 1);
    ck_assert_int_eq(kt_tokenizer_pad_id(tokenizer), 2);
    ck_assert_int_eq(kt_tokenizer_token_id(tokenizer, "no such token"), -1);
    ck_assert_int_eq(kt_tokenizer_token_id(tokenizer, "<｜User｜>"),
                     kt_tokenizer_vocab_size(tokenizer) - 4);
    ck_assert_int_ge(kt_tokenizer_token_id(tokenizer, "<unk>"), 0); /* LlamaTokenizer's own */
    kt_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(streaming_holds_back_what_is_not_complete)
{
    kt_tokenizer *tokenizer = load(DIR "tiny");
    const int32_t f0 = kt_tokenizer_token_id(tokenizer, "ð"),
                  x = kt_tokenizer_token_id(tokenizer, "x");
    kt_decode_state state = {.size = sizeof state};
    char out[16];
    size_t length;
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, f0, out, 16, &length), KT_OK);
    ck_assert_uint_eq(length, 0);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, x, out, 3, &length),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, x, out, 4, &length), KT_OK);
    ck_assert_uint_eq(length, 4);
    ck_assert_mem_eq(out, "\xef\xbf\xbdx", 4);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, f0, out, 16, &length), KT_OK);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, 0, out, 16, &length), KT_OK);
    ck_assert_uint_eq(length, 0);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, 1 << 30, out, 16, &length), KT_OK);
    ck_assert_uint_eq(length, 0);
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, -1, out, 16, &length), KT_OK);
    ck_assert_uint_eq(length, 3);
    state.num_pending = 9;
    ck_assert_int_eq(kt_tokenizer_decode_next(tokenizer, &state, x, out, 16, &length),
                     KT_ERROR_INVALID_ARGUMENT);
    kt_tokenizer_free(tokenizer);
}
END_TEST

/* Each case sets one key of tiny/tokenizer.json. */
static const struct bad {
    const char *patch;
    kt_status status;
    const char *says;
} bad[] = {
    {"{\"model\": {\"type\": \"Unigram\"}}", KT_ERROR_UNSUPPORTED, "model.type"},
    {"{\"model\": {\"vocab\": {}}}", KT_ERROR_FORMAT, "model.vocab is empty"},
    {"{\"model\": {\"vocab\": {\"a\": -1}}}", KT_ERROR_FORMAT, "the id of \"a\""},
    {"{\"model\": {\"vocab\": {\"a\": 2000000000}}}", KT_ERROR_FORMAT, "the id of \"a\""},
    {"{\"model\": {\"vocab\": {\"a\": 1, \"b\": 1}}}", KT_ERROR_FORMAT, "two tokens"},
    {"{\"model\": {\"vocab\": 3}}", KT_ERROR_FORMAT, "model.vocab"},
    {"{\"model\": {\"merges\": [\"a\"]}}", KT_ERROR_FORMAT, "model.merges"},
    {"{\"model\": {\"merges\": [[\"a\", \"b\", \"c\"]]}}", KT_ERROR_FORMAT, "model.merges"},
    {"{\"model\": {\"merges\": [\"a nonsense\"]}}", KT_ERROR_FORMAT, "model.vocab lacks"},
    {"{\"model\": {\"type\": \"WordPiece\"}, \"normalizer\": {\"type\": \"BertNormalizer\"}}",
     KT_ERROR_UNSUPPORTED, "\"WordPiece\"; libkt reads BPE"},
    {"{\"model\": {\"unk_token\": \"?!\"}, \"pre_tokenizer\": null}", KT_ERROR_FORMAT, "unk_token"},
    {"{\"model\": {\"end_of_word_suffix\": \"</w>\"}}", KT_ERROR_UNSUPPORTED, "end_of_word_suffix"},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\"}}", KT_ERROR_NOT_FOUND, "replacement"},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}}", KT_ERROR_FORMAT,
     "replacement"},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": "
     "\"odd\"}}",
     KT_ERROR_UNSUPPORTED, "\"odd\""},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"add_prefix_space\": "
     "false}}",
     KT_ERROR_FORMAT, "add_prefix_space"},
    {"{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Metaspace\", "
     "\"replacement\": \"_\"}, {\"type\": \"Metaspace\", \"replacement\": \"_\"}]}}",
     KT_ERROR_UNSUPPORTED, "more than one \"Metaspace\""},
    {"{\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}}", KT_ERROR_UNSUPPORTED,
     "BertPreTokenizer"},
    {"{\"decoder\": {\"type\": \"WordPiece\"}}", KT_ERROR_UNSUPPORTED, "WordPiece"},
    {"{\"decoder\": null}", KT_ERROR_NOT_FOUND, "decoder"},
    {"{\"decoder\": {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}}",
     KT_ERROR_UNSUPPORTED, "Strip without Fuse"},
    {"{\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": "
     "\"Strip\", \"content\": \" \", \"start\": 0, \"stop\": 1}]}}",
     KT_ERROR_UNSUPPORTED, "Strip of the end"},
    {"{\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": "
     "\"ByteFallback\"}]}}",
     KT_ERROR_UNSUPPORTED, "ByteFallback is not supported"},
    {"{\"normalizer\": {\"type\": \"Lowercase\"}}", KT_ERROR_UNSUPPORTED, "\"Lowercase\""},
    {"{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": "
     "\"\"}}",
     KT_ERROR_UNSUPPORTED, "regular expression"},
    {"{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"ab\"}, \"content\": "
     "\"x\"}, "
     "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": "
     "\"first\"}}",
     KT_ERROR_UNSUPPORTED, "prepends \"first\""},
    {"{\"normalizer\": {\"type\": \"Prepend\"}}", KT_ERROR_NOT_FOUND, "prepend"},
    {"{\"post_processor\": {\"type\": \"BertProcessing\"}}", KT_ERROR_UNSUPPORTED,
     "post_processor"},
    {"{\"added_tokens\": [{\"id\": 1}]}", KT_ERROR_NOT_FOUND, "content"},
};

static const struct {
    const char *pattern;
    kt_status status;
} bad_regexes[] = {
    {"a(", KT_ERROR_FORMAT},
    {"[z-a]", KT_ERROR_FORMAT},
    {"\\\\w+", KT_ERROR_UNSUPPORTED},
    {"\\\\bx", KT_ERROR_UNSUPPORTED},
    {"[a[b]]", KT_ERROR_UNSUPPORTED},
    {"^x", KT_ERROR_UNSUPPORTED},
    {"[a-z&&b]", KT_ERROR_UNSUPPORTED},
    {"\\\\p{Han}", KT_ERROR_UNSUPPORTED},
    {"a{1,3}+", KT_ERROR_UNSUPPORTED},
    {"(?i)x", KT_ERROR_UNSUPPORTED},
    {"\\\\p{L", KT_ERROR_UNSUPPORTED},
    {"\\\\", KT_ERROR_UNSUPPORTED},
};

static void assert_refused(const char *patch, kt_status status, const char *says)
{
    json_t *base = load_json(DIR "tiny/tokenizer.json"), *change = json_loads(patch, 0, NULL);
    kt_tokenizer *tokenizer;
    ck_assert_msg(change != NULL, "%s", patch);
    write_variant(base, change);
    ck_assert_msg(kt_tokenizer_load(ctx, path, &tokenizer) == status, "%s: %s", patch,
                  kt_last_error(ctx));
    ck_assert_ptr_null(tokenizer);
    ck_assert_msg(strstr(kt_last_error(ctx), says) && strstr(kt_last_error(ctx), path),
                  "\"%s\" lacks \"%s\"", kt_last_error(ctx), says);
    json_decref(change);
    json_decref(base);
}

START_TEST(what_is_not_supported_is_refused)
{
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_refused(bad[i].patch, bad[i].status, bad[i].says);
    for (size_t i = 0; i < sizeof bad_regexes / sizeof *bad_regexes; i++) {
        char patch[512];
        snprintf(patch, sizeof patch,
                 "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
                 "\"Split\", \"pattern\": {\"Regex\": \"%s\"}, \"behavior\": \"Isolated\"}]}}",
                 bad_regexes[i].pattern);
        assert_refused(patch, bad_regexes[i].status, "regular expression");
    }
}
END_TEST

START_TEST(files_that_are_missing_or_malformed)
{
    kt_tokenizer *tokenizer;
    ck_assert_int_eq(kt_tokenizer_load(ctx, folder, &tokenizer), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "tokenizer.json"));
    ck_assert_ptr_null(tokenizer);
    char other[64];
    snprintf(other, sizeof other, "%s/tokenizer.model", folder);
    fclose(fopen(other, "w"));
    ck_assert_int_eq(kt_tokenizer_load(ctx, folder, &tokenizer), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "tokenizer.model"));
    unlink(other);
    FILE *file = fopen(path, "w");
    fputs("{\"model\":", file);
    fclose(file);
    ck_assert_int_eq(kt_tokenizer_load(ctx, folder, &tokenizer), KT_ERROR_FORMAT);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("tokenizer", .setup = setup, .teardown = teardown, .timeout = 120),
        LOOP(every_variant_gives_the_same_ids, 2),
        LOOP(transformers_loads_the_same, 2),
        LOOP(any_ids_decode_to_the_same_text, 2),
        TEST(bytes_stream_as_characters),
        TEST(config_beside_it_is_read),
        TEST(streaming_holds_back_what_is_not_complete),
        TEST(what_is_not_supported_is_refused),
        TEST(files_that_are_missing_or_malformed),
    };
    return RUN_TESTS("tokenizer", tests);
}
