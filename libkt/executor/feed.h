/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/feed.h
 * The small arrays that a pass reads beside weights and activations, packed in one block: filled on
 * the host, copied to each device in one piece. It belongs to its step or generator, so that
 * nothing else can change it before backward. */
#ifndef KT_EXECUTOR_FEED_H
#define KT_EXECUTOR_FEED_H

#include <kt/types.h>

struct kt_feed_sizes {
    int64_t tokens;     /**< with padding */
    int64_t sequences;  /**< packed; a cached one counts as one */
    int64_t table_rows; /**< of the rotary tables */
    int64_t table_cols; /**< rope dim / 2 */
    int64_t targets;
    int64_t padding;
};

/** The arrays at one base address: the host's, or a device's. */
struct kt_feed {
    float *cos, *sin;   /**< [table_rows, table_cols] */
    int32_t *rope_rows; /**< [tokens] the row of cos and sin for each */
    int32_t *tokens;    /**< [tokens] 0, 1, 2 ...: what dropout counts some of the tokens by */
    int32_t *queries;   /**< [sequences + 1] cumulative lengths */
    int32_t *keys;      /**< [sequences + 1] the same where there is a cache: of keys */
    int32_t *padding;   /**< [padding, 4]: {0, 1} and {0, keys} of each padding token's attention */
    int32_t *targets;   /**< [targets] what each row of logits should predict */
    float *dlogprobs;   /**< [targets] d(loss) / d(logprobs) */
    float *logprobs;    /**< [targets] written by the loss, copied back */
};

/** Lays the arrays out at `base`, 64-byte aligned; returns their bytes together, UINT64_MAX when
 * they overflow. */
uint64_t kt_feed_place(const struct kt_feed_sizes *sizes, void *base, struct kt_feed *feed);

#endif
