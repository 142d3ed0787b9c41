/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/safetensors_header.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "formats/json_read.h"
#include "weights/dtype.h"

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100000000 };

struct file_view {
    kt_context *ctx;
    const char *path;
    const char *data; /* behind the header */
    uint64_t data_bytes;
};

static kt_status bad_tensor(const struct file_view *f, const char *name, const char *problem)
{
    return kt_fail(f->ctx, KT_ERROR_FORMAT, "%s: tensor %s: %s; the file is damaged", f->path, name,
                   problem);
}

/* Of the reader: what is wrong, or that memory ran out. */
static kt_status malformed(const struct file_view *f, const char *problem)
{
    if (!problem)
        return kt_fail_memory(f->ctx, 0, "the list of tensors");
    return kt_fail(f->ctx, KT_ERROR_FORMAT, "%s: malformed safetensors header: %s", f->path,
                   problem);
}

enum { NO_LIST = -1, NOT_SIZES = -2 };

/* A list of sizes, of which the first `most` are kept; *num is how many there are. */
static bool read_sizes(struct kt_json_reader *r, int64_t *sizes, int64_t most, int64_t *num)
{
    struct kt_json_number n;
    *num = NO_LIST;
    if (kt_json_peek(r) != '[')
        return kt_json_skip(r);
    kt_json_take(r, '[', "");
    *num = 0;
    bool more = kt_json_peek(r) != ']', sound = true;
    if (!more)
        return kt_json_take(r, ']', "");
    for (; more; ++*num) {
        char first = kt_json_peek(r);
        bool number = first >= '0' && first <= '9';
        if (!(number ? kt_json_read_number(r, &n) : kt_json_skip(r)) ||
            !kt_json_more(r, ']', &more))
            return false;
        sound = sound && number && n.is_integer;
        if (number && *num < most)
            sizes[*num] = n.integer;
    }
    if (!sound)
        *num = NOT_SIZES;
    return true;
}

/* What the header says of a tensor. */
struct entry {
    char *dtype;
    int64_t shape[KT_MAX_DIMENSIONS], ndim, range[2], num_range;
    unsigned seen;
};

static kt_status read_field(const struct file_view *f, struct kt_json_reader *r, struct entry *e)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    const char *text;
    size_t length;
    unsigned which = 0;
    if (!kt_json_read_string(r, &text, &length))
        return malformed(f, r->problem);
    while (which < 3 && (strlen(names[which]) != length || memcmp(names[which], text, length) != 0))
        which++;
    if (which < 3 && e->seen & 1u << which)
        return malformed(f, "a key is there twice");
    e->seen |= 1u << which;
    bool ok = kt_json_take(r, ':', "expected a colon");
    if (ok && which == 0 && kt_json_peek(r) == '"') {
        ok = kt_json_read_string(r, &text, &length);
        if (ok && !(e->dtype = strndup(text, length)))
            return malformed(f, NULL);
    } else if (ok && which == 1) {
        ok = read_sizes(r, e->shape, KT_MAX_DIMENSIONS, &e->ndim);
    } else if (ok && which == 2) {
        ok = read_sizes(r, e->range, 2, &e->num_range);
    } else if (ok) {
        ok = kt_json_skip(r);
    }
    return ok ? KT_OK : malformed(f, r->problem);
}

static kt_status read_entry(const struct file_view *f, struct kt_json_reader *r, struct entry *e)
{
    bool more = true;
    e->ndim = e->num_range = NO_LIST;
    if (kt_json_peek(r) != '{')
        return kt_json_skip(r) ? KT_OK : malformed(f, r->problem);
    kt_json_take(r, '{', "");
    if (kt_json_peek(r) == '}')
        return kt_json_more(r, '}', &more) ? KT_OK : malformed(f, r->problem);
    while (more) {
        KT_TRY(read_field(f, r, e));
        if (!kt_json_more(r, '}', &more))
            return malformed(f, r->problem);
    }
    return KT_OK;
}

