/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/handle.h
 * Who is inside a context, and how long handles live.
 *
 * A call that works with a context enters it and leaves it on every way out. Meanwhile another
 * thread, or a callback of the same one, is refused with KT_ERROR_STATE; public functions that call
 * each other are not.
 *
 * A handle dies with the last that holds it: the host until its free function, and the handles made
 * from it. So the host may free in any order. A handle that is freed while a call runs in its
 * context is kept until the call returns. */
#ifndef KT_CORE_HANDLE_H
#define KT_CORE_HANDLE_H

#include <kt/types.h>

struct kt_handle {
    kt_context *ctx;
    void (*destroy)(void *handle); /**< frees what the handle owns, and drops what it holds */
    struct kt_handle *next;        /**< of those that wait until a call returns */
    int32_t others;                /**< holders besides the first */
};

/** First member of every handle: `ctx` can be read as the handle's own. */
#define KT_HANDLE                                                                                  \
    union {                                                                                        \
        struct kt_handle handle;                                                                   \
        kt_context *ctx;                                                                           \
    }

/** A zeroed handle that is held once, and holds its context. Errors: OUT_OF_MEMORY for `what`. */
kt_status kt_handle_new(kt_context *ctx, size_t size, void (*destroy)(void *handle),
                        const char *what, void **out);

/** One more holder, and one less. Inside the context only. NULL does nothing. */
void kt_handle_hold(const void *handle);
void kt_handle_drop(void *handle);

/** What every public free function is: the host lets go. From any thread, inside or outside. */
void kt_handle_free(void *handle);

void kt_context_hold(kt_context *ctx);
void kt_context_drop(kt_context *ctx);

kt_status kt_enter(kt_context *ctx, const char *function, kt_context **entered);
void kt_leave(kt_context **entered);
kt_status kt_check_handle(const void *handle, const char *function, const char *what);
kt_status kt_check_out(kt_context *ctx, const void *out, const char *function);

/** Calls of the host's functions stand between these, so that they cannot enter. */
bool kt_callback_begin(kt_context *ctx);
void kt_callback_end(kt_context *ctx, bool before);

/** First line of a public function that works with a context: INVALID_ARGUMENT when it is NULL,
 * STATE when a call runs in it. */
#define KT_ENTER_CONTEXT(context)                                                                  \
    __attribute__((cleanup(kt_leave))) kt_context *kt_entered_ = NULL;                             \
    KT_TRY(kt_enter((context), __func__, &kt_entered_))

/** The same for a function of a handle, which the header calls `name`. */
#define KT_ENTER(pointer, name)                                                                    \
    KT_TRY(kt_check_handle((pointer), __func__, (name)));                                          \
    KT_ENTER_CONTEXT((pointer)->ctx)

/** The same for functions that make a handle, or give an array: *out is NULL unless they succeed.
 */
#define KT_ENTER_CONTEXT_OUT(context, out)                                                         \
    if (out)                                                                                       \
        *(out) = NULL;                                                                             \
    KT_ENTER_CONTEXT(context);                                                                     \
    KT_TRY(kt_check_out((context), (out), __func__))

#define KT_ENTER_OUT(pointer, name, out)                                                           \
    if (out)                                                                                       \
        *(out) = NULL;                                                                             \
    KT_ENTER(pointer, name);                                                                       \
    KT_TRY(kt_check_out((pointer)->ctx, (out), __func__))

#endif
