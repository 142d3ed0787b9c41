/* SPDX-License-Identifier: Apache-2.0 */
/* Mutated tokenizer and dataset files, from fixed seeds: every load either works, and then so does
 * what follows, or fails with a sentence. Run it under ASan and UBSan to make it count. */
#include <check.h>
#include <jansson.h>
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/context.h"
#include "core/random.h"
#include "formats/file.h"
#include "main.h"

#define DIR KT_REFERENCE_DIR "/text/"

static kt_context *ctx;
static kt_tokenizer *tiny;
static char folder[sizeof "/tmp/kt-fuzz-XXXXXX"];
static uint64_t counter;
static int loaded, refused;

static uint32_t draw(uint32_t below)
{
    uint32_t words[4];
    kt_philox(20241124, 0, counter++, words);
    return words[0] % below;
}

static void setup(void)
{
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
    ck_assert_int_eq(kt_tokenizer_load(ctx, DIR "tiny", &tiny), KT_OK);
    strcpy(folder, "/tmp/kt-fuzz-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    loaded = refused = 0;
}

static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                    "special_tokens_map.json", "dataset_info.json", "d.json"};

static void teardown(void)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = kt_path_join(folder, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(folder);
    kt_tokenizer_free(tiny);
    kt_context_free(ctx);
}

static void write_file(const char *name, const char *data, size_t size)
{
    char *path = kt_path_join(folder, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, size, file), size);
    fclose(file);
    free(path);
}

static char *read_file(const char *name, size_t *size)
{
    char *data = NULL;
    ck_assert_int_eq(kt_file_read(ctx, name, 1 << 24, &data, size), KT_OK);
    return data;
}

/* A few bytes changed, cut out, doubled or put in. */
static size_t mutate_bytes(char *data, size_t size, size_t capacity)
{
    static const char *const tokens[] = {"\"", "{",     "}",           "[",       "]",
                                         ",",  ":",     "\\",          "\\ud800", "null",
                                         "-1", "1e999", "99999999999", "\xff",    "\\u0000"};
    for (uint32_t n = 1 + draw(4); n > 0 && size > 1; n--) {
        size_t at = draw((uint32_t)size), length = 1 + draw(40);
        const char *token = tokens[draw(sizeof tokens / sizeof *tokens)];
        if (length > size - at)
            length = size - at;
        switch (draw(4)) {
        case 0:
            data[at] = (char)draw(256);
            break;
        case 1:
            memmove(data + at, data + at + length, size - at - length);
            size -= length;
            break;
        case 2:
            if (size + length <= capacity) {
                memmove(data + at + length, data + at, size - at);
                size += length;
            }
            break;
        default:
            length = strlen(token);
            if (size + length <= capacity) {
                memmove(data + at + length, data + at, size - at);
                memcpy(data + at, token, length);
                size += length;
            }
        }
    }
    return draw(20) ? size : draw((uint32_t)size);
}

static json_t *random_value(void)
{
    static const char *const texts[] = {
        "",        "a",      " ", "{",           "<｜User｜>", "ByteLevel", "Sequence",  "Split",
        "\\p{L}+", "(a*)*b", "[", "\\",          "(?=x)|",     "x*",        "Metaspace", "gpt",
        "system",  "Ġ",      "é", "{{content}}", "{{name}}",   "../d.json"};
    switch (draw(9)) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(draw(2));
    case 2:
        return json_integer((json_int_t)draw(1000) - 3);
    case 3:
        return json_integer(draw(2) ? INT64_MAX : INT64_MIN);
    case 4:
        return json_real(draw(2) ? 1e300 : -0.5);
    case 5:
        return json_array();
    case 6:
        return json_object();
    default:
        return json_string(texts[draw(sizeof texts / sizeof *texts)]);
    }
}

/* Replaces or removes a value somewhere below `node`. */
static void mutate_tree(json_t *node)
{
    size_t count = json_is_array(node) ? json_array_size(node) : json_object_size(node);
    if (!count)
        return;
    size_t pick = draw((uint32_t)count);
    void *at = json_is_object(node) ? json_object_iter(node) : NULL;
    for (size_t i = 0; at && i < pick; i++)
        at = json_object_iter_next(node, at);
    json_t *child = at ? json_object_iter_value(at) : json_array_get(node, pick);
    bool deeper = (json_is_array(child) || json_is_object(child)) && draw(5) != 0;
    if (deeper)
        mutate_tree(child);
    else if (at && draw(4) == 0)
        json_object_del(node, json_object_iter_key(at));
    else if (at)
        json_object_iter_set_new(node, at, random_value());
    else if (draw(4) == 0)
        json_array_remove(node, pick);
    else
        json_array_set_new(node, pick, random_value());
}

/* Writes a mutation of `source` as `name`. */
static void write_mutation(const char *source, const char *name)
{
    size_t size, capacity;
    char *data = read_file(source, &size);
    json_t *tree = draw(2) ? json_loadb(data, size, JSON_ALLOW_NUL, NULL) : NULL;
    if (tree) {
        for (uint32_t n = 1 + draw(3); n > 0; n--)
            mutate_tree(tree);
        free(data);
        data = json_dumps(tree, 0);
        size = strlen(data);
        json_decref(tree);
    } else {
        capacity = size + 1024;
        data = realloc(data, capacity);
        size = mutate_bytes(data, size, capacity);
    }
    write_file(name, data, size);
    free(data);
}

