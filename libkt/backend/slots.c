/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/slots.h"

#include <string.h>

void kt_slots_sort(const struct kt_expert_batch *batch, int32_t num_experts, int64_t *first,
                   int32_t *order)
{
    int64_t slots = batch->tokens * batch->topk;
    memset(first, 0, ((size_t)num_experts + 1) * sizeof *first);
    for (int64_t s = 0; s < slots; s++)
        first[batch->topk_ids[s] + 1]++;
    for (int32_t e = 0; e < num_experts; e++)
        first[e + 1] += first[e];
    for (int64_t s = 0; s < slots; s++)
        order[first[batch->topk_ids[s]]++] = (int32_t)s;
    memmove(first + 1, first, (size_t)num_experts * sizeof *first);
    first[0] = 0;
}
