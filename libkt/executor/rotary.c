/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/rotary.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"

void kt_rotary_free(struct kt_rotary *rotary)
{
    free(rotary->cos);
    free(rotary->sin);
    *rotary = (struct kt_rotary){0};
}

bool kt_rotary_by_length(const kt_model *model)
{
    return model->config.rope.kind == KT_ROPE_DYNAMIC;
}

static kt_status reserve(struct kt_rotary *rotary, const kt_model *model, int64_t rows)
{
    const struct kt_rope_config *rope = &model->config.rope;
    if (rows <= rotary->rows)
        return KT_OK;
    rows = kt_min_i64(rows + rows / 2, INT32_MAX);
    size_t bytes = (size_t)rows * (size_t)(rope->dim / 2) * sizeof(float);
    kt_rotary_free(rotary);
    rotary->cos = malloc(bytes);
    rotary->sin = malloc(bytes);
    if (!rotary->cos || !rotary->sin)
        return kt_fail_memory(model->ctx, 2 * bytes, "rotary tables");
    kt_rope_tables(rope, 0, 0, (int32_t)rows, rotary->cos, rotary->sin);
    rotary->rows = rows;
    return KT_OK;
}

kt_status kt_rotary_rows(struct kt_rotary *rotary, const kt_model *model, int64_t length,
                         int64_t first, int64_t count, float *cos, float *sin)
{
    const struct kt_rope_config *rope = &model->config.rope;
    size_t row = (size_t)(rope->dim / 2) * sizeof(float), bytes = (size_t)count * row;
    if (kt_rotary_by_length(model)) {
        kt_rope_tables(rope, length, (int32_t)first, (int32_t)count, cos, sin);
        return KT_OK;
    }
    KT_TRY(reserve(rotary, model, first + count));
    memcpy(cos, (const char *)rotary->cos + (size_t)first * row, bytes);
    memcpy(sin, (const char *)rotary->sin + (size_t)first * row, bytes);
    return KT_OK;
}
