/* SPDX-License-Identifier: Apache-2.0 */
/* Answers one question, printing the answer as it is generated.
 *
 *     chat MODEL_DIR QUESTION [ADAPTER_DIR]
 */
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>

static kt_context *ctx;

static void must(kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "%s: %s\n", kt_status_string(status), kt_last_error(ctx));
    exit(1);
}

static void answer(kt_generator *generator, const kt_tokenizer *tokenizer)
{
    enum { MAX_NEW_TOKENS = 200 };
    kt_decode_state state = {.size = sizeof state};
    char text[512];
    size_t length;
    int32_t token;
    for (int i = 0; i < MAX_NEW_TOKENS; i++) {
        must(kt_generator_next(generator, &token));
        if (token == kt_tokenizer_eos_id(tokenizer))
            break;
        must(kt_tokenizer_decode_next(tokenizer, &state, token, text, sizeof text, &length));
        fwrite(text, 1, length, stdout);
        fflush(stdout);
    }
    must(kt_tokenizer_decode_next(tokenizer, &state, -1, text, sizeof text, &length));
    fwrite(text, 1, length, stdout);
    putchar('\n');
}

int main(int argc, char **argv)
{
    kt_model *model;
    kt_tokenizer *tokenizer;
    kt_lora *lora = NULL;
    kt_executor *executor;
    kt_generator *generator;
    int32_t *ids;
    size_t num_ids;

    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s MODEL_DIR QUESTION [ADAPTER_DIR]\n", argv[0]);
        return 2;
    }
    must(kt_context_create(NULL, &ctx));
    must(kt_model_load(ctx, argv[1], NULL, &model));
    must(kt_tokenizer_load(ctx, argv[1], &tokenizer));
    if (argc == 4)
        must(kt_lora_load(model, argv[3], &lora));
    must(kt_executor_create(model, lora, NULL, &executor));
    must(kt_generator_create(executor, NULL, &generator));

    kt_message message = {.size = sizeof message, .role = "user", .content = argv[2]};
    must(kt_tokenizer_apply_template(tokenizer, "deepseek3", &message, 1, &ids, &num_ids));
    must(kt_generator_prompt(generator, ids, num_ids));
    kt_free(ids);
    answer(generator, tokenizer);

    kt_generator_free(generator);
    kt_executor_free(executor);
    kt_lora_free(lora);
    kt_tokenizer_free(tokenizer);
    kt_model_free(model);
    kt_context_free(ctx);
    return 0;
}
