/* SPDX-License-Identifier: Apache-2.0 */
/* DeepSeek-V3's own tokenizer, which is not part of this repository: KT_TEST_DEEPSEEK_TOKENIZER
 * names its tokenizer.json or folder; see tests/reference/text/README.md. */
#include <stdlib.h>

#include "text_goldens.h"
#include "main.h"

START_TEST(gives_the_same_ids)
{
    json_t *goldens = load_json(DIR "deepseek_v3_goldens.json");
    kt_context *ctx;
    kt_tokenizer *tokenizer;
    ck_assert_int_eq(kt_context_create(NULL, &ctx), KT_OK);
    ck_assert_msg(kt_tokenizer_load(ctx, getenv("KT_TEST_DEEPSEEK_TOKENIZER"), &tokenizer) == KT_OK,
                  "%s", kt_last_error(ctx));
    ck_assert_int_eq(kt_tokenizer_vocab_size(tokenizer), 128815);
    compare_ids("deepseek v3", tokenizer, json_object_get(goldens, "texts"),
                json_object_get(goldens, "ids"), 0);
    kt_tokenizer_free(tokenizer);
    kt_context_free(ctx);
    json_decref(goldens);
}
END_TEST

int main(void)
{
    const char *path = getenv("KT_TEST_DEEPSEEK_TOKENIZER");
    if (!path || !*path) {
        puts("skipped: KT_TEST_DEEPSEEK_TOKENIZER is not set");
        return 77;
    }
    const struct test tests[] = {
        GROUP("deepseek tokenizer", .timeout = 60),
        TEST(gives_the_same_ids),
    };
    return RUN_TESTS("deepseek tokenizer", tests);
}
