/* SPDX-License-Identifier: Apache-2.0 */
#include "core/sized.h"

#include <string.h>

#include "core/context.h"

enum { MAX_SIZE = 1 << 16 };

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

void kt_options_init(void *options, size_t size, const void *defaults, size_t known_size)
{
    if (!options || size > MAX_SIZE)
        return;
    memset(options, 0, size);
    memcpy(options, defaults, smaller(size, known_size));
    memcpy(options, &size, smaller(size, sizeof size));
}

kt_status kt_check_sized(kt_context *ctx, const void *to, const struct kt_sized *type)
{
    size_t size;
    KT_TRY(kt_check_given(ctx, to, type->name));
    memcpy(&size, to, sizeof size);
    if (size < type->known || size > MAX_SIZE)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: the size field is %zu; set it to sizeof(%s), which an _init function "
                       "does where there is one",
                       type->name, size, type->name);
    return KT_OK;
}

kt_status kt_options_copy(kt_context *ctx, void *known, const void *given,
                          const struct kt_sized *type)
{
    const unsigned char *bytes = given;
    size_t size;
    if (!given)
        return KT_OK;
    KT_TRY(kt_check_sized(ctx, given, type));
    memcpy(&size, given, sizeof size);
    for (size_t i = type->known; i < size; i++)
        if (bytes[i])
            return kt_fail(
                ctx, KT_ERROR_INVALID_ARGUMENT,
                "%s: byte %zu is set, but this libkt (%s) knows no field there; fill the "
                "struct by its _init function, or use a newer libkt",
                type->name, i, KT_VERSION_STRING);
    memcpy(known, given, type->known);
    return KT_OK;
}

kt_status kt_give(kt_context *ctx, void *to, const void *known, const struct kt_sized *type)
{
    size_t size;
    KT_TRY(kt_check_sized(ctx, to, type));
    memcpy(&size, to, sizeof size);
    kt_options_init(to, size, known, type->size);
    return KT_OK;
}
