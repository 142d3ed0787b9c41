/* SPDX-License-Identifier: Apache-2.0 */
/** \file fuzz.h
 * What the targets share. Each is a file with LLVMFuzzerTestOneInput, which libFuzzer calls or
 * replay.c. An input of several texts has a form feed between them. */
#ifndef KT_TESTS_FUZZ_H
#define KT_TESTS_FUZZ_H

#include <kt/kt.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/** One for the process: a thread, 512 MiB. */
kt_context *fuzz_context(void);

/** Ends the process unless a failure is a status that a bad input may have, with a sentence. True
 * of KT_OK. */
bool fuzz_ok(kt_status status);

/** Ends the process unless `holds`. */
void fuzz_expect(bool holds, const char *what);

/** "folder/name" in a folder of the process, which goes at its end; a static buffer of few. */
const char *fuzz_path(const char *name);
/** Writes it. */
const char *fuzz_file(const char *name, const void *data, size_t size);

/** The text up to a form feed, zero-terminated; *data and *size become what follows it. Free it. */
char *fuzz_text(const uint8_t **data, size_t *size, size_t *length);

/** One of tests/reference/text, or of the folder that KT_FUZZ_TEXT names; lives as the process. */
const kt_tokenizer *fuzz_tokenizer(const char *name);

/** Encodes the text and decodes it, at once and token by token, which must give the same
 * unless bytes are malformed (see kt_tokenizer_decode_next). */
void fuzz_use_tokenizer(const kt_tokenizer *tokenizer, const char *text, size_t length);

#endif
