/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/kv_cache.h"

#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"

enum { MIN_CAPACITY = 256 };

struct kt_cache_slice kt_kv_cache_layer(const struct kt_kv_cache *cache, int32_t layer)
{
    return (struct kt_cache_slice){.rows = cache->rows + layer * cache->capacity * cache->width,
                                   .past = cache->length};
}

kt_status kt_kv_cache_reserve(struct kt_executor *ex, struct kt_kv_cache *cache, int64_t tokens)
{
    const struct kt_model_config *config = &ex->model->config;
    const struct kt_device_ops *ops = ex->device->ops;
    struct kt_kv_cache bigger = {.width = kt_attention_of(ex->model)->cache_width(config),
                                 .length = cache->length};
    uint64_t bytes;
    if (tokens <= cache->capacity)
        return KT_OK;
    bigger.capacity = kt_max_i64(kt_max_i64(tokens, 2 * cache->capacity), MIN_CAPACITY);
    if (!kt_mul_u64((uint64_t)bigger.capacity * 4, (uint64_t)bigger.width, &bytes) ||
        !kt_mul_u64(bytes, (uint64_t)config->num_hidden_layers, &bytes))
        bytes = UINT64_MAX;
    KT_TRY(ops->alloc(ex->device, bytes, "the cache of keys and values", (void **)&bigger.rows));
    for (int32_t l = 0; cache->rows && l < config->num_hidden_layers; l++) {
        kt_status status =
            ops->add(ex->device, cache->length, cache->width, 1, kt_kv_cache_layer(cache, l).rows,
                     cache->width, 0, kt_kv_cache_layer(&bigger, l).rows, bigger.width);
        if (status != KT_OK) {
            ops->free(ex->device, bigger.rows);
            return status;
        }
    }
    ops->free(ex->device, cache->rows);
    *cache = bigger;
    return KT_OK;
}

void kt_kv_cache_free(struct kt_executor *ex, struct kt_kv_cache *cache)
{
    ex->device->ops->free(ex->device, cache->rows);
    *cache = (struct kt_kv_cache){0};
}
