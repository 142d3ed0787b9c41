/* SPDX-License-Identifier: Apache-2.0 */
/* A template (its place in the list), how to think, then messages: a role's letter and a text. */
#include <stdio.h>

#include "fuzz.h"

static const kt_tokenizer *tokenizer(int which)
{
    static const kt_tokenizer *loaded[2];
    if (!loaded[which])
        loaded[which] = fuzz_tokenizer(which ? "tiny_sp" : "tiny");
    return loaded[which];
}

static void template_name(unsigned which, char name[64])
{
    const char *names = kt_template_names();
    unsigned num = 1;
    for (const char *c = names; *c; c++)
        num += *c == ',';
    for (which %= num; which > 0; which--)
        names = strchr(names, ',') + 2;
    snprintf(name, 64, "%.*s", (int)strcspn(names, ","), names);
}

static void apply(const char *name, int32_t thinking, const kt_message *messages, size_t num)
{
    for (int which = 0; which < 2; which++) {
        int32_t *ids = NULL, stops[16];
        size_t num_ids = 0;
        if (fuzz_ok(kt_tokenizer_apply_template_thinking(tokenizer(which), name, thinking, messages,
                                                         num, &ids, &num_ids)))
            kt_free(ids);
        fuzz_ok(kt_tokenizer_stop_ids(tokenizer(which), name, stops, 16, &num_ids));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const roles[] = {"system", "user",     "assistant", "observation",
                                        "tool",   "function", "stranger",  ""};
    if (size < 2)
        return 0;
    char name[64];
    template_name(data[0], name);
    int32_t thinking = data[1] % 3;
    data += 2;
    size -= 2;
    for (int which = 0; which < 2; which++)
        fuzz_use_tokenizer(tokenizer(which), (const char *)data, size);

    kt_message messages[8];
    char *texts[8];
    size_t num = 0, length;
    for (; num < 8 && size > 0; num++) {
        const char *role = roles[*data++ % 8];
        size--;
        texts[num] = fuzz_text(&data, &size, &length);
        messages[num] = (kt_message){.size = sizeof *messages, .role = role, .content = texts[num]};
    }
    apply(name, thinking, messages, num);
    while (num > 0)
        free(texts[--num]);
    return 0;
}
