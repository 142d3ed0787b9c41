/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>
#include <time.h>

#include "text/normalize.h"
#include "main.h"

static void assert_nfc(const char *text, const char *want)
{
    struct kt_bytes out = {0};
    ck_assert(kt_normalize_nfc(text, strlen(text), &out));
    ck_assert_msg(out.count == strlen(want) && memcmp(out.data, want, out.count) == 0,
                  "\"%s\" became \"%.*s\"", text, (int)out.count, out.data);
    free(out.data);
}

/* As Python's unicodedata says. */
START_TEST(known_texts)
{
    assert_nfc("plain", "plain");
    assert_nfc("e\u0301", "\u00e9");
    assert_nfc("\u0301e", "\u0301e");
    assert_nfc("\u212b", "\u00c5");
    assert_nfc("\u0958", "\u0915\u093c"); /* composites that are excluded stay apart */
    assert_nfc("q\u0307\u0323", "q\u0323\u0307");
    assert_nfc("d\u0307\u0323x", "\u1e0d\u0307x");
    assert_nfc("\u1f82\u0300", "\u1f82\u0300");
    assert_nfc("\u1100\u1161\u11a8", "\uac01");
    assert_nfc("\uac00\u11a7", "\uac00\u11a7"); /* no final consonant */
    assert_nfc("\u1100\u1161\u11a7\u0301", "\uac00\u11a7\u0301");
    assert_nfc("\U0001d15e", "\U0001d157\U0001d165");
}
END_TEST

/* Marks of 230 and then of 220, which have to change places. */
START_TEST(many_marks_take_linear_time)
{
    enum { HALF = 200000 };
    char *text = malloc(4 * HALF + 1);
    struct kt_bytes out = {0};
    size_t length = 1;
    text[0] = 'x';
    for (int i = 0; i < 2 * HALF; i++, length += 2)
        memcpy(text + length, i < HALF ? "\u0301" : "\u0316", 2);
    clock_t begin = clock();
    ck_assert(kt_normalize_nfc(text, length, &out));
    ck_assert_msg(clock() - begin < 2 * CLOCKS_PER_SEC, "%.1f s of processor time",
                  (double)(clock() - begin) / CLOCKS_PER_SEC);
    ck_assert_uint_eq(out.count, length);
    ck_assert_int_eq(memcmp(out.data + 1, "\u0316", 2), 0);
    ck_assert_int_eq(memcmp(out.data + length - 2, "\u0301", 2), 0);
    free(out.data);
    free(text);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        TEST(known_texts),
        TEST(many_marks_take_linear_time),
    };
    return RUN_TESTS("normalize", tests);
}
