/* SPDX-License-Identifier: Apache-2.0 */
/* A pattern, a text. */
#include "text/regex.h"

#include "fuzz.h"

static void find_all(const struct kt_regex *regex, const char *text, size_t size)
{
    struct kt_budget budget;
    kt_budget_start(&budget, fuzz_context(), "input", size);
    size_t from = 0, begin, end;
    bool found = true;
    while (from <= size) {
        if (!fuzz_ok(kt_regex_find(&budget, regex, text, size, from, &found, &begin, &end)) ||
            !found)
            return;
        fuzz_expect(begin >= from && begin <= end && end <= size, "a match outside of the text");
        from = end > begin ? end : end + 1;
        while (from < size && ((unsigned char)text[from] & 0xc0) == 0x80)
            from++;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char known[] = "Hello  it's aaaaaaaaaaaaaaaa 12345 w\xc3\xb6rld\n\n \xe4\xbd\xa0";
    size_t length;
    char *pattern = fuzz_text(&data, &size, &length);
    struct kt_regex *regex = NULL;
    if (fuzz_ok(kt_regex_compile(fuzz_context(), "input", pattern, &regex))) {
        find_all(regex, known, sizeof known - 1);
        bool ascii = true;
        for (size_t i = 0; i < size; i++)
            ascii = ascii && data[i] < 0x80;
        if (ascii)
            find_all(regex, (const char *)data, size);
    }
    kt_regex_free(regex);
    free(pattern);
    return 0;
}
