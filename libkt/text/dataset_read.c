/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "formats/file.h"
#include "text/dataset.h"

#define DATA_FILE_MAX ((uint64_t)8 << 30)

static kt_status add_line(kt_context *ctx, const char *path, size_t number, const char *line,
                          size_t length, json_t *entries)
{
    json_t *entry;
    if (strspn(line, " \t\r") >= length)
        return KT_OK;
    KT_TRY(kt_json_parse(ctx, path, number, line, length, KT_JSON_DATA, &entry));
    if (!json_is_object(entry)) {
        json_decref(entry);
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: line %zu is not a JSON object", path, number);
    }
    return json_array_append_new(entries, entry) == 0 ? KT_OK : kt_fail_memory(ctx, length, path);
}

static kt_status read_lines(kt_context *ctx, const char *path, const char *data, size_t size,
                            json_t *entries)
{
    for (size_t at = 0, number = 1; at < size; number++) {
        const char *newline = memchr(data + at, '\n', size - at);
        size_t length = newline ? (size_t)(newline - data) - at : size - at;
        KT_TRY(add_line(ctx, path, number, data + at, length, entries));
        at += length + 1;
    }
    return KT_OK;
}

static kt_status read_list(kt_context *ctx, const char *path, const char *data, size_t size,
                           json_t **entries)
{
    size_t i;
    json_t *entry;
    KT_TRY(kt_json_parse(ctx, path, 1, data, size, KT_JSON_DATA, entries));
    json_array_foreach(*entries, i, entry)
    {
        if (!json_is_object(entry))
            return kt_fail(ctx, KT_ERROR_FORMAT, "%s: entry %zu is not a JSON object", path, i + 1);
    }
    return KT_OK;
}

static kt_status read(kt_context *ctx, const char *path, json_t **entries)
{
    char *data;
    size_t size;
    KT_TRY(kt_file_read(ctx, path, DATA_FILE_MAX, &data, &size));
    kt_status status = KT_OK;
    if (data[strspn(data, " \t\r\n")] == '[')
        status = read_list(ctx, path, data, size, entries);
    else if ((*entries = json_array()) == NULL)
        status = kt_fail_memory(ctx, size, path);
    else
        status = read_lines(ctx, path, data, size, *entries);
    free(data);
    if (status == KT_OK && json_array_size(*entries) == 0)
        status = kt_fail(ctx, KT_ERROR_FORMAT, "%s: holds no example", path);
    return status;
}

kt_status kt_dataset_read(kt_context *ctx, const char *path, json_t **entries)
{
    *entries = NULL;
    kt_status status = read(ctx, path, entries);
    if (status != KT_OK) {
        json_decref(*entries);
        *entries = NULL;
    }
    return status;
}
