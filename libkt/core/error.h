/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/error.h
 * The sentences of failures. */
#ifndef KT_CORE_ERROR_H
#define KT_CORE_ERROR_H

#include <kt/types.h>
#include <stdarg.h>

enum { KT_ERROR_TEXT = 1024, KT_SIZE_TEXT = 24 };

#define KT_PRINTF(text, first) __attribute__((format(printf, text, first)))

/** Records the sentence of a failure and returns `status`, so that callers write
 * `return kt_fail(ctx, KT_ERROR_IO, "%s: ...", path)`. Without a context, or when another thread is
 * inside, the sentence is this thread's. Not for workers. */
kt_status kt_fail(kt_context *ctx, kt_status status, const char *format, ...) KT_PRINTF(3, 4);

/** The same for a call that was not let in: it leaves the running call's sentence alone. */
kt_status kt_refuse(kt_context *ctx, kt_status status, const char *format, ...) KT_PRINTF(3, 4);

/** A call that was refused on this thread is no longer the latest of the context. */
void kt_error_forget(const kt_context *ctx);

/** vsnprintf that does not cut a UTF-8 character in two. */
void kt_format(char *text, size_t size, const char *format, va_list args);

/** Writes a number of bytes as people read it, such as "1.5 GiB"; returns `text`. */
const char *kt_size_text(uint64_t bytes, char text[KT_SIZE_TEXT]);

/** kt_fail for memory: "cannot allocate 1.5 GiB for `what`" and what to do about it; 0 bytes =
 * nobody knows how many. */
kt_status kt_fail_memory(kt_context *ctx, uint64_t bytes, const char *what);

/** INVALID_ARGUMENT when what the host must give, a text or an array, is NULL. */
kt_status kt_check_given(kt_context *ctx, const void *pointer, const char *what);

/** `return` the status of a failed call to the caller. */
#define KT_TRY(call)                                                                               \
    do {                                                                                           \
        kt_status kt_try_status_ = (call);                                                         \
        if (kt_try_status_ != KT_OK)                                                               \
            return kt_try_status_;                                                                 \
    } while (0)

#endif
