/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/utf8.h
 * UTF-8 with replacement of malformed parts, and the alphabet of byte-level BPE.
 *
 * A malformed part is replaced as Unicode recommends and as Python's errors="replace" and Rust's
 * from_utf8_lossy do: one U+FFFD for each maximal prefix of a well-formed sequence. */
#ifndef KT_TEXT_UTF8_H
#define KT_TEXT_UTF8_H

#include "text/array.h"

enum kt_utf8_kind {
    KT_UTF8_VALID,
    KT_UTF8_INVALID,  /**< `length` bytes stand for one U+FFFD */
    KT_UTF8_TRUNCATED /**< all remaining bytes begin a sequence that is well formed so far */
};

struct kt_utf8 {
    uint32_t code;
    uint8_t length;
    enum kt_utf8_kind kind;
};

/** The sequence at the start of `size` >= 1 bytes. */
struct kt_utf8 kt_utf8_next(const char *text, size_t size);

/** Writes the 1 to 4 bytes of a code point; returns how many. */
size_t kt_utf8_put(uint32_t code, char *out);

bool kt_utf8_is_valid(const char *text, size_t size);

/** Appends the text with malformed parts replaced. */
bool kt_utf8_append_lossy(struct kt_bytes *out, const char *text, size_t size);

/** White_Space of Unicode. */
bool kt_is_space(uint32_t code);

/** The code point that stands for a byte in byte-level vocabularies (GPT-2's alphabet: printable
 * Latin-1 stands for itself, the other bytes for U+0100 and on), and back: -1 for other code
 * points. */
uint32_t kt_alphabet_from_byte(unsigned char byte);
int kt_alphabet_to_byte(uint32_t code);

#endif
