/* SPDX-License-Identifier: Apache-2.0 */
/* Ids and labels against those of LLaMA-Factory's own pipeline; see tests/reference/text. */
#include <check.h>
#include <jansson.h>
#include <kt/kt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "main.h"

#define DIR KT_REFERENCE_DIR "/text/"

static kt_context *ctx;
static kt_tokenizer *tokenizer;
static json_t *goldens;
static int warnings;
static char folder[sizeof "/tmp/kt-dataset-XXXXXX"];

static void count_warnings(void *user, int32_t level, const char *message)
{
    (void)user;
    (void)message;
    warnings += level == KT_LOG_WARNING;
}

static void setup(void)
{
    kt_context_options options;
    json_error_t error;
    kt_context_options_init(&options, sizeof options);
    options.log = count_warnings;
    ck_assert_int_eq(kt_context_create(&options, &ctx), KT_OK);
    ck_assert_msg(kt_tokenizer_load(ctx, DIR "tiny", &tokenizer) == KT_OK, "%s",
                  kt_last_error(ctx));
    goldens = json_load_file(DIR "dataset_goldens.json", 0, &error);
    ck_assert_msg(goldens != NULL, "%s", error.text);
    strcpy(folder, "/tmp/kt-dataset-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void teardown(void)
{
    char path[64];
    snprintf(path, sizeof path, "%s/dataset_info.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/d.json", folder);
    unlink(path);
    rmdir(folder);
    json_decref(goldens);
    kt_tokenizer_free(tokenizer);
    kt_context_free(ctx);
}

static void assert_same(const char *what, size_t index, const int32_t *got, size_t length,
                        const json_t *want)
{
    ck_assert_msg(length == json_array_size(want), "%s: example %zu has %zu ids, not %zu", what,
                  index, length, json_array_size(want));
    for (size_t i = 0; i < length; i++)
        ck_assert_msg(got[i] == json_integer_value(json_array_get(want, i)),
                      "%s: example %zu: number %zu is %d, not %lld", what, index, i, got[i],
                      (long long)json_integer_value(json_array_get(want, i)));
}

static void compare(const char *what, const kt_dataset *dataset, const json_t *want)
{
    json_t *item;
    size_t i;
    ck_assert_msg(kt_dataset_num_examples(dataset) == json_array_size(want),
                  "%s: %zu examples, not %zu", what, kt_dataset_num_examples(dataset),
                  json_array_size(want));
    json_array_foreach((json_t *)want, i, item)
    {
        kt_example example = {.size = sizeof example};
        ck_assert_int_eq(kt_dataset_get(dataset, i, &example), KT_OK);
        assert_same(what, i, example.input_ids, example.length, json_object_get(item, "input_ids"));
        assert_same(what, i, example.labels, example.length, json_object_get(item, "labels"));
    }
}

static kt_dataset_options options_of(const json_t *given)
{
    kt_dataset_options o;
    const json_t *cutoff = json_object_get(given, "cutoff_len");
    kt_dataset_options_init(&o, sizeof o);
    o.dataset_dir = DIR "data";
    o.dataset = json_string_value(json_object_get(given, "dataset"));
    o.template_name = json_string_value(json_object_get(given, "template"));
    o.cutoff_len = cutoff ? (int32_t)json_integer_value(cutoff) : 2048;
    o.max_samples = json_integer_value(json_object_get(given, "max_samples"));
    o.train_on_prompt = json_is_true(json_object_get(given, "train_on_prompt"));
    o.mask_history = json_is_true(json_object_get(given, "mask_history"));
    o.default_system = json_string_value(json_object_get(given, "default_system"));
    const json_t *thinking = json_object_get(given, "enable_thinking");
    o.thinking = json_is_null(thinking)    ? KT_THINKING_EITHER
                 : json_is_false(thinking) ? KT_THINKING_OFF
                                           : KT_THINKING_ON;
    o.name = json_string_value(json_object_get(goldens, "name"));
    o.author = json_string_value(json_object_get(goldens, "author"));
    return o;
}

static kt_dataset *load(const kt_dataset_options *options)
{
    kt_dataset *dataset;
    kt_status status = kt_dataset_load(ctx, tokenizer, options, &dataset);
    ck_assert_msg(status == KT_OK, "%s", kt_last_error(ctx));
    return dataset;
}

START_TEST(every_case_gives_the_same_ids_and_labels)
{
    json_t *item;
    size_t i;
    ck_assert_uint_gt(json_array_size(json_object_get(goldens, "cases")), 20);
    json_array_foreach(json_object_get(goldens, "cases"), i, item)
    {
        const json_t *given = json_object_get(item, "options");
        const json_t *val_size = json_object_get(given, "val_size");
        char *what = json_dumps(given, JSON_COMPACT);
        kt_dataset_options options = options_of(given);
        kt_dataset *dataset = load(&options), *evaluation = NULL;
        if (val_size) {
            uint64_t seed = (uint64_t)json_integer_value(json_object_get(given, "seed"));
            ck_assert_int_eq(
                kt_dataset_split(dataset, json_number_value(val_size), seed, &evaluation), KT_OK);
            compare(what, evaluation, json_object_get(item, "eval"));
        }
        compare(what, dataset, json_object_get(item, "train"));
        kt_dataset_free(evaluation);
        kt_dataset_free(dataset);
        free(what);
    }
}
END_TEST

START_TEST(placeholders_stay_without_names)
{
    kt_dataset_options options;
    kt_example example = {.size = sizeof example};
    char *text;
    size_t length;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = DIR "data";
    options.dataset = "en";
    options.template_name = "deepseek3";
    kt_dataset *dataset = load(&options);
    ck_assert_int_eq(kt_dataset_get(dataset, 0, &example), KT_OK);
    ck_assert_int_eq(
        kt_tokenizer_decode(tokenizer, example.input_ids, example.length, 1, &text, &length),
        KT_OK);
    ck_assert_str_eq(text,
                     "<｜User｜>Who are you?<｜Assistant｜>I am {{name}}, made by {{author}}.");
    ck_assert_int_eq(kt_dataset_get(dataset, 1000, &example), KT_ERROR_INVALID_ARGUMENT);
    kt_free(text);
    kt_dataset_free(dataset);
}
END_TEST

static void write_file(const char *name, const char *text)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static void assert_refused(const kt_dataset_options *options, kt_status status, const char *says)
{
    kt_dataset *dataset;
    kt_status got = kt_dataset_load(ctx, tokenizer, options, &dataset);
    ck_assert_msg(got == status && strstr(kt_last_error(ctx), says),
                  "%d, \"%s\" instead of %d, \"%s\"", got, kt_last_error(ctx), status, says);
    ck_assert_ptr_null(dataset);
}

static const struct {
    const char *data;
    kt_status status;
    const char *says;
} bad_alpaca[] = {
    {"", KT_ERROR_FORMAT, "d.json: holds no example"},
    {"[]", KT_ERROR_FORMAT, "d.json: holds no example"},
    {"[1]", KT_ERROR_FORMAT, "entry 1"},
    {"\n{\"instruction\": \"a\", \"output\": \"b\"}\n\n{\"instruction\"", KT_ERROR_FORMAT,
     "line 4"},
    {"{\n\"instruction\": \"a\"}", KT_ERROR_FORMAT, "line 1"},
    {"[{\"instruction\": \"a\"}]", KT_ERROR_FORMAT, "none of the 1 entries"},
    {"[{\"instruction\": \"a\", \"output\": \"b\"}, {\"instruction\": 3, \"output\": \"b\"}]",
     KT_ERROR_FORMAT, "entry 2: \"instruction\""},
    {"\"text\"", KT_ERROR_FORMAT, "line 1"},
    {"[{\"instruction\": \"a\", \"output\": \"b\"}", KT_ERROR_FORMAT, "line 1"},
    {"\xff\xfe", KT_ERROR_FORMAT, "line 1"},
    {"\xef\xbb\xbf[{\"instruction\": \"a\", \"output\": \"b\"}]", KT_ERROR_FORMAT,
     "d.json: begins with a byte order mark"},
};

START_TEST(malformed_alpaca_files)
{
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = folder;
    options.dataset = "d";
    options.template_name = "deepseek3";
    write_file("dataset_info.json", "{\"d\": {\"file_name\": \"d.json\"}}");
    for (size_t i = 0; i < sizeof bad_alpaca / sizeof *bad_alpaca; i++) {
        write_file("d.json", bad_alpaca[i].data);
        assert_refused(&options, bad_alpaca[i].status, bad_alpaca[i].says);
    }
}
END_TEST

static const struct {
    const char *data;
    kt_status status;
    const char *says;
} bad_sharegpt[] = {
    {"[{}]", KT_ERROR_FORMAT, "entry 1: \"conversations\""},
    {"[{\"conversations\": [3]}]", KT_ERROR_FORMAT, "\"from\""},
    {"[{\"conversations\": [{\"from\": \"human\"}]}]", KT_ERROR_FORMAT, "\"value\""},
    {"[{\"conversations\": [{\"from\": \"gpt\", \"value\": \"x\"}]}]", KT_ERROR_FORMAT, "none of"},
    {"[{\"t\": \"[{}]\", \"conversations\": []}]", KT_ERROR_UNSUPPORTED, "\"t\""},
    {"[{\"conversations\": [{\"from\": \"human\", \"value\": \"x\"}, {\"from\": \"function_call\","
     " \"value\": \"{}\"}]}]",
     KT_ERROR_UNSUPPORTED, "d.json: entry 1: \"function_call\""},
};

START_TEST(malformed_sharegpt_files)
{
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = folder;
    options.dataset = "d";
    options.template_name = "qwen";
    write_file("dataset_info.json",
               "{\"d\": {\"file_name\": \"d.json\", \"formatting\": \"sharegpt\", \"columns\": "
               "{\"messages\": \"conversations\", \"tools\": \"t\"}}}");
    for (size_t i = 0; i < sizeof bad_sharegpt / sizeof *bad_sharegpt; i++) {
        write_file("d.json", bad_sharegpt[i].data);
        assert_refused(&options, bad_sharegpt[i].status, bad_sharegpt[i].says);
    }
}
END_TEST

static const struct {
    const char *dataset;
    kt_status status;
    const char *says;
} bad_names[] = {
    {"hub", KT_ERROR_UNSUPPORTED, "hf_hub_url"},
    {"script", KT_ERROR_UNSUPPORTED, "script_url"},
    {"pairs", KT_ERROR_UNSUPPORTED, "ranking"},
    {"pictures", KT_ERROR_UNSUPPORTED, "images"},
    {"table", KT_ERROR_UNSUPPORTED, "file_name"},
    {"openai", KT_ERROR_UNSUPPORTED, "formatting"},
    {"missing", KT_ERROR_NOT_FOUND, "no_such_file.json"},
    {"nothing", KT_ERROR_NOT_FOUND, "\"nothing\""},
    {" ,", KT_ERROR_INVALID_ARGUMENT, "dataset"},
};

START_TEST(options_and_names_that_are_refused)
{
    kt_dataset_options good, o;
    kt_dataset_options_init(&good, sizeof good);
    good.dataset_dir = DIR "data";
    good.dataset = "en";
    good.template_name = "deepseek3";
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++) {
        o = good;
        o.dataset = bad_names[i].dataset;
        assert_refused(&o, bad_names[i].status, bad_names[i].says);
    }
    o = good;
    o.cutoff_len = 0;
    assert_refused(&o, KT_ERROR_INVALID_ARGUMENT, "cutoff_len");
    o = good;
    o.template_name = "no_such";
    assert_refused(&o, KT_ERROR_NOT_FOUND, "deepseek3");
    o = good;
    o.train_on_prompt = o.mask_history = 1;
    assert_refused(&o, KT_ERROR_INVALID_ARGUMENT, "mask_history");
    o = good;
    o.dataset_dir = "/nonexistent";
    assert_refused(&o, KT_ERROR_NOT_FOUND, "/nonexistent/dataset_info.json");
    o = good;
    o.cutoff_len = 1;
    assert_refused(&o, KT_ERROR_FORMAT, "none of");
    o = good;
    o.size = 1;
    assert_refused(&o, KT_ERROR_INVALID_ARGUMENT, "size");
}
END_TEST

START_TEST(a_dataset_named_twice_counts_once)
{
    kt_dataset_options options = options_of(
        json_object_get(json_array_get(json_object_get(goldens, "cases"), 0), "options"));
    kt_dataset *once, *twice;
    options.dataset = "en,zh";
    once = load(&options);
    options.dataset = "en, zh,en";
    twice = load(&options);
    ck_assert_uint_eq(kt_dataset_num_examples(twice), kt_dataset_num_examples(once));
    kt_dataset_free(once);
    kt_dataset_free(twice);
}
END_TEST

/* Ids and labels, of both parts. */
START_TEST(the_tokens_of_a_dataset_count_as_memory)
{
    kt_dataset_options options = options_of(
        json_object_get(json_array_get(json_object_get(goldens, "cases"), 0), "options"));
    uint64_t before = kt_context_memory_used(ctx), tokens = 0;
    kt_dataset *dataset = load(&options), *evaluation;
    for (size_t i = 0; i < kt_dataset_num_examples(dataset); i++) {
        kt_example example = {.size = sizeof example};
        ck_assert_int_eq(kt_dataset_get(dataset, i, &example), KT_OK);
        tokens += example.length;
    }
    ck_assert_uint_ge(kt_context_memory_used(ctx) - before, tokens * 8);
    ck_assert_int_eq(kt_dataset_split(dataset, 0.3, 1, &evaluation), KT_OK);
    ck_assert_uint_ge(kt_context_memory_used(ctx) - before, tokens * 8);
    kt_dataset_free(dataset);
    ck_assert_uint_gt(kt_context_memory_used(ctx), before);
    kt_dataset_free(evaluation);
    ck_assert_uint_eq(kt_context_memory_used(ctx), before);
}
END_TEST

START_TEST(splits_that_make_no_sense)
{
    const double sizes[] = {0, -1, 12, 100, 1e300, (double)NAN};
    kt_dataset_options options = options_of(
        json_object_get(json_array_get(json_object_get(goldens, "cases"), 0), "options"));
    kt_dataset *dataset = load(&options), *evaluation;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        ck_assert_int_eq(kt_dataset_split(dataset, sizes[i], 1, &evaluation),
                         KT_ERROR_INVALID_ARGUMENT);
    ck_assert_uint_eq(kt_dataset_num_examples(dataset), 11);
    kt_dataset_free(dataset);
}
END_TEST

START_TEST(entries_that_are_left_out_are_named)
{
    kt_dataset_options options = options_of(
        json_object_get(json_array_get(json_object_get(goldens, "cases"), 0), "options"));
    warnings = 0;
    kt_dataset_free(load(&options));
    ck_assert_int_eq(warnings, 2);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("dataset", .setup = setup, .teardown = teardown, .timeout = 60),
        TEST(every_case_gives_the_same_ids_and_labels),
        TEST(placeholders_stay_without_names),
        TEST(malformed_alpaca_files),
        TEST(malformed_sharegpt_files),
        TEST(options_and_names_that_are_refused),
        TEST(a_dataset_named_twice_counts_once),
        TEST(the_tokens_of_a_dataset_count_as_memory),
        TEST(splits_that_make_no_sense),
        TEST(entries_that_are_left_out_are_named),
    };
    return RUN_TESTS("dataset", tests);
}
