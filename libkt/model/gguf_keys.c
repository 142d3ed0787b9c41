/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "core/context.h"
#include "model/gguf_builder.h"

enum { MAX_NUMBER = 1 << 30 };

kt_status kt_gguf_put(const struct kt_gguf_builder *b, const char *name, json_t *value)
{
    return json_object_set_new(b->config, name, value) == 0
               ? KT_OK
               : kt_fail_memory(b->json.ctx, 0, "a configuration");
}

const char *kt_gguf_full_key(const struct kt_gguf_builder *b, const char *key,
                             char text[KT_GGUF_KEY_BYTES])
{
    snprintf(text, KT_GGUF_KEY_BYTES, "%s.%s", b->architecture, key);
    return text;
}

bool kt_gguf_has(const struct kt_gguf_builder *b, const char *key)
{
    char text[KT_GGUF_KEY_BYTES];
    json_t *value = json_object_get(b->json.object, kt_gguf_full_key(b, key, text));
    return value && !json_is_null(value);
}

/* Some numbers may be given for each layer; libkt wants layers alike. */
static kt_status same_for_layers(const struct kt_gguf_builder *b, const char *key,
                                 const json_t *list, int64_t *value)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (!json_is_integer(item) || !json_equal(item, json_array_get(list, 0)))
            return kt_fail(b->json.ctx, KT_ERROR_UNSUPPORTED,
                           "%s: \"%s\" differs between layers, which is not supported",
                           b->json.path, key);
    }
    *value = json_integer_value(json_array_get(list, 0));
    return KT_OK;
}

kt_status kt_gguf_get(const struct kt_gguf_builder *b, const char *key, enum kt_json_need need,
                      int64_t *value)
{
    char text[KT_GGUF_KEY_BYTES];
    const json_t *found = json_object_get(b->json.object, kt_gguf_full_key(b, key, text));
    if (json_array_size(found))
        return same_for_layers(b, text, found, value);
    return kt_json_int(&b->json, text, need, 0, MAX_NUMBER, value);
}

/* config[name] = metadata[key], an integer. */
kt_status kt_gguf_copy(const struct kt_gguf_builder *b, const char *key, enum kt_json_need need,
                       const char *name)
{
    int64_t value = -1;
    KT_TRY(kt_gguf_get(b, key, need, &value));
    return value < 0 ? KT_OK : kt_gguf_put(b, name, json_integer(value));
}

kt_status kt_gguf_copy_required(const struct kt_gguf_builder *b, const char *const pairs[][2])
{
    for (; (*pairs)[0]; pairs++)
        KT_TRY(kt_gguf_copy(b, (*pairs)[0], KT_JSON_REQUIRED, (*pairs)[1]));
    return KT_OK;
}

kt_status kt_gguf_copy_real(const struct kt_gguf_builder *b, const char *key, json_t *to,
                            const char *name)
{
    char text[KT_GGUF_KEY_BYTES];
    double value;
    if (!kt_gguf_has(b, key))
        return KT_OK;
    KT_TRY(kt_json_real(&b->json, kt_gguf_full_key(b, key, text), KT_JSON_REQUIRED, &value));
    return json_object_set_new(to, name, json_real(value)) == 0
               ? KT_OK
               : kt_fail_memory(b->json.ctx, 0, "a configuration");
}
