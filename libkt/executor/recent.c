/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/recent.h"

#include <stdlib.h>

#include "core/context.h"

kt_status kt_recent_create(kt_context *ctx, int32_t num, struct kt_recent *r)
{
    *r = (struct kt_recent){.num = num, .round = 1};
    r->used = calloc((size_t)num + 1, sizeof *r->used);
    r->bytes = calloc((size_t)num + 1, sizeof *r->bytes);
    if (r->used && r->bytes)
        return KT_OK;
    return kt_fail_memory(ctx, 2 * (uint64_t)num * sizeof *r->used, "an executor");
}

void kt_recent_free(struct kt_recent *r)
{
    free(r->used);
    free(r->bytes);
    *r = (struct kt_recent){0};
}

void kt_recent_begin(struct kt_recent *r)
{
    r->round++;
}

bool kt_recent_use(struct kt_recent *r, int32_t thing, uint64_t bytes)
{
    bool was = r->used[thing];
    if (!was) {
        r->bytes[thing] = bytes;
        r->held += bytes;
    }
    r->used[thing] = r->round;
    return was;
}

int32_t kt_recent_drop(struct kt_recent *r, uint64_t budget)
{
    int32_t oldest = -1;
    for (int32_t i = 0; r->held > budget && i < r->num; i++)
        if (r->used[i] && r->used[i] < r->round && (oldest < 0 || r->used[i] < r->used[oldest]))
            oldest = i;
    if (oldest >= 0) {
        r->used[oldest] = 0;
        r->held -= r->bytes[oldest];
    }
    return oldest;
}
