/* SPDX-License-Identifier: Apache-2.0 */
/** \file backend/routing.h
 * Which experts the tokens of a batch chose, sorted by expert. A slot is a choice: (token, j) is
 * number token * topk + j. A row is a slot's place in the order of experts. */
#ifndef KT_BACKEND_ROUTING_H
#define KT_BACKEND_ROUTING_H

#include <kt/types.h>

struct kt_routing {
    int64_t tokens;
    int32_t topk, num_experts;
    const int32_t *ids;   /**< [tokens, topk]; the same expert may stand twice for a token */
    const float *weights; /**< [tokens, topk] */
    /** Rows of expert e are first[e] .. first[e + 1] - 1, [num_experts + 1]; the slot of each,
     * ascending within an expert; and the rows of a token, ascending, -1 behind the last. A share
     * has fewer rows than slots. */
    const int64_t *first;
    const int32_t *slots; /**< [first[num_experts]] */
    const int32_t *rows;  /**< [tokens, topk] */
};

/** Bytes that kt_routing_sort and kt_routing_share need. */
uint64_t kt_routing_bytes(int64_t tokens, int32_t topk, int32_t num_experts);

/** Fills first, slots and rows, in `memory` (8-byte aligned), from the other members. tokens * topk
 * is at most INT32_MAX; an id outside [0, num_experts) has no row. */
void kt_routing_sort(struct kt_routing *routing, void *memory);

/** The rows of the experts e with chosen[e], as a routing; slots keep their numbers. */
struct kt_routing kt_routing_share(const struct kt_routing *whole, const uint8_t *chosen,
                                   void *memory);

#endif
