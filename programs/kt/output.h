/* SPDX-License-Identifier: Apache-2.0 */
/** \file output.h
 * All that kt prints. Models, data, file names and errors bring text of strangers along, and what
 * means nothing in a file may set a terminal's title or the clipboard. So on a terminal every
 * control character but tab and newline is shown as an escape (\x1b, \u202e); into pipes and files
 * the bytes go as they are. A write that fails is remembered, and what follows is dropped: training
 * does not end with its reader. */
#ifndef KT_OUTPUT_H
#define KT_OUTPUT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/** To be called first: looks where the streams lead, and sees to it that no file that is opened
 * later takes the place of one that is closed. */
void output_open(void);

/** Standard output. */
void out_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void out_vprint(const char *format, va_list args) __attribute__((format(printf, 1, 0)));
/** May end within a character, which the next call goes on with. */
void out_text(const char *text, size_t length);
/** A control sequence of ours; for terminals alone. */
void out_control(const char *sequence);
bool out_is_terminal(void);
/** Returns the error (an errno) of the first write that failed, 0 when all went well. */
int out_flush(void);

/** Standard error, after all of standard output so far. */
void err_print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** A line: `before`, then the sentence. */
void err_sentence(const char *before, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));

#endif
