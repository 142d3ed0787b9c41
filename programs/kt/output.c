/* SPDX-License-Identifier: Apache-2.0 */
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"

typedef struct stream {
    FILE *file;
    bool terminal;
    int error;             /**< of the first write that failed */
    unsigned char held[4]; /**< a character that is not complete */
    size_t num_held;
} stream;

static stream out, err;

void output_open(void)
{
    int fd;
    do /* a descriptor that cannot be written to: the error is told as that of a closed one */
        fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
    out = (stream){.file = stdout, .terminal = isatty(STDOUT_FILENO)};
    err = (stream){.file = stderr, .terminal = isatty(STDERR_FILENO)};
    setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
}

static void put_bytes(stream *s, const void *bytes, size_t num)
{
    if (!s->error && fwrite(bytes, 1, num, s->file) != num)
        s->error = errno;
}

static void put_escape(stream *s, const char *format, unsigned value)
{
    char text[16];
    put_bytes(s, text, (size_t)snprintf(text, sizeof text, format, value));
}

static void drop_held(stream *s)
{
    for (size_t i = 0; i < s->num_held; i++)
        put_escape(s, "\\x%02x", s->held[i]);
    s->num_held = 0;
}

/* Bytes of the UTF-8 character that `byte` begins; 0 when it begins none. */
static size_t character_size(unsigned char byte)
{
    return byte >= 0xc2 && byte < 0xe0   ? 2
           : byte >= 0xe0 && byte < 0xf0 ? 3
           : byte >= 0xf0 && byte < 0xf5 ? 4
                                         : 0;
}

/* C1 controls, and what turns the direction of a line round. */
static bool is_hidden(uint32_t c)
{
    return c < 0xa0 || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

static void put_held(stream *s)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c = s->held[0] & (0xff >> (s->num_held + 1));
    for (size_t i = 1; i < s->num_held; i++)
        c = c << 6 | (s->held[i] & 0x3f);
    if (c < least[s->num_held] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
        drop_held(s);
        return;
    }
    if (is_hidden(c))
        put_escape(s, "\\u%04x", c);
    else
        put_bytes(s, s->held, s->num_held);
    s->num_held = 0;
}

static void put_byte(stream *s, unsigned char byte)
{
    if (s->num_held && (byte & 0xc0) != 0x80)
        drop_held(s);
    if (s->num_held || character_size(byte)) {
        s->held[s->num_held++] = byte;
        if (s->num_held == character_size(s->held[0]))
            put_held(s);
    } else if (byte >= 0x7f || (byte < 0x20 && byte != '\n' && byte != '\t')) {
        put_escape(s, "\\x%02x", byte);
    } else {
        put_bytes(s, &byte, 1);
    }
}

static void put_text(stream *s, const char *text, size_t length)
{
    if (!s->terminal)
        put_bytes(s, text, length);
    for (size_t i = 0; s->terminal && i < length; i++)
        put_byte(s, (unsigned char)text[i]);
}

/* What is longer than a sentence needs memory; without it the beginning is printed. */
static void print(stream *s, const char *format, va_list args)
{
    char begin[4096], *whole = NULL;
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(begin, sizeof begin, format, args), fits = sizeof begin - 1;
    bool cut = length > fits && vasprintf(&whole, format, again) < 0;
    va_end(again);
    if (length < 0)
        return;
    drop_held(s);
    put_text(s, length > fits && !cut ? whole : begin, (size_t)(cut ? fits : length));
    drop_held(s);
    if (length > fits && !cut)
        free(whole);
    if (cut && !s->error)
        s->error = ENOMEM;
}

static int flush(stream *s)
{
    if (fflush(s->file) && !s->error)
        s->error = errno;
    return s->error;
}

void out_vprint(const char *format, va_list args)
{
    print(&out, format, args);
}

void out_print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print(&out, format, args);
    va_end(args);
}

void out_text(const char *text, size_t length)
{
    put_text(&out, text, length);
}

void out_control(const char *sequence)
{
    if (out.terminal && !out.error && fputs(sequence, out.file) < 0)
        out.error = errno;
}

bool out_is_terminal(void)
{
    return out.terminal;
}

int out_flush(void)
{
    return flush(&out);
}

void err_sentence(const char *before, const char *format, va_list args)
{
    flush(&out);
    put_text(&err, before, strlen(before));
    print(&err, format, args);
    put_text(&err, "\n", 1);
    flush(&err);
}

void err_print(const char *format, ...)
{
    va_list args;
    flush(&out);
    va_start(args, format);
    print(&err, format, args);
    va_end(args);
    flush(&err);
}