static kt_status set_shape(const struct file_view *f, const struct entry *e, struct kt_tensor *t,
                           uint64_t *elements)
{
    *elements = 1;
    if (e->ndim == NO_LIST)
        return bad_tensor(f, t->name, "it has no \"shape\" list");
    if (e->ndim == NOT_SIZES)
        return bad_tensor(f, t->name, "its shape holds something else than sizes");
    if (e->ndim > KT_MAX_DIMENSIONS)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: tensor %s has %lld dimensions; at most %d can be used", f->path,
                       t->name, (long long)e->ndim, KT_MAX_DIMENSIONS);
    t->ndim = (int32_t)e->ndim;
    for (int32_t i = 0; i < t->ndim; i++) {
        t->shape[i] = e->shape[i];
        if (!kt_mul_u64(*elements, (uint64_t)t->shape[i], elements))
            return bad_tensor(f, t->name, "its shape overflows");
    }
    return KT_OK;
}

static kt_status set_range(const struct file_view *f, const struct entry *e, struct kt_tensor *t)
{
    if (e->num_range != 2 || e->range[1] < e->range[0])
        return bad_tensor(f, t->name, "its \"data_offsets\" are not two rising numbers");
    uint64_t begin = (uint64_t)e->range[0], end = (uint64_t)e->range[1];
    if (end > f->data_bytes)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: truncated: tensor %s ends at byte %llu of the data, but the file has "
                       "%llu; copy or download the file again",
                       f->path, t->name, (unsigned long long)end,
                       (unsigned long long)f->data_bytes);
    t->data = f->data + begin;
    t->bytes = end - begin;
    return KT_OK;
}

static kt_status set_tensor(const struct file_view *f, const struct entry *e, struct kt_tensor *t)
{
    uint64_t elements, bytes;
    if (!t->dtype_name)
        return bad_tensor(f, t->name, "it has no \"dtype\"");
    if (!kt_dtype_from_name(t->dtype_name, &t->dtype))
        t->dtype = KT_DTYPE_UNKNOWN;
    KT_TRY(set_shape(f, e, t, &elements));
    KT_TRY(set_range(f, e, t));
    if (t->dtype == KT_DTYPE_UNKNOWN)
        return KT_OK;
    if (!kt_mul_u64(elements, kt_dtype_size(t->dtype), &bytes) || bytes != t->bytes)
        return bad_tensor(f, t->name, "its byte range does not have the size of its shape");
    return KT_OK;
}

static int by_data(const void *a, const void *b)
{
    const struct kt_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The format wants the data to be covered exactly once. */
static kt_status check_cover(const struct file_view *f, const struct kt_tensor *tensors, size_t num)
{
    uint64_t covered = 0;
    for (size_t i = 0; i < num; i++) {
        uint64_t begin = (uint64_t)((const char *)tensors[i].data - f->data);
        if (begin < covered)
            return bad_tensor(f, tensors[i].name, "its bytes overlap with another tensor's");
        if (begin > covered)
            return bad_tensor(f, tensors[i].name, "there is a gap in front of its bytes");
        covered = begin + tensors[i].bytes;
    }
    if (covered != f->data_bytes)
        return kt_fail(f->ctx, KT_ERROR_FORMAT,
                       "%s: %llu bytes follow the last tensor; the file is damaged", f->path,
                       (unsigned long long)(f->data_bytes - covered));
    return KT_OK;
}

struct list {
    struct kt_tensor *tensors;
    size_t num, capacity;
};

static kt_status add_tensor(const struct file_view *f, struct list *list, const char *name,
                            size_t length, struct kt_tensor **out)
{
    if (memchr(name, 0, length))
        return malformed(f, "the name of a tensor holds a NUL character");
    if (list->num == list->capacity) {
        size_t capacity = 2 * list->capacity + 64;
        struct kt_tensor *grown = realloc(list->tensors, capacity * sizeof *grown);
        if (!grown)
            return malformed(f, NULL);
        list->tensors = grown;
        list->capacity = capacity;
    }
    struct kt_tensor *t = *out = &list->tensors[list->num];
    *t = (struct kt_tensor){.file = f->path, .name = strndup(name, length)};
    if (!t->name)
        return malformed(f, NULL);
    list->num++;
    return KT_OK;
}

static kt_status read_tensor(const struct file_view *f, struct kt_json_reader *r, struct list *list)
{
    static const char metadata[] = "__metadata__";
    const char *name;
    size_t length;
    struct kt_tensor *t = NULL;
    struct entry entry = {0};
    if (!kt_json_read_string(r, &name, &length))
        return malformed(f, r->problem);
    bool skip = length == strlen(metadata) && memcmp(name, metadata, length) == 0;
    if (!skip)
        KT_TRY(add_tensor(f, list, name, length, &t));
    if (!kt_json_take(r, ':', "expected a colon") || (skip && !kt_json_skip(r)))
        return malformed(f, r->problem);
    if (skip)
        return KT_OK;
    kt_status status = read_entry(f, r, &entry);
    t->dtype_name = entry.dtype;
    return status == KT_OK ? set_tensor(f, &entry, t) : status;
}

static kt_status read_tensors(const struct file_view *f, struct kt_json_reader *r,
                              struct list *list)
{
    bool more = true;
    if (!kt_json_take(r, '{', "not a JSON object"))
        return malformed(f, r->problem);
    if (kt_json_peek(r) == '}')
        more = !kt_json_take(r, '}', "");
    while (more) {
        KT_TRY(read_tensor(f, r, list));
        if (!kt_json_more(r, '}', &more))
            return malformed(f, r->problem);
    }
    return kt_json_end(r) ? KT_OK : malformed(f, r->problem);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct kt_tensor *)a)->name, ((const struct kt_tensor *)b)->name);
}

