/* SPDX-License-Identifier: Apache-2.0 */
/* tokenize TOKENIZER ADD_SPECIAL [decode] < texts: each text is "LENGTH\n" and LENGTH bytes; prints
 * the ids of each on a line, and with "decode" the text that they stand for, in hexadecimal, on the
 * next. */
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>

static int print_text(const kt_tokenizer *tokenizer, const int32_t *ids, size_t count)
{
    char *text;
    size_t length;
    if (kt_tokenizer_decode(tokenizer, ids, count, 0, &text, &length) != KT_OK)
        return 1;
    for (size_t i = 0; i < length; i++)
        printf("%02x", (unsigned char)text[i]);
    puts("");
    kt_free(text);
    return 0;
}

static int print_ids(const kt_tokenizer *tokenizer, const char *text, size_t length, int special,
                     int decode)
{
    int failed = 0;
    int32_t *ids;
    size_t count;
    if (kt_tokenizer_encode(tokenizer, text, length, special, &ids, &count) != KT_OK)
        return 1;
    for (size_t i = 0; i < count; i++)
        printf("%s%d", i ? " " : "", ids[i]);
    puts("");
    if (decode)
        failed = print_text(tokenizer, ids, count);
    kt_free(ids);
    return failed;
}

int main(int argc, char **argv)
{
    kt_context *ctx;
    kt_tokenizer *tokenizer;
    unsigned long length;
    int failed = 0;
    if (argc < 3 || argc > 4 || kt_context_create(NULL, &ctx) != KT_OK)
        return 2;
    if (kt_tokenizer_load(ctx, argv[1], &tokenizer) != KT_OK) {
        fprintf(stderr, "%s\n", kt_last_error(ctx));
        return 1;
    }
    while (!failed && scanf("%lu", &length) == 1 && getchar() == '\n') {
        char *text = malloc(length + 1);
        failed = !text || fread(text, 1, length, stdin) != length ||
                 print_ids(tokenizer, text, length, atoi(argv[2]), argc == 4);
        free(text);
    }
    if (failed)
        fprintf(stderr, "%s\n", kt_last_error(ctx));
    kt_tokenizer_free(tokenizer);
    kt_context_free(ctx);
    return failed;
}
