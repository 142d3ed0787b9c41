/* SPDX-License-Identifier: Apache-2.0 */
#include "told.h"

#include <stdarg.h>
#include <stdio.h>

#include "programs/kt/app.h"
#include "programs/kt/output.h"

static unsigned sentences;

bool fuzz_told(int rc)
{
    fuzz_expect(rc == APP_OK || rc == APP_ERROR || rc == APP_USAGE, "a strange exit code");
    fuzz_expect(rc == APP_OK || sentences > 0, "a failure without a sentence");
    fuzz_expect(rc != APP_OK || sentences == 0, "a sentence without a failure");
    fuzz_expect(sentences < 2, "two sentences");
    sentences = 0;
    return rc == APP_OK;
}

void err_sentence(const char *before, const char *format, va_list args)
{
    char text[4096];
    fuzz_expect(vsnprintf(text, sizeof text, format, args) > 0, "an empty sentence");
    sentences += strcmp(before, "kt: ") == 0;
}

static void format_all(const char *format, va_list args)
{
    char text[4096];
    fuzz_expect(vsnprintf(text, sizeof text, format, args) >= 0, "what cannot be printed");
}

void err_print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    format_all(format, args);
    va_end(args);
}

void out_print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    format_all(format, args);
    va_end(args);
}

void out_vprint(const char *format, va_list args)
{
    format_all(format, args);
}

void out_text(const char *text, size_t length)
{
    (void)text, (void)length;
}

void out_control(const char *sequence)
{
    (void)sequence;
}

bool out_is_terminal(void)
{
    return false;
}

int out_flush(void)
{
    return 0;
}

void output_open(void)
{
}
