/* SPDX-License-Identifier: Apache-2.0 */
/** \file training_golden.h
 * tests/reference/training.json, written by make_training_goldens.py. */
#ifndef TRAINING_GOLDEN_H
#define TRAINING_GOLDEN_H

#include <check.h>
#include <jansson.h>

static inline json_t *training_golden(void)
{
    json_error_t error;
    json_t *root = json_load_file(KT_REFERENCE_DIR "/training.json", 0, &error);
    ck_assert_msg(root != NULL, "%s", error.text);
    return root;
}

static inline double golden_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    ck_assert_msg(json_is_number(value), "%s", key);
    return json_number_value(value);
}

#endif
