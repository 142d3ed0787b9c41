/* SPDX-License-Identifier: Apache-2.0 */
#include "app.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "output.h"

int app_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    err_sentence("kt: ", format, args);
    va_end(args);
    return APP_ERROR;
}

int app_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    err_sentence("kt: ", format, args);
    va_end(args);
    return APP_USAGE;
}

void app_warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    err_sentence("kt: warning: ", format, args);
    va_end(args);
}

void *app_resize(void *pointer, size_t count, size_t size)
{
    void *result = reallocarray(pointer, count ? count : 1, size);
    if (!result)
        exit(app_fail("out of memory"));
    return result;
}

void *app_alloc(size_t count, size_t size)
{
    void *result = calloc(count ? count : 1, size);
    if (!result)
        exit(app_fail("out of memory"));
    return result;
}

char *app_copy(const char *text)
{
    return text ? app_text("%s", text) : NULL;
}

char *app_text(const char *format, ...)
{
    char *result = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&result, format, args);
    va_end(args);
    if (length < 0)
        exit(app_fail("out of memory"));
    return result;
}

static char *scaled(char *out, double value, double base, const char *const *units, size_t num)
{
    size_t unit = 0;
    while (value >= base && unit + 1 < num) {
        value /= base;
        unit++;
    }
    snprintf(out, FORMAT_SIZE, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

char *format_bytes(char *out, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    return scaled(out, (double)bytes, 1024, units, 5);
}

char *format_count(char *out, uint64_t count)
{
    static const char *const units[] = {"", "K", "M", "B", "T"};
    scaled(out, (double)count, 1000, units, 5);
    size_t length = strlen(out);
    if (length && out[length - 1] == ' ')
        out[length - 1] = 0;
    return out;
}

char *format_grouped(char *out, uint64_t count)
{
    char digits[FORMAT_SIZE];
    size_t length = (size_t)snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    char *p = out;
    for (size_t i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            *p++ = ',';
        *p++ = digits[i];
    }
    *p = 0;
    return out;
}

char *format_time(char *out, double seconds)
{
    unsigned long total = seconds > 0 && seconds < 1e9 ? (unsigned long)seconds : 0;
    snprintf(out, FORMAT_SIZE, "%lu:%02lu:%02lu", total / 3600, total / 60 % 60, total % 60);
    return out;
}

double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
