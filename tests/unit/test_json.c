/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <kt/kt.h>
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
    assert_error(kt_json_parse(ctx, "f.json", 1, text, strlen(text), &root), KT_ERROR_FORMAT,
                 "f.json: line 2");
    assert_error(kt_json_parse(ctx, "f.json", 41, text, strlen(text), &root), KT_ERROR_FORMAT,
                 "line 42");
    assert_error(kt_json_parse(ctx, "f.json", 1, "", 0, &root), KT_ERROR_FORMAT, "line 1");
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
    ck_assert_int_eq(kt_json_parse(ctx, "f.json", 1, text, strlen(text), &root), KT_OK);
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
    ck_assert_int_eq(kt_json_parse(ctx, "f.json", 1, text, strlen(text), &root), KT_OK);
    struct kt_json json = {ctx, "f.json", "", root};
    ck_assert_int_eq(kt_json_int(&json, "i", KT_JSON_REQUIRED, 0, 9, &i), KT_OK);
    ck_assert_int_eq(i, 3);
    ck_assert_int_eq(kt_json_real(&json, "model_max_length", KT_JSON_REQUIRED, &r), KT_OK);
    ck_assert(r == 1e30);
    assert_error(kt_json_int(&json, "model_max_length", KT_JSON_REQUIRED, 0, 9, &i),
                 KT_ERROR_FORMAT, "model_max_length");
    json_decref(root);
    assert_error(kt_json_parse(ctx, "f.json", 1, huge, strlen(huge), &root), KT_ERROR_FORMAT,
                 "line 1");
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
        TEST(paths_join),
    };
    return RUN_TESTS("json", tests);
}
