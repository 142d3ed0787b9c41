/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <kt/kt.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"
#include "formats/json.h"
#include "main.h"

static kt_context *ctx;

static void setup(void)
{
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
}

static void teardown(void)
{
    kt_context_free(ctx);
}

static void assert_error(kt_status got, kt_status want, const char *part)
{
    ck_assert_int_eq(got, want);
    ck_assert_msg(strstr(kt_last_error(ctx), part) != NULL, "\"%s\" lacks \"%s\"",
                  kt_last_error(ctx), part);
}

START_TEST(files_that_cannot_be_read)
{
    json_t *root;
    assert_error(kt_json_load(ctx, "/nonexistent/x.json", 100, &root), KT_ERROR_NOT_FOUND,
                 "/nonexistent/x.json");
    assert_error(kt_json_load(ctx, "/", 100, &root), KT_ERROR_IO, "regular");
    assert_error(kt_json_load(ctx, "/dev/zero", 100, &root), KT_ERROR_IO, "regular");
    assert_error(kt_json_load(ctx, KT_REFERENCE_DIR "/README.md", 100, &root), KT_ERROR_FORMAT,
                 "bytes");
    assert_error(kt_json_load(ctx, KT_REFERENCE_DIR "/README.md", KT_JSON_CONFIG_MAX, &root),
                 KT_ERROR_FORMAT, "line 1");
}
END_TEST

START_TEST(syntax_errors_name_the_line)
{
    const char *text = "{\"a\": 1,\n \"b\": }";
    json_t *root;
    assert_error(kt_json_parse(ctx, "f.json", 1, text, strlen(text), KT_JSON_STRICT, &root),
                 KT_ERROR_FORMAT, "f.json: line 2");
    assert_error(kt_json_parse(ctx, "f.json", 41, text, strlen(text), KT_JSON_STRICT, &root),
                 KT_ERROR_FORMAT, "line 42");
    assert_error(kt_json_parse(ctx, "f.json", 1, "", 0, KT_JSON_STRICT, &root), KT_ERROR_FORMAT,
                 "line 1");
}
END_TEST

START_TEST(typed_values)
{
    const char *text = "{\"i\": 3, \"r\": 3.0, \"h\": 2.5, \"s\": \"x\", \"z\": \"a\\u0000b\","
                       " \"b\": true, \"n\": null, \"l\": [1], \"o\": {}}";
    json_t *root, *inner = NULL;
    int64_t i = 7;
    double r = 0;
    bool b = false;
    const char *s = "default";
    ck_assert_int_eq(kt_json_parse(ctx, "f.json", 1, text, strlen(text), KT_JSON_STRICT, &root),
                     KT_OK);
    struct kt_json json = {ctx, "f.json", "top.", root};

    ck_assert_int_eq(kt_json_int(&json, "n", KT_JSON_OPTIONAL, 0, 9, &i), KT_OK);
    ck_assert_int_eq(kt_json_int(&json, "absent", KT_JSON_OPTIONAL, 0, 9, &i), KT_OK);
    ck_assert_int_eq(i, 7);
    ck_assert_int_eq(kt_json_int(&json, "r", KT_JSON_REQUIRED, 0, 9, &i), KT_OK);
    ck_assert_int_eq(i, 3);
    ck_assert_int_eq(kt_json_real(&json, "i", KT_JSON_REQUIRED, &r), KT_OK);
    ck_assert(r == 3.0);
    ck_assert_int_eq(kt_json_bool(&json, "b", KT_JSON_REQUIRED, &b), KT_OK);
    ck_assert(b);
    ck_assert_int_eq(kt_json_string(&json, "s", KT_JSON_REQUIRED, &s), KT_OK);
    ck_assert_str_eq(s, "x");
    ck_assert_int_eq(kt_json_container(&json, "l", KT_JSON_REQUIRED, JSON_ARRAY, &inner), KT_OK);
    ck_assert_uint_eq(json_array_size(inner), 1);

    assert_error(kt_json_int(&json, "n", KT_JSON_REQUIRED, 0, 9, &i), KT_ERROR_NOT_FOUND, "top.n");
    assert_error(kt_json_int(&json, "h", KT_JSON_REQUIRED, 0, 9, &i), KT_ERROR_FORMAT, "top.h");
    assert_error(kt_json_int(&json, "i", KT_JSON_REQUIRED, 4, 9, &i), KT_ERROR_FORMAT, "4 to 9");
    assert_error(kt_json_real(&json, "s", KT_JSON_REQUIRED, &r), KT_ERROR_FORMAT, "a number");
    assert_error(kt_json_bool(&json, "i", KT_JSON_REQUIRED, &b), KT_ERROR_FORMAT, "true or false");
    assert_error(kt_json_string(&json, "z", KT_JSON_REQUIRED, &s), KT_ERROR_FORMAT, "NUL");
    assert_error(kt_json_container(&json, "o", KT_JSON_REQUIRED, JSON_ARRAY, &inner),
                 KT_ERROR_FORMAT, "a list, not an object");
    json_decref(root);
}
END_TEST

