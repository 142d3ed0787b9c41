/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/zstd_file.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "core/context.h"
#include "formats/mapped_file.h"

static const char magic[8] = "KTSTATE\1";

struct entry {
    char name[256];
    uint64_t bytes;
    const char *frame;
    size_t frame_bytes;
};

struct kt_zstd_file {
    kt_context *ctx;
    struct kt_mapped_file file;
    struct entry *entries;
    uint32_t num;
};

struct cursor {
    const char *at;
    size_t left;
};

static const char *take(struct cursor *c, size_t bytes)
{
    if (bytes > c->left)
        return NULL;
    const char *at = c->at;
    c->at += bytes;
    c->left -= bytes;
    return at;
}

static bool take_number(struct cursor *c, int bytes, uint64_t *value)
{
    const unsigned char *at = (const unsigned char *)take(c, (size_t)bytes);
    *value = 0;
    for (int i = 0; at && i < bytes; i++)
        *value |= (uint64_t)at[i] << (8 * i);
    return at != NULL;
}

static bool take_string(struct cursor *c, char text[256])
{
    uint64_t length;
    const char *at = take_number(c, 1, &length) ? take(c, length) : NULL;
    if (!at)
        return false;
    memcpy(text, at, length);
    text[length] = 0;
    return true;
}

static bool take_entry(struct cursor *c, struct entry *e)
{
    if (!take_string(c, e->name) || !take_number(c, 8, &e->bytes))
        return false;
    size_t frame_bytes = ZSTD_findFrameCompressedSize(c->at, c->left);
    if (ZSTD_isError(frame_bytes) || ZSTD_getFrameContentSize(c->at, c->left) != e->bytes)
        return false;
    e->frame_bytes = frame_bytes;
    e->frame = take(c, frame_bytes);
    return e->frame != NULL;
}

static kt_status damaged(const struct kt_zstd_file *f, const char *section)
{
    return kt_fail(f->ctx, KT_ERROR_FORMAT, "%s: truncated or damaged%s%s", f->file.path,
                   section ? " in section " : "", section ? section : "");
}

static kt_status read_start(const struct kt_zstd_file *f, struct cursor *c, const char *kind,
                            uint32_t version)
{
    char found[256];
    uint64_t number;
    const char *start = take(c, sizeof magic);
    if (!start || memcmp(start, magic, sizeof magic) != 0 || !take_string(c, found) ||
        strcmp(found, kind) != 0)
        return kt_fail(f->ctx, KT_ERROR_FORMAT, "%s: not a file of kind \"%s\" written by libkt",
                       f->file.path, kind);
    if (!take_number(c, 4, &number))
        return damaged(f, NULL);
    if (number != version)
        return kt_fail(f->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: has format version %u of \"%s\", but this libkt reads version %u",
                       f->file.path, (unsigned)number, kind, version);
    return KT_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static kt_status read_entries(struct kt_zstd_file *f, const char *kind, uint32_t version)
{
    struct cursor c = {f->file.map, f->file.size};
    uint64_t num;
    KT_TRY(read_start(f, &c, kind, version));
    /* Each section takes ten bytes at least, which bounds what a damaged count can allocate. */
    if (!take_number(&c, 4, &num) || num > c.left / 10)
        return damaged(f, NULL);
    f->entries = calloc(num + 1, sizeof *f->entries);
    if (!f->entries)
        return kt_fail_memory(f->ctx, num * sizeof *f->entries, "a list of sections");
    for (; f->num < num; f->num++)
        if (!take_entry(&c, &f->entries[f->num]))
            return damaged(f, NULL);
    qsort(f->entries, f->num, sizeof *f->entries, by_name);
    return c.left ? damaged(f, NULL) : KT_OK;
}

kt_status kt_zstd_open(kt_context *ctx, const char *path, const char *kind, uint32_t version,
                       struct kt_zstd_file **out)
{
    struct kt_zstd_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f)
        return kt_fail_memory(ctx, sizeof *f, "a file");
    f->ctx = ctx;
    kt_status status = kt_map_file(ctx, strdup(path), &f->file);
    if (status == KT_OK)
        status = read_entries(f, kind, version);
    if (status == KT_OK)
        *out = f;
    else
        kt_zstd_close(f);
    return status;
}

void kt_zstd_close(struct kt_zstd_file *f)
{
    if (!f)
        return;
    kt_unmap_file(&f->file);
    free(f->entries);
    free(f);
}

static const struct entry *find(const struct kt_zstd_file *f, const char *name)
{
    struct entry key;
    if (strlen(name) >= sizeof key.name)
        return NULL;
    strcpy(key.name, name);
    return bsearch(&key, f->entries, f->num, sizeof key, by_name);
}

bool kt_zstd_has(const struct kt_zstd_file *f, const char *name, uint64_t *bytes)
{
    const struct entry *e = find(f, name);
    if (e && bytes)
        *bytes = e->bytes;
    return e != NULL;
}

kt_status kt_zstd_read(const struct kt_zstd_file *f, const char *name, void *to, uint64_t bytes)
{
    const struct entry *e = find(f, name);
    if (!e)
        return kt_fail(f->ctx, KT_ERROR_NOT_FOUND, "%s: has no section \"%s\"", f->file.path, name);
    if (e->bytes != bytes)
        return kt_fail(f->ctx, KT_ERROR_MISMATCH,
                       "%s: section \"%s\" has %llu bytes where %llu are expected", f->file.path,
                       name, (unsigned long long)e->bytes, (unsigned long long)bytes);
    size_t done = ZSTD_decompress(to, bytes, e->frame, e->frame_bytes);
    if (ZSTD_getErrorCode(done) == ZSTD_error_memory_allocation)
        return kt_fail_memory(f->ctx, bytes, f->file.path);
    return ZSTD_isError(done) || done != bytes ? damaged(f, name) : KT_OK;
}
