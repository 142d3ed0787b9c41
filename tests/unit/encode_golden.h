/* SPDX-License-Identifier: Apache-2.0 */
/** \file encode_golden.h
 * tests/reference/encode.safetensors: a matrix, and what PyTorch makes of it. */
#ifndef KT_TESTS_ENCODE_GOLDEN_H
#define KT_TESTS_ENCODE_GOLDEN_H

#include "fixture.h"
#include "formats/safetensors.h"

enum { GOLDEN_ROWS = 140, GOLDEN_COLS = 300 };

static const struct golden_format {
    kt_dtype dtype;
    const char *codes, *scales;
    int64_t rows, cols; /* that share a scale */
} golden_formats[] = {{KT_DTYPE_F8_E4M3, "f8", "f8_scale", 128, 128},
                      {KT_DTYPE_I8, "i8", "i8_scale", 1, GOLDEN_COLS},
                      {KT_DTYPE_I4, "i4", "i4_scale", 1, 128}};
enum { GOLDEN_FORMATS = 3 };

static struct kt_checkpoint *goldens;

static void goldens_open(void)
{
    fixture_setup();
    ck_assert_int_eq(
        kt_checkpoint_open(fixture_context, KT_REFERENCE_DIR "/encode.safetensors", &goldens),
        KT_OK);
}

static void goldens_close(void)
{
    kt_checkpoint_close(goldens);
    fixture_teardown();
}

static const struct kt_tensor *golden(const char *name)
{
    const struct kt_tensor *t = kt_checkpoint_find(goldens, name);
    ck_assert_ptr_nonnull(t);
    return t;
}

#endif
