/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/kv_cache.h
 * Rows that attention keeps for each layer and token, float32, on the layer's device. */
#ifndef KT_EXECUTOR_KV_CACHE_H
#define KT_EXECUTOR_KV_CACHE_H

#include "executor/executor.h"

struct kt_kv_cache {
    struct kt_block rows[KT_MAX_DEVICES]; /**< [layers of the device, capacity, width] */
    int64_t width;                        /**< floats of a row */
    int64_t capacity;                     /**< tokens there is room for */
    int64_t length;                       /**< tokens that are in it */
};

/** Makes room for `tokens`, at least doubling; what is in the cache stays. */
kt_status kt_kv_cache_reserve(const struct kt_executor *executor, struct kt_kv_cache *cache,
                              int64_t tokens);
void kt_kv_cache_free(const struct kt_executor *executor, struct kt_kv_cache *cache);
struct kt_cache_slice kt_kv_cache_layer(const struct kt_executor *executor,
                                        const struct kt_kv_cache *cache, int32_t layer);

#endif