START_TEST(integers_beyond_64_bits)
{
    const char *text = "{\"model_max_length\": 1000000000000000019884624838656, \"i\": 3}";
    const char *huge = "{\"x\": 1e999}";
    json_t *root;
    int64_t i = 0;
    double r = 0;
    ck_assert_int_eq(kt_json_parse(ctx, "f.json", 1, text, strlen(text), KT_JSON_STRICT, &root),
                     KT_OK);
    struct kt_json json = {ctx, "f.json", "", root};
    ck_assert_int_eq(kt_json_int(&json, "i", KT_JSON_REQUIRED, 0, 9, &i), KT_OK);
    ck_assert_int_eq(i, 3);
    ck_assert_int_eq(kt_json_real(&json, "model_max_length", KT_JSON_REQUIRED, &r), KT_OK);
    ck_assert(r == 1e30);
    assert_error(kt_json_int(&json, "model_max_length", KT_JSON_REQUIRED, 0, 9, &i),
                 KT_ERROR_FORMAT, "model_max_length");
    json_decref(root);
    assert_error(kt_json_parse(ctx, "f.json", 1, huge, strlen(huge), KT_JSON_STRICT, &root),
                 KT_ERROR_FORMAT, "line 1");
}
END_TEST

/* As Python's json reads them. */
static const struct {
    const char *text, *tree; /* NULL = refused */
    enum kt_json_dialect dialect;
} texts[] = {
    {" [1, -0, 1.5e2, 0.5] ", "[1,0,150.0,0.5]", KT_JSON_STRICT},
    {"{\"a\": 1, \"b\": 2, \"a\": 3}", "{\"a\":3,\"b\":2}", KT_JSON_STRICT},
    {"\"\\ud83d\\ude00 \\u00e9\\n\\/\"", "\"\U0001f600 \u00e9\\n/\"", KT_JSON_STRICT},
    {"\"\\ud83d\"", NULL, KT_JSON_STRICT},
    {"\"\\udc00\\ud83d\"", NULL, KT_JSON_STRICT},
    {"\"\\x41\"", NULL, KT_JSON_STRICT},
    {"\"\\u12\"", NULL, KT_JSON_STRICT},
    {"\"\xc0\x80\"", NULL, KT_JSON_DATA},
    {"\"\xed\xa0\x80\"", NULL, KT_JSON_DATA},
    {"\"a\tb\nc\"", NULL, KT_JSON_STRICT},
    {"\"a\tb\nc\"", "\"a\\tb\\nc\"", KT_JSON_DATA},
    {"[NaN, -Infinity]", "[null,null]", KT_JSON_DATA},
    {"[NaN, -Infinity]", "[\"NaN\",\"-Infinity\"]", KT_JSON_STRICT},
    {"[9223372036854775807, 9223372036854775808]", "[9223372036854775807,9.2233720368547758e18]",
     KT_JSON_STRICT},
    {"01", NULL, KT_JSON_STRICT},
    {"1.", NULL, KT_JSON_STRICT},
    {"+1", NULL, KT_JSON_STRICT},
    {"[1,]", NULL, KT_JSON_STRICT},
    {"{\"a\" 1}", NULL, KT_JSON_STRICT},
    {"{\"a\": 1} x", NULL, KT_JSON_STRICT},
    {"{\"a\\u0000\": 1}", NULL, KT_JSON_STRICT},
    {"[\"a", NULL, KT_JSON_STRICT},
    {"\"a\\", NULL, KT_JSON_STRICT},
};

