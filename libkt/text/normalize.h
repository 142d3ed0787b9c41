/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/normalize.h
 * Unicode normalization form C (UAX #15), and the character classes that added tokens look at. */
#ifndef KT_TEXT_NORMALIZE_H
#define KT_TEXT_NORMALIZE_H

#include "text/array.h"

/** Appends valid UTF-8 in NFC. False when memory ran out. */
bool kt_normalize_nfc(const char *text, size_t length, struct kt_bytes *out);

/** Letters, marks, digits and connecting punctuation: \w of Unicode TR18. */
bool kt_unicode_is_word(uint32_t code);

#endif