static void copy_file(const char *source, const char *name)
{
    size_t size;
    char *data = read_file(source, &size);
    write_file(name, data, size);
    free(data);
}

static void check_outcome(kt_status status, const void *handle)
{
    loaded += status == KT_OK;
    refused += status != KT_OK;
    ck_assert((status == KT_OK) == (handle != NULL));
    ck_assert(status == KT_OK || *kt_last_error(ctx));
    ck_assert_int_ne(status, KT_ERROR_INTERNAL);
}

static void use_tokenizer(const kt_tokenizer *tokenizer)
{
    static const char text[] = "Hello <｜User｜> 你好 é\xcc\x81 123 \xff {{name}}\n   x";
    static const kt_message message = {sizeof message, "user", "hi", {0}};
    int32_t *ids;
    size_t num, length;
    char *decoded;
    if (kt_tokenizer_encode(tokenizer, text, sizeof text - 1, 1, &ids, &num) == KT_OK) {
        for (size_t i = 0; i < num; i++)
            ck_assert(ids[i] >= 0);
        ck_assert_int_eq(kt_tokenizer_decode(tokenizer, ids, num, 0, &decoded, &length), KT_OK);
        kt_free(decoded);
        kt_free(ids);
    }
    if (kt_tokenizer_apply_template(tokenizer, "qwen", &message, 1, &ids, &num) == KT_OK)
        kt_free(ids);
}

START_TEST(tokenizer_files)
{
    static const char *const files[] = {DIR "tiny/tokenizer.json", DIR "tiny_sp/tokenizer.json"};
    static const char *const configs[] = {DIR "tiny/tokenizer_config.json",
                                          DIR "tiny_sp/tokenizer_config.json"};
    for (int i = 0; i < 800; i++) {
        kt_tokenizer *tokenizer;
        int kind = i / 400;
        copy_file(files[kind], "tokenizer.json");
        copy_file(configs[kind], "tokenizer_config.json");
        if (i % 3)
            write_mutation(files[kind], "tokenizer.json");
        else
            write_mutation(configs[kind],
                           i % 2 ? "tokenizer_config.json" : "special_tokens_map.json");
        kt_status status = kt_tokenizer_load(ctx, folder, &tokenizer);
        check_outcome(status, tokenizer);
        if (tokenizer)
            use_tokenizer(tokenizer);
        kt_tokenizer_free(tokenizer);
    }
    ck_assert_int_gt(loaded, 40);
    ck_assert_int_gt(refused, 200);
}
END_TEST

START_TEST(dataset_files)
{
    static const char *const sources[] = {DIR "data/alpaca_en.json", DIR "data/alpaca_zh.jsonl",
                                          DIR "data/sharegpt.json", DIR "data/sharegpt_tags.jsonl"};
    static const char *const datasets[] = {"en", "zh", "chat", "tags"};
    static const char *const templates[] = {"deepseek3", "qwen", "default", "deepseek"};
    kt_dataset_options options;
    json_t *info = json_load_file(DIR "data/dataset_info.json", 0, NULL);
    for (size_t i = 0; i < 4; i++)
        json_object_set_new(json_object_get(info, datasets[i]), "file_name", json_string("d.json"));
    char *text = json_dumps(info, 0);
    write_file("special_tokens_map.json", text, strlen(text));
    free(text);
    json_decref(info);
    char *plain = kt_path_join(folder, "special_tokens_map.json");
    for (uint32_t i = 0; i < 800; i++) {
        kt_dataset *dataset, *evaluation = NULL;
        kt_dataset_options_init(&options, sizeof options);
        options.dataset_dir = folder;
        options.dataset = datasets[i % 4];
        options.template_name = templates[draw(4)];
        options.cutoff_len = 1 + (int32_t)draw(300);
        options.mask_history = draw(4) == 0;
        options.name = draw(2) ? "Kite" : NULL;
        copy_file(plain, "dataset_info.json");
        copy_file(sources[i % 4], "d.json");
        if (draw(5) == 0)
            write_mutation(plain, "dataset_info.json");
        else
            write_mutation(sources[i % 4], "d.json");
        kt_status status = kt_dataset_load(ctx, tiny, &options, &dataset);
        check_outcome(status, dataset);
        if (dataset && kt_dataset_split(dataset, 0.25, i, &evaluation) == KT_OK)
            kt_dataset_free(evaluation);
        kt_dataset_free(dataset);
    }
    free(plain);
    ck_assert_int_gt(loaded, 100);
    ck_assert_int_gt(refused, 100);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("text fuzz", .setup = setup, .teardown = teardown, .timeout = 240),
        TEST(tokenizer_files),
        TEST(dataset_files),
    };
    return RUN_TESTS("text fuzz", tests);
}
