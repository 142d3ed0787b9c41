/* SPDX-License-Identifier: Apache-2.0 */
/** \file text_goldens.h
 * Comparison with the goldens of tests/reference/text, for the programs that test tokenizers. */
#ifndef KT_TEST_TEXT_GOLDENS_H
#define KT_TEST_TEXT_GOLDENS_H

#include <check.h>
#include <jansson.h>
#include <kt/kt.h>
#include <stdio.h>
#include <string.h>

#define DIR KT_REFERENCE_DIR "/text/"

static inline json_t *load_json(const char *name)
{
    json_error_t error;
    json_t *root = json_load_file(name, JSON_ALLOW_NUL, &error);
    ck_assert_msg(root != NULL, "%s: %s", name, error.text);
    return root;
}

static inline size_t from_hex(const json_t *hex, char *out)
{
    const char *text = json_string_value(hex);
    size_t n = json_string_length(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        ck_assert_int_eq(sscanf(text + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    return n;
}

static inline void assert_ids(const char *what, size_t index, const int32_t *ids, size_t num,
                              const json_t *want)
{
    ck_assert_msg(num == json_array_size(want), "%s: text %zu: %zu ids, not %zu", what, index, num,
                  json_array_size(want));
    for (size_t i = 0; i < num; i++)
        ck_assert_msg(ids[i] == json_integer_value(json_array_get(want, i)),
                      "%s: text %zu: id %zu is %d, not %lld", what, index, i, ids[i],
                      (long long)json_integer_value(json_array_get(want, i)));
}

static inline void compare_ids(const char *what, const kt_tokenizer *tokenizer, const json_t *texts,
                               const json_t *want, int add_special)
{
    char text[8192];
    json_t *hex;
    size_t i;
    ck_assert_uint_gt(json_array_size(texts), 100);
    ck_assert_uint_eq(json_array_size(texts), json_array_size(want));
    json_array_foreach(texts, i, hex)
    {
        int32_t *ids;
        size_t num, length = from_hex(hex, text);
        ck_assert_int_eq(kt_tokenizer_encode(tokenizer, text, length, add_special, &ids, &num),
                         KT_OK);
        assert_ids(what, i, ids, num, json_array_get(want, i));
        kt_free(ids);
    }
}

#endif
