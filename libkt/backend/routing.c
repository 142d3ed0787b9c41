/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/routing.h"

#include <string.h>

uint64_t kt_routing_bytes(int64_t tokens, int32_t topk, int32_t num_experts)
{
    return ((uint64_t)num_experts + 1) * sizeof(int64_t) +
           2 * (uint64_t)tokens * (uint64_t)topk * sizeof(int32_t);
}

static bool has_row(const struct kt_routing *r, const uint8_t *chosen, int32_t id)
{
    return id >= 0 && id < r->num_experts && (!chosen || chosen[id]);
}

/** Slots by expert, and then the rows of each token, which so come in ascending order. */
static void sort(struct kt_routing *r, const uint8_t *chosen, void *memory)
{
    int64_t slots = r->tokens * r->topk, *first = memory;
    int32_t *order = (int32_t *)(first + r->num_experts + 1), *rows = order + slots;
    memset(first, 0, ((size_t)r->num_experts + 1) * sizeof *first);
    for (int64_t s = 0; s < slots; s++)
        if (has_row(r, chosen, r->ids[s]))
            first[r->ids[s] + 1]++;
    for (int32_t e = 0; e < r->num_experts; e++)
        first[e + 1] += first[e];
    for (int64_t s = 0; s < slots; s++)
        if (has_row(r, chosen, r->ids[s]))
            order[first[r->ids[s]]++] = (int32_t)s;
    memmove(first + 1, first, (size_t)r->num_experts * sizeof *first);
    first[0] = 0;
    memset(rows, -1, (size_t)slots * sizeof *rows);
    for (int64_t row = 0; row < first[r->num_experts]; row++) {
        int32_t *of_token = rows + order[row] / r->topk * r->topk;
        while (*of_token >= 0)
            of_token++;
        *of_token = (int32_t)row;
    }
    r->first = first;
    r->slots = order;
    r->rows = rows;
}

void kt_routing_sort(struct kt_routing *routing, void *memory)
{
    sort(routing, NULL, memory);
}

struct kt_routing kt_routing_share(const struct kt_routing *whole, const uint8_t *chosen,
                                   void *memory)
{
    struct kt_routing share = *whole;
    sort(&share, chosen, memory);
    return share;
}
