/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "core/context.h"
#include "formats/file.h"
#include "text/dataset.h"

/* Keys of an entry that name data which is not a local file of supervised examples. */
static const struct {
    const char *key, *instead;
} refused_keys[] = {
    {"hf_hub_url", "download the data and give its \"file_name\""},
    {"ms_hub_url", "download the data and give its \"file_name\""},
    {"om_hub_url", "download the data and give its \"file_name\""},
    {"script_url", "run the script and give the \"file_name\" of what it writes"},
    {"cloud_file_name", "download the data and give its \"file_name\""},
    {"num_samples", "it draws at random without a seed; use max_samples"},
    {"folder", "give the \"file_name\" of one file"},
};

static const char *const refused_columns[] = {"images", "videos", "audios", "kto_tag"};

static kt_status refuse(const struct kt_json *json, const char *key, const char *instead)
{
    return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED, "%s: \"%s%s\" is not supported: %s", json->path,
                   json->prefix, key, instead);
}

/* Columns and tags that an object does not list are not in use; without the object the defaults
 * hold. */
static kt_status read_names(const struct kt_json *json, const char *const *keys,
                            const char ***fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        *fields[i] = NULL;
        KT_TRY(kt_json_string(json, keys[i], KT_JSON_OPTIONAL, fields[i]));
    }
    return KT_OK;
}

static kt_status read_columns(const struct kt_json *entry, struct kt_dataset_info *info)
{
    static const char *const keys[] = {"prompt",   "query",  "response", "history",
                                       "messages", "system", "tools"};
    const char **fields[] = {&info->prompt,   &info->query,  &info->response, &info->history,
                             &info->messages, &info->system, &info->tools};
    json_t *object = NULL;
    info->prompt = "instruction";
    info->query = "input";
    info->response = "output";
    info->messages = "conversations";
    KT_TRY(kt_json_container(entry, "columns", KT_JSON_OPTIONAL, JSON_OBJECT, &object));
    if (!object)
        return KT_OK;
    struct kt_json json = {entry->ctx, entry->path, "columns.", object};
    for (size_t i = 0; i < sizeof refused_columns / sizeof *refused_columns; i++)
        if (json_is_string(json_object_get(object, refused_columns[i])))
            return refuse(&json, refused_columns[i], "libkt trains on text, with supervision");
    return read_names(&json, keys, fields, 7);
}

static kt_status read_tags(const struct kt_json *entry, struct kt_dataset_info *info)
{
    static const char *const keys[] = {"role_tag",      "content_tag",     "user_tag",
                                       "assistant_tag", "observation_tag", "function_tag",
                                       "system_tag"};
    const char **fields[] = {&info->role_tag,      &info->content_tag,     &info->user_tag,
                             &info->assistant_tag, &info->observation_tag, &info->function_tag,
                             &info->system_tag};
    json_t *object = NULL;
    info->role_tag = "from";
    info->content_tag = "value";
    info->user_tag = "human";
    info->assistant_tag = "gpt";
    info->observation_tag = "observation";
    info->function_tag = "function_call";
    info->system_tag = "system";
    KT_TRY(kt_json_container(entry, "tags", KT_JSON_OPTIONAL, JSON_OBJECT, &object));
    struct kt_json json = {entry->ctx, entry->path, "tags.", object};
    return object ? read_names(&json, keys, fields, 7) : KT_OK;
}

static kt_status read_formatting(const struct kt_json *json, struct kt_dataset_info *info)
{
    const char *formatting = "alpaca", *split = "train";
    bool ranking = false;
    KT_TRY(kt_json_string(json, "formatting", KT_JSON_OPTIONAL, &formatting));
    KT_TRY(kt_json_string(json, "split", KT_JSON_OPTIONAL, &split));
    KT_TRY(kt_json_bool(json, "ranking", KT_JSON_OPTIONAL, &ranking));
    info->sharegpt = strcmp(formatting, "sharegpt") == 0;
    if (!info->sharegpt && strcmp(formatting, "alpaca") != 0)
        return refuse(json, "formatting", "use \"alpaca\" or \"sharegpt\"");
    if (strcmp(split, "train") != 0)
        return refuse(json, "split", "a data file has one split, \"train\"");
    return ranking ? refuse(json, "ranking", "libkt trains with supervision") : KT_OK;
}

static kt_status read_path(const struct kt_json *json, const char *folder,
                           struct kt_dataset_info *info)
{
    const char *name;
    KT_TRY(kt_json_string(json, "file_name", KT_JSON_REQUIRED, &name));
    const char *dot = strrchr(name, '.');
    info->path = kt_path_join(folder, name);
    if (!info->path)
        return kt_fail_memory(json->ctx, strlen(name), json->path);
    if (!dot || (strcmp(dot, ".json") != 0 && strcmp(dot, ".jsonl") != 0))
        return refuse(json, "file_name", "give one file that ends in .json or .jsonl");
    return KT_OK;
}

static kt_status read_entry(const struct kt_json *json, const char *folder,
                            struct kt_dataset_info *info)
{
    for (size_t i = 0; i < sizeof refused_keys / sizeof *refused_keys; i++) {
        const json_t *value = json_object_get(json->object, refused_keys[i].key);
        if (value && !json_is_null(value))
            return refuse(json, refused_keys[i].key, refused_keys[i].instead);
    }
    KT_TRY(read_formatting(json, info));
    KT_TRY(read_columns(json, info));
    KT_TRY(read_tags(json, info));
    return read_path(json, folder, info);
}

kt_status kt_dataset_info_read(kt_context *ctx, const char *folder, const char *path,
                               const json_t *root, const char *name, struct kt_dataset_info *info)
{
    json_t *entry = json_object_get(root, name);
    *info = (struct kt_dataset_info){.name = name};
    if (!json_is_object(root))
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: must be a JSON object", path);
    if (!entry)
        return kt_fail(ctx, KT_ERROR_NOT_FOUND, "%s: has no dataset \"%s\"", path, name);
    if (!json_is_object(entry))
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: \"%s\" must be an object", path, name);
    char prefix[160];
    snprintf(prefix, sizeof prefix, "%.150s.", name);
    struct kt_json json = {ctx, path, prefix, entry};
    kt_status status = read_entry(&json, folder, info);
    if (status != KT_OK) {
        free(info->path);
        info->path = NULL;
    }
    return status;
}
