/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/kv_cache.h"

#include "core/context.h"
#include "core/memory.h"
#include "executor/attention.h"

enum { MIN_CAPACITY = 256 };

struct kt_cache_slice kt_kv_cache_layer(const struct kt_executor *ex,
                                        const struct kt_kv_cache *cache, int32_t layer)
{
    int32_t device = ex->layout.device[layer];
    struct kt_view rows = {cache->rows[device].memory, cache->width, KT_DTYPE_F32};
    return (struct kt_cache_slice){
        .rows =
            kt_view_at(rows, kt_layout_layers(&ex->layout, device, 0, layer) * cache->capacity, 0),
        .past = cache->length};
}

static kt_status allocate(const struct kt_executor *ex, struct kt_kv_cache *cache)
{
    int32_t layers = ex->model->config.num_hidden_layers;
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        uint64_t bytes;
        if (!kt_mul_u64((uint64_t)cache->capacity * 4, (uint64_t)cache->width, &bytes) ||
            !kt_mul_u64(bytes, (uint64_t)kt_layout_layers(&ex->layout, i, 0, layers), &bytes))
            bytes = UINT64_MAX;
        cache->rows[i] =
            (struct kt_block){.kind = KT_MEMORY_DEVICE, .what = "the cache of keys and values"};
        KT_TRY(kt_block_reserve(ex->sites[i].device, &cache->rows[i], bytes));
    }
    return KT_OK;
}

static kt_status copy_rows(const struct kt_executor *ex, const struct kt_kv_cache *from,
                           const struct kt_kv_cache *to)
{
    for (int32_t l = 0; from->capacity && l < ex->model->config.num_hidden_layers; l++) {
        struct kt_runner run = {.device = ex->sites[ex->layout.device[l]].device};
        kt_run_copy(&run, KT_QUEUE_COMPUTE, kt_kv_cache_layer(ex, to, l).rows.data,
                    kt_kv_cache_layer(ex, from, l).rows.data,
                    (uint64_t)(from->length * from->width) * sizeof(float));
    }
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        KT_TRY(kt_device_drain(ex->sites[i].device));
    return KT_OK;
}

kt_status kt_kv_cache_reserve(const struct kt_executor *ex, struct kt_kv_cache *cache,
                              int64_t tokens)
{
    struct kt_kv_cache bigger = {.width =
                                     kt_attention_of(ex->model)->cache_width(&ex->model->config),
                                 .length = cache->length};
    if (tokens <= cache->capacity)
        return KT_OK;
    bigger.capacity = kt_max_i64(kt_max_i64(tokens, 2 * cache->capacity), MIN_CAPACITY);
    kt_status status = allocate(ex, &bigger);
    if (status == KT_OK)
        status = copy_rows(ex, cache, &bigger);
    kt_kv_cache_free(ex, status == KT_OK ? cache : &bigger);
    if (status == KT_OK)
        *cache = bigger;
    return status;
}

void kt_kv_cache_free(const struct kt_executor *ex, struct kt_kv_cache *cache)
{
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        kt_block_free(ex->sites[i].device, &cache->rows[i]);
    *cache = (struct kt_kv_cache){0};
}
