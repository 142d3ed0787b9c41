/* SPDX-License-Identifier: Apache-2.0 */
/* Linked into targets with MemorySanitizer: tells it what libraries write that are not built with
 * it, and calls of libc that it does not know. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <jansson.h>
#include <sanitizer/msan_interface.h>
#include <stdlib.h>
#include <sys/stat.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int stat64(const char *path, struct stat64 *st)
{
    __msan_unpoison(st, sizeof *st);
    return NEXT(stat64)(path, st);
}

int fstat64(int fd, struct stat64 *st)
{
    __msan_unpoison(st, sizeof *st);
    return NEXT(fstat64)(fd, st);
}

pcre2_code_8 *pcre2_compile_8(PCRE2_SPTR8 pattern, PCRE2_SIZE length, uint32_t options, int *error,
                              PCRE2_SIZE *offset, pcre2_compile_context_8 *context)
{
    __msan_unpoison(error, sizeof *error);
    __msan_unpoison(offset, sizeof *offset);
    return NEXT(pcre2_compile_8)(pattern, length, options, error, offset, context);
}

PCRE2_SIZE *pcre2_get_ovector_pointer_8(pcre2_match_data_8 *match)
{
    PCRE2_SIZE *offsets = NEXT(pcre2_get_ovector_pointer_8)(match);
    __msan_unpoison(offsets, 2 * pcre2_get_ovector_count_8(match) * sizeof *offsets);
    return offsets;
}

static void *alloc_written(size_t size)
{
    return calloc(1, size);
}

__attribute__((constructor)) static void begin(void)
{
    json_set_alloc_funcs(alloc_written, free);
}