START_TEST(what_is_json)
{
    const char *text = texts[_i].text;
    size_t size = strlen(text);
    char *exact = malloc(size), *back; /* a sanitizer sees what reads behind the end */
    json_t *root;
    memcpy(exact, text, size);
    kt_status status = kt_json_parse(ctx, "f.json", 1, exact, size, texts[_i].dialect, &root);
    free(exact);
    if (!texts[_i].tree) {
        assert_error(status, KT_ERROR_FORMAT, "f.json: line 1, column ");
        ck_assert_ptr_null(root);
        return;
    }
    ck_assert_msg(status == KT_OK, "%s: %s", text, kt_last_error(ctx));
    ck_assert_int_eq(kt_json_encode(ctx, "f.json", root, JSON_COMPACT | JSON_ENCODE_ANY, &back),
                     KT_OK);
    ck_assert_str_eq(back, texts[_i].tree);
    free(back);
    json_decref(root);
}
END_TEST

/* A host may have set a locale whose numbers have a comma. */
START_TEST(numbers_do_not_know_locales)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "ru_RU.UTF-8"};
    json_t *root;
    for (size_t i = 0; i < 4 && !setlocale(LC_NUMERIC, names[i]); i++) {
    }
    ck_assert_int_eq(kt_json_parse(ctx, "f.json", 1, "1.5", 3, KT_JSON_STRICT, &root), KT_OK);
    setlocale(LC_NUMERIC, "C");
    ck_assert(json_real_value(root) == 1.5);
    json_decref(root);
}
END_TEST

START_TEST(trees_out_of_proportion)
{
    size_t size = (size_t)6 << 20;
    char *text = malloc(size + 2);
    json_t *root;
    memset(text, '[', size);
    assert_error(kt_json_parse(ctx, "f.json", 1, text, size, KT_JSON_STRICT, &root),
                 KT_ERROR_FORMAT, "nested");
    for (size_t i = 1; i + 3 <= size; i += 3)
        memcpy(text + i, "{},", 3);
    assert_error(kt_json_parse(ctx, "f.json", 1, text, size, KT_JSON_STRICT, &root),
                 KT_ERROR_FORMAT, "f.json: its contents would take more than 208.0 MiB");
    ctx->options.memory_limit = 1 << 20;
    assert_error(kt_json_parse(ctx, "f.json", 1, text, size, KT_JSON_STRICT, &root),
                 KT_ERROR_OUT_OF_MEMORY, "the limit of 1.0 MiB");
    free(text);
}
END_TEST

START_TEST(paths_join)
{
    char *a = kt_path_join("x", "y"), *b = kt_path_join("x/", "y"), *c = kt_path_join("x", "/y");
    char *d = kt_path_join("", "y");
    ck_assert_str_eq(a, "x/y");
    ck_assert_str_eq(b, "x/y");
    ck_assert_str_eq(c, "/y");
    ck_assert_str_eq(d, "y");
    free(a);
    free(b);
    free(c);
    free(d);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("json", .setup = setup, .teardown = teardown),
        TEST(files_that_cannot_be_read),
        TEST(syntax_errors_name_the_line),
        TEST(typed_values),
        TEST(integers_beyond_64_bits),
        LOOP(what_is_json, sizeof texts / sizeof *texts),
        TEST(numbers_do_not_know_locales),
        TEST(trees_out_of_proportion),
        TEST(paths_join),
    };
    return RUN_TESTS("json", tests);
}
