/* SPDX-License-Identifier: Apache-2.0 */
#include "core/error.h"

#include <stdio.h>
#include <string.h>

#include "core/context.h"

/* Of calls that have no context, or were not let into theirs. */
static _Thread_local struct {
    const kt_context *ctx; /* refused this thread's latest call; NULL = none did */
    char text[KT_ERROR_TEXT];
} outside;

const char *kt_status_string(kt_status status)
{
    static const char *const names[] = {
        [-KT_OK] = "ok",
        [-KT_ERROR_INVALID_ARGUMENT] = "invalid argument",
        [-KT_ERROR_OUT_OF_MEMORY] = "out of memory",
        [-KT_ERROR_IO] = "input/output error",
        [-KT_ERROR_FORMAT] = "malformed file",
        [-KT_ERROR_UNSUPPORTED] = "not supported",
        [-KT_ERROR_NOT_FOUND] = "not found",
        [-KT_ERROR_MISMATCH] = "mismatch",
        [-KT_ERROR_CANCELLED] = "cancelled",
        [-KT_ERROR_STATE] = "call out of order",
        [-KT_ERROR_NUMERIC] = "not a finite number",
        [-KT_ERROR_INTERNAL] = "internal error",
    };
    return status <= KT_OK && status >= KT_ERROR_INTERNAL ? names[-status] : "unknown status";
}

void kt_format(char *text, size_t size, const char *format, va_list args)
{
    int length = vsnprintf(text, size, format, args);
    if (length < 0 || (size_t)length < size)
        return;
    size_t end = size - 1, lead = end;
    while (lead && end - lead < 4 && ((unsigned char)text[lead - 1] & 0xc0) == 0x80)
        lead--;
    unsigned char first = lead ? (unsigned char)text[lead - 1] : 0;
    size_t whole = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc0 ? 2 : 1;
    if (lead && end - (lead - 1) < whole)
        text[lead - 1] = '\0';
}

kt_status kt_fail(kt_context *ctx, kt_status status, const char *format, ...)
{
    bool inside = ctx && !kt_context_is_elsewhere(ctx);
    va_list args;
    va_start(args, format);
    kt_format(inside ? ctx->error : outside.text, KT_ERROR_TEXT, format, args);
    va_end(args);
    if (inside)
        kt_error_forget(ctx);
    else
        outside.ctx = ctx;
    return status;
}

kt_status kt_refuse(kt_context *ctx, kt_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    kt_format(outside.text, KT_ERROR_TEXT, format, args);
    va_end(args);
    outside.ctx = ctx;
    return status;
}

void kt_error_forget(const kt_context *ctx)
{
    if (outside.ctx == ctx)
        outside.ctx = NULL;
}

const char *kt_last_error(const kt_context *ctx)
{
    return ctx && outside.ctx != ctx ? ctx->error : outside.text;
}

const char *kt_size_text(uint64_t bytes, char text[KT_SIZE_TEXT])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)bytes;
    int unit = 0;
    for (; size >= 1024 && unit < 4; unit++)
        size /= 1024;
    snprintf(text, KT_SIZE_TEXT, "%.*f %s", unit ? 1 : 0, size, units[unit]);
    return text;
}

kt_status kt_fail_memory(kt_context *ctx, uint64_t bytes, const char *what)
{
    char size[KT_SIZE_TEXT] = "memory";
    return kt_fail(ctx, KT_ERROR_OUT_OF_MEMORY,
                   "cannot allocate %s for %s; use shorter or fewer sequences in a step, a "
                   "smaller adapter, or a machine with more memory",
                   bytes ? kt_size_text(bytes, size) : size, what);
}

kt_status kt_check_given(kt_context *ctx, const void *pointer, const char *what)
{
    return pointer ? KT_OK : kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s must not be NULL", what);
}

kt_status kt_check_handle(const void *handle, const char *function, const char *what)
{
    return handle ? KT_OK
                  : kt_fail(NULL, KT_ERROR_INVALID_ARGUMENT, "%s: %s must not be NULL", function,
                            what);
}

kt_status kt_check_out(kt_context *ctx, const void *out, const char *function)
{
    return out ? KT_OK
               : kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s: the result's place must not be NULL",
                         function);
}
