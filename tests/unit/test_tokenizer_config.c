/* SPDX-License-Identifier: Apache-2.0 */
/* What tokenizer_config.json says of spaces in Llama's tokenizers, against transformers. */
#include "fixture.h"
#include "text_goldens.h"
#include "main.h"

enum { CASES = 6 };

static json_t *goldens;

static void setup(void)
{
    fixture_setup();
    goldens = load_json(DIR "prefix_space_goldens.json");
    ck_assert_int_eq(symlink(DIR "tiny_sp/tokenizer.json", fixture_path("tokenizer.json")), 0);
}

static void teardown(void)
{
    json_decref(goldens);
    fixture_teardown();
}

static json_t *golden_case(size_t i)
{
    return json_array_get(json_object_get(goldens, "cases"), i);
}

static void write_config(const json_t *config)
{
    ck_assert_int_eq(json_dump_file(config, fixture_path("tokenizer_config.json"), 0), 0);
}

static void compare_texts(const char *what, const kt_tokenizer *tokenizer, size_t i)
{
    compare_ids(what, tokenizer, json_object_get(goldens, "texts"),
                json_object_get(golden_case(i), "ids"), 1);
}

static kt_tokenizer *load(void)
{
    kt_tokenizer *tokenizer;
    kt_status status = kt_tokenizer_load(fixture_context, fixture_folder, &tokenizer);
    ck_assert_msg(status == KT_OK, "%s", kt_last_error(fixture_context));
    return tokenizer;
}

static void compare_decoded(const kt_tokenizer *tokenizer, const json_t *golden)
{
    int32_t ids[8192];
    json_t *list;
    size_t i;
    json_array_foreach(json_object_get(golden, "ids"), i, list)
    {
        const json_t *want = json_array_get(json_object_get(golden, "decoded"), i);
        size_t num = json_array_size(list), length;
        char *text;
        for (size_t j = 0; j < num; j++)
            ids[j] = (int32_t)json_integer_value(json_array_get(list, j));
        ck_assert_int_eq(kt_tokenizer_decode(tokenizer, ids, num, 0, &text, &length), KT_OK);
        ck_assert_uint_eq(length, json_string_length(want));
        ck_assert_mem_eq(text, json_string_value(want), length);
        kt_free(text);
    }
}

/* legacy or not, add_prefix_space null, true or false. */
START_TEST(spaces_are_those_of_transformers)
{
    json_t *config = json_object_get(golden_case((size_t)_i), "config");
    char *what = json_dumps(config, 0);
    fixture_write("tokenizer.model", "", 0);
    write_config(config);
    kt_tokenizer *tokenizer = load();
    compare_texts(what, tokenizer, (size_t)_i);
    compare_decoded(tokenizer, golden_case((size_t)_i));
    kt_tokenizer_free(tokenizer);
    free(what);
}
END_TEST

/* transformers loads nothing then; the first of the cases leaves tokenizer.json as it is. */
START_TEST(without_tokenizer_model_the_file_stands)
{
    write_config(json_object_get(golden_case(CASES - 1), "config"));
    kt_tokenizer *tokenizer = load();
    compare_texts("no tokenizer.model", tokenizer, 0);
    kt_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(spaces_need_true_or_false)
{
    kt_tokenizer *tokenizer;
    json_t *config = json_object_get(golden_case(0), "config");
    ck_assert_int_eq(json_object_set_new(config, "add_prefix_space", json_integer(1)), 0);
    write_config(config);
    ck_assert_fails(kt_tokenizer_load(fixture_context, fixture_folder, &tokenizer), KT_ERROR_FORMAT,
                    "\"add_prefix_space\"");
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("spaces", .setup = setup, .teardown = teardown),
        LOOP(spaces_are_those_of_transformers, CASES),
        TEST(without_tokenizer_model_the_file_stands),
        TEST(spaces_need_true_or_false),
    };
    return RUN_TESTS("tokenizer_config", tests);
}
