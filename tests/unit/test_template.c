/* SPDX-License-Identifier: Apache-2.0 */
/* Prompts and stop ids against LLaMA-Factory's templates; see tests/reference/text. */
#include <check.h>
#include <jansson.h>
#include <kt/kt.h>
#include <stdlib.h>
#include <string.h>

#include "main.h"

#define DIR KT_REFERENCE_DIR "/text/"
#define MAX_MESSAGES 8

static kt_context *ctx;
static kt_tokenizer *tokenizer;
static json_t *goldens;

static void setup(void)
{
    json_error_t error;
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
    ck_assert_msg(kt_tokenizer_load(ctx, DIR "tiny", &tokenizer) == KT_OK, "%s",
                  kt_last_error(ctx));
    goldens = json_load_file(DIR "dataset_goldens.json", 0, &error);
    ck_assert_msg(goldens != NULL, "%s", error.text);
}

static void teardown(void)
{
    json_decref(goldens);
    kt_tokenizer_free(tokenizer);
    kt_context_free(ctx);
}

static size_t to_messages(const json_t *chat, kt_message *messages)
{
    size_t i;
    json_t *message;
    ck_assert_uint_le(json_array_size(chat), MAX_MESSAGES);
    json_array_foreach((json_t *)chat, i, message)
    {
        messages[i] =
            (kt_message){.size = sizeof *messages,
                         .role = json_string_value(json_object_get(message, "role")),
                         .content = json_string_value(json_object_get(message, "content"))};
    }
    return i;
}

static void compare(const char *name, size_t chat, const int32_t *ids, size_t num,
                    const json_t *want)
{
    ck_assert_msg(num == json_array_size(want), "%s: chat %zu: %zu ids, not %zu", name, chat, num,
                  json_array_size(want));
    for (size_t i = 0; i < num; i++)
        ck_assert_msg(ids[i] == json_integer_value(json_array_get(want, i)),
                      "%s: chat %zu: id %zu is %d", name, chat, i, ids[i]);
}

START_TEST(prompts_have_the_same_ids)
{
    json_t *item, *chat;
    size_t t, i;
    ck_assert_uint_eq(json_array_size(json_object_get(goldens, "templates")), 13);
    json_array_foreach(json_object_get(goldens, "templates"), t, item)
    {
        const char *name = json_string_value(json_object_get(item, "template"));
        const json_t *given = json_object_get(item, "enable_thinking");
        kt_thinking thinking = json_is_null(given)    ? KT_THINKING_EITHER
                               : json_is_false(given) ? KT_THINKING_OFF
                                                      : KT_THINKING_ON;
        ck_assert_ptr_nonnull(strstr(kt_template_names(), name));
        json_array_foreach(json_object_get(goldens, "chats"), i, chat)
        {
            kt_message messages[MAX_MESSAGES];
            size_t num = to_messages(chat, messages), num_ids;
            int32_t *ids;
            ck_assert_int_eq(kt_tokenizer_apply_template_thinking(tokenizer, name, thinking,
                                                                  messages, num, &ids, &num_ids),
                             KT_OK);
            compare(name, i, ids, num_ids, json_array_get(json_object_get(item, "ids"), i));
            kt_free(ids);
            if (thinking != KT_THINKING_ON)
                continue;
            ck_assert_int_eq(
                kt_tokenizer_apply_template(tokenizer, name, messages, num, &ids, &num_ids), KT_OK);
            compare(name, i, ids, num_ids, json_array_get(json_object_get(item, "ids"), i));
            kt_free(ids);
        }
    }
}
END_TEST

static int ascending(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

START_TEST(stop_ids_are_the_same)
{
    json_t *item;
    size_t t, num;
    int32_t ids[8];
    json_array_foreach(json_object_get(goldens, "templates"), t, item)
    {
        const char *name = json_string_value(json_object_get(item, "template"));
        ck_assert_int_eq(kt_tokenizer_stop_ids(tokenizer, name, ids, 8, &num), KT_OK);
        qsort(ids, num, sizeof *ids, ascending);
        compare(name, 0, ids, num, json_object_get(item, "stop"));
        ck_assert_int_eq(kt_tokenizer_stop_ids(tokenizer, name, ids, 0, &num),
                         KT_ERROR_INVALID_ARGUMENT);
    }
}
END_TEST

START_TEST(conversations_out_of_order_are_refused)
{
    const size_t size = sizeof(kt_message);
    const kt_message user = {size, "user", "x", {0}}, assistant = {size, "assistant", "y", {0}};
    const kt_message system_message = {size, "system", "z", {0}}, other = {size, "robot", "w", {0}};
    const struct {
        kt_message messages[3];
        size_t num;
    } bad[] = {{{user}, 0},           {{user, assistant}, 2},
               {{assistant}, 1},      {{user, user, user}, 3},
               {{system_message}, 1}, {{user, assistant, system_message}, 3},
               {{other}, 1}};
    int32_t *ids;
    size_t num;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(kt_tokenizer_apply_template(tokenizer, "deepseek3", bad[i].messages,
                                                     bad[i].num, &ids, &num),
                         KT_ERROR_INVALID_ARGUMENT);
        ck_assert_ptr_null(ids);
    }
    ck_assert_int_eq(kt_tokenizer_apply_template(tokenizer, "nothing", &user, 1, &ids, &num),
                     KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "deepseek3"));
    ck_assert_int_eq(
        kt_tokenizer_apply_template_thinking(tokenizer, "qwen3", 3, &user, 1, &ids, &num),
        KT_ERROR_INVALID_ARGUMENT);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("template", .setup = setup, .teardown = teardown),
        TEST(prompts_have_the_same_ids),
        TEST(stop_ids_are_the_same),
        TEST(conversations_out_of_order_are_refused),
    };
    return RUN_TESTS("template", tests);
}
