/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/sized.h
 * Public structs begin with their size, so that callers built with an older or newer header fit
 * this library. Fields are appended, or taken from the front of `reserved`. */
#ifndef KT_CORE_SIZED_H
#define KT_CORE_SIZED_H

#include <kt/types.h>

struct kt_sized {
    const char *name;
    size_t size;  /**< of the struct as this library knows it */
    size_t known; /**< bytes of its fields, which `reserved` follows: no caller has fewer */
};

/** Describes a public struct. */
#define KT_SIZED(type) (&(const struct kt_sized){#type, sizeof(type), offsetof(type, reserved)})

/** What _init functions do: defaults, zeros behind them up to the caller's size, which is set. A
 * NULL or a size that no struct has leaves everything alone. */
void kt_options_init(void *options, size_t size, const void *defaults, size_t known_size);

/** Copies a struct of the caller's over defaults; NULL leaves them. Errors: INVALID_ARGUMENT for a
 * size that no version has, and for bytes that are not zero where this library knows no field: a
 * newer caller asks for what this library cannot do, or the struct was not filled by its _init. */
kt_status kt_options_copy(kt_context *ctx, void *known, const void *given,
                          const struct kt_sized *type);

/** Fills a struct of the caller's, whose size field is kept; what this library does not know
 * becomes zero. Errors: INVALID_ARGUMENT for NULL and for a size that no version has. */
kt_status kt_give(kt_context *ctx, void *to, const void *known, const struct kt_sized *type);

/** The check of kt_give alone, for calls that must not begin when it would fail. */
kt_status kt_check_sized(kt_context *ctx, const void *to, const struct kt_sized *type);

#endif
