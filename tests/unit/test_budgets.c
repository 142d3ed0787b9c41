/* SPDX-License-Identifier: Apache-2.0 */
/* Short tokenizer files and texts that would take gigabytes or hours. */
#include <jansson.h>
#include <time.h>

#include "fixture.h"
#include "text_goldens.h"
#include "main.h"

static kt_tokenizer *tokenizer;
static clock_t begun;

static void setup(void)
{
    fixture_setup();
    begun = clock();
}

/* None of them may take long, sanitizers included. */
static void teardown(void)
{
    ck_assert_msg(clock() - begun < 20 * CLOCKS_PER_SEC, "%.1f s of processor time",
                  (double)(clock() - begun) / CLOCKS_PER_SEC);
    kt_tokenizer_free(tokenizer);
    tokenizer = NULL;
    fixture_teardown();
}

static json_t *base(void)
{
    return load_json(DIR "tiny/tokenizer.json");
}

/* Takes `json`. */
static kt_status load(json_t *json)
{
    char *text = json_dumps(json, 0);
    fixture_write("tokenizer.json", text, strlen(text));
    free(text);
    json_decref(json);
    return kt_tokenizer_load(fixture_context, fixture_path("tokenizer.json"), &tokenizer);
}

/* `unit` as often as it fits into `size` bytes. */
static kt_status encode(const char *unit, size_t size)
{
    char *text = malloc(size);
    size_t length = strlen(unit), num;
    int32_t *ids = NULL;
    for (size_t i = 0; i < size; i++)
        text[i] = unit[i % length];
    kt_status status = kt_tokenizer_encode(tokenizer, text, size - size % length, 0, &ids, &num);
    kt_free(ids);
    free(text);
    return status;
}

/* Ten bytes become 10^13. */
static json_t *replacements(const char *key, const char *list)
{
    char to[101];
    memset(to, 'a', 100);
    to[100] = 0;
    json_t *steps = json_array();
    for (int i = 0; i < 6; i++)
        json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern",
                                               "String", "a", "content", to));
    json_t *json = base();
    json_object_set_new(json, key, json_pack("{s:s, s:o}", "type", "Sequence", list, steps));
    return json;
}

START_TEST(normalizers_that_multiply)
{
    ck_assert_int_eq(load(replacements("normalizer", "normalizers")), KT_ERROR_FORMAT);
    json_t *json = replacements("normalizer", "normalizers");
    json_object_set_new(json, "added_tokens", json_array());
    ck_assert_int_eq(load(json), KT_OK);
    ck_assert_fails(encode("a", 10), KT_ERROR_FORMAT,
                    "tokenizer.json: the normalizer would take more than 64.0 MiB");
    ck_assert_int_eq(encode("b", 10), KT_OK);
}
END_TEST

START_TEST(memory_limits_count_texts)
{
    json_t *json = replacements("normalizer", "normalizers");
    json_object_set_new(json, "added_tokens", json_array());
    ck_assert_int_eq(load(json), KT_OK);
    fixture_context->options.memory_limit = 1 << 20;
    ck_assert_fails(encode("a", 10), KT_ERROR_OUT_OF_MEMORY, "the limit of 1.0 MiB");
}
END_TEST

START_TEST(decoders_that_multiply)
{
    int32_t id;
    char *text, piece[64];
    size_t length;
    kt_decode_state state = {.size = sizeof state};
    json_t *json = replacements("decoder", "decoders");
    ck_assert_int_eq(load(json), KT_OK);
    id = kt_tokenizer_token_id(tokenizer, "a");
    ck_assert_int_ge(id, 0);
    ck_assert_fails(kt_tokenizer_decode(tokenizer, &id, 1, 0, &text, &length), KT_ERROR_FORMAT,
                    "the decoder would take more than");
    ck_assert_fails(kt_tokenizer_decode_next(tokenizer, &state, id, piece, sizeof piece, &length),
                    KT_ERROR_FORMAT, "the decoder would take more than");
}
END_TEST

/* Each needs quadratic time or worse; texts as long that do not are split all the same. */
static const struct {
    const char *regex, *unit, *harmless;
    size_t size;
} regexes[] = {
    {"(?:a|a){22}b|a", "a", "ab", 1000}, {"(?:a|a){22}b|a", "a", "ab", 100000},
    {"a*b|a", "a", "ab", 150000},        {"\\s+(?=y)|\\s", " ", " y", 400000},
    {"(a+)+c|a", "a", "b", 150000},
};

START_TEST(regular_expressions_that_backtrack)
{
    json_t *json = base();
    json_object_set_new(json, "pre_tokenizer",
                        json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, {s:s, s:b, s:b}]}", "type",
                                  "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex",
                                  regexes[_i].regex, "behavior", "Isolated", "invert", 0, "type",
                                  "ByteLevel", "add_prefix_space", 0, "use_regex", 0));
    json_object_set_new(json, "added_tokens", json_array());
    ck_assert_int_eq(load(json), KT_OK);
    ck_assert_fails(encode(regexes[_i].unit, regexes[_i].size), KT_ERROR_UNSUPPORTED,
                    "tokenizer.json: a regular expression of the pre-tokenizer needs too much");
    ck_assert_int_eq(encode(regexes[_i].harmless, regexes[_i].size), KT_OK);
}
END_TEST

static void add_token(json_t *json, const char *content)
{
    json_array_append_new(json_object_get(json, "added_tokens"),
                          json_pack("{s:i, s:s, s:b, s:b}", "id", 0, "content", content,
                                    "normalized", 0, "special", 1));
}

START_TEST(many_added_tokens)
{
    char content[16];
    json_t *json = base();
    for (int i = 0; i < 20000; i++) {
        snprintf(content, sizeof content, "<%d>", i);
        add_token(json, content);
    }
    ck_assert_int_eq(load(json), KT_OK);
    ck_assert_int_eq(kt_tokenizer_token_id(tokenizer, "<19999>"),
                     kt_tokenizer_token_id(tokenizer, "<0>") + 19999);
    ck_assert_int_eq(encode("<", 1000000), KT_OK);
    ck_assert_int_eq(encode("<123", 1000000), KT_OK);
}
END_TEST

START_TEST(a_long_added_token)
{
    enum { LENGTH = 200000 };
    char *content = malloc(LENGTH + 1);
    memset(content, 'a', LENGTH);
    content[LENGTH - 1] = 'b';
    content[LENGTH] = 0;
    json_t *json = base();
    add_token(json, content);
    free(content);
    ck_assert_int_eq(load(json), KT_OK);
    ck_assert_fails(encode("a", 2 * LENGTH), KT_ERROR_UNSUPPORTED, "looking for added tokens");
}
END_TEST

START_TEST(ids_far_apart)
{
    json_t *json = base();
    json_object_set_new(json_object_get(json_object_get(json, "model"), "vocab"), "far",
                        json_integer((1 << 24) - 1));
    ck_assert_fails(load(json), KT_ERROR_FORMAT, "model.vocab with ids so far apart");
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("budgets", .timeout = 60, .setup = setup, .teardown = teardown),
        TEST(normalizers_that_multiply),
        TEST(memory_limits_count_texts),
        TEST(decoders_that_multiply),
        LOOP(regular_expressions_that_backtrack, sizeof regexes / sizeof *regexes),
        TEST(many_added_tokens),
        TEST(a_long_added_token),
        TEST(ids_far_apart),
    };
    return RUN_TESTS("budgets", tests);
}
