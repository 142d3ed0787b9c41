/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "core/context.h"
#include "formats/atomic_file.h"
#include "formats/zstd_file.h"

enum { LEVEL = 1 };

struct writer {
    kt_context *ctx;
    struct kt_atomic_file *file;
    ZSTD_CCtx *zstd;
    char *out; /* [ZSTD_CStreamOutSize()] */
};

static kt_status put_number(struct writer *w, uint64_t value, int bytes)
{
    unsigned char text[8];
    for (int i = 0; i < bytes; i++)
        text[i] = (unsigned char)(value >> (8 * i));
    return kt_atomic_write(w->file, text, (size_t)bytes);
}

static kt_status put_string(struct writer *w, const char *text)
{
    KT_TRY(put_number(w, strlen(text), 1));
    return kt_atomic_write(w->file, text, strlen(text));
}

static kt_status put_frame(struct writer *w, const struct kt_section *section)
{
    ZSTD_inBuffer in = {section->data, section->bytes, 0};
    size_t left;
    ZSTD_CCtx_reset(w->zstd, ZSTD_reset_session_only);
    ZSTD_CCtx_setPledgedSrcSize(w->zstd, section->bytes);
    do {
        ZSTD_outBuffer out = {w->out, ZSTD_CStreamOutSize(), 0};
        left = ZSTD_compressStream2(w->zstd, &out, &in, ZSTD_e_end);
        if (ZSTD_getErrorCode(left) == ZSTD_error_memory_allocation)
            return kt_fail_memory(w->ctx, section->bytes, "zstd");
        if (ZSTD_isError(left))
            return kt_fail(w->ctx, KT_ERROR_INTERNAL, "zstd cannot compress section %s: %s",
                           section->name, ZSTD_getErrorName(left));
        KT_TRY(kt_atomic_write(w->file, out.dst, out.pos));
    } while (left);
    return KT_OK;
}

static kt_status put_all(struct writer *w, const char *kind, uint32_t version,
                         const struct kt_section *sections, size_t num)
{
    KT_TRY(kt_atomic_write(w->file, "KTSTATE\1", 8));
    KT_TRY(put_string(w, kind));
    KT_TRY(put_number(w, version, 4));
    KT_TRY(put_number(w, num, 4));
    for (size_t i = 0; i < num; i++) {
        KT_TRY(put_string(w, sections[i].name));
        KT_TRY(put_number(w, sections[i].bytes, 8));
        KT_TRY(put_frame(w, &sections[i]));
    }
    return KT_OK;
}

static kt_status write_file(struct writer *w, const char *path, const char *kind, uint32_t version,
                            const struct kt_section *sections, size_t num)
{
    if (!w->zstd || !w->out)
        return kt_fail_memory(w->ctx, ZSTD_CStreamOutSize(), "zstd");
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, LEVEL);
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1);
    KT_TRY(kt_atomic_open(w->ctx, path, &w->file));
    kt_status status = put_all(w, kind, version, sections, num);
    if (status == KT_OK)
        return kt_atomic_commit(w->file);
    kt_atomic_discard(w->file);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static kt_status check_names(kt_context *ctx, const char *path, const struct kt_section *sections,
                             size_t num)
{
    kt_status status = KT_OK;
    const char **names = malloc((num + 1) * sizeof *names);
    if (!names)
        return kt_fail_memory(ctx, num * sizeof *names, "a list of sections");
    for (size_t i = 0; i < num; i++)
        names[i] = sections[i].name;
    qsort(names, num, sizeof *names, by_name);
    for (size_t i = 0; i < num && status == KT_OK; i++) {
        if (!*names[i] || strlen(names[i]) > 255)
            status = kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                             "%s: the section name \"%.40s\" is not 1 to 255 bytes long", path,
                             names[i]);
        else if (i && strcmp(names[i - 1], names[i]) == 0)
            status = kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s: section \"%s\" is given twice",
                             path, names[i]);
    }
    free(names);
    return status;
}

kt_status kt_zstd_write(kt_context *ctx, const char *path, const char *kind, uint32_t version,
                        const struct kt_section *sections, size_t num)
{
    KT_TRY(check_names(ctx, path, sections, num));
    struct writer w = {ctx, NULL, ZSTD_createCCtx(), malloc(ZSTD_CStreamOutSize())};
    kt_status status = write_file(&w, path, kind, version, sections, num);
    ZSTD_freeCCtx(w.zstd);
    free(w.out);
    return status;
}