static kt_status check_tensors(const struct file_view *f, const struct list *list)
{
    struct kt_tensor *t = list->tensors;
    if (list->num)
        qsort(t, list->num, sizeof *t, by_name);
    for (size_t i = 1; i < list->num; i++)
        if (strcmp(t[i - 1].name, t[i].name) == 0)
            return kt_fail(f->ctx, KT_ERROR_FORMAT,
                           "%s: malformed safetensors header: duplicate tensor %s", f->path,
                           t[i].name);
    if (list->num)
        qsort(t, list->num, sizeof *t, by_data);
    return check_cover(f, t, list->num);
}

static kt_status header_length(kt_context *ctx, const char *path, const unsigned char *bytes,
                               uint64_t size, uint64_t *length)
{
    *length = 0;
    if (size < LENGTH_BYTES)
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: truncated: %llu bytes are too few for a safetensors file", path,
                       (unsigned long long)size);
    for (int i = 0; i < LENGTH_BYTES; i++)
        *length |= (uint64_t)bytes[i] << (8 * i);
    if (*length > size - LENGTH_BYTES || *length > MAX_HEADER_BYTES)
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: the header claims %llu bytes but the file has %llu (limit %d); it is "
                       "truncated or not a safetensors file",
                       path, (unsigned long long)*length, (unsigned long long)size,
                       MAX_HEADER_BYTES);
    return KT_OK;
}

/* A model's header is read without a tree, which would take ten times its size. */
kt_status kt_safetensors_parse(kt_context *ctx, const char *path, const void *bytes, uint64_t size,
                               struct kt_tensor **tensors, size_t *num)
{
    struct file_view view = {.ctx = ctx, .path = path};
    struct list list = {0};
    struct kt_json_reader reader;
    uint64_t length;
    *tensors = NULL;
    *num = 0;
    KT_TRY(header_length(ctx, path, bytes, size, &length));
    const char *header = (const char *)bytes + LENGTH_BYTES;
    view.data = header + length;
    view.data_bytes = size - LENGTH_BYTES - length;
    kt_json_reader_start(&reader, header, (size_t)length, false);
    kt_status status = read_tensors(&view, &reader, &list);
    kt_json_reader_free(&reader);
    if (status == KT_OK)
        status = check_tensors(&view, &list);
    if (status != KT_OK) {
        kt_tensors_free(list.tensors, list.num);
        return status;
    }
    *tensors = list.tensors;
    *num = list.num;
    return KT_OK;
}

void kt_tensors_free(struct kt_tensor *tensors, size_t num)
{
    for (size_t i = 0; i < num; i++) {
        free((char *)tensors[i].name);
        free((char *)tensors[i].dtype_name);
    }
    free(tensors);
}
