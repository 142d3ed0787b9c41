/* SPDX-License-Identifier: Apache-2.0 */
#include "model/finite.h"

#include <stdatomic.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "weights/weight.h"
#include "formats/safetensors.h"
#include "model/model.h"
#include "model/quantization.h"

enum { GRAIN = 1 << 18, MAX_BLOCK = 256 };

struct scan {
    const struct kt_tensor *tensor;
    atomic_int found;
};

/* A number is NaN or infinite when all bits of its exponent are set. */
static bool has_set_16(const uint16_t *x, int64_t n, uint16_t exponent)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (x[i] & exponent) == exponent;
    return found;
}

static bool has_set_32(const uint32_t *x, int64_t n)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (x[i] & 0x7f800000u) == 0x7f800000u;
    return found;
}

/* Blocks are decoded: a scale that is not finite makes all its elements so, or NaN of zeros. */
static void scan_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct scan *s = arg;
    const struct kt_format *format = kt_format_of(s->tensor->dtype);
    const char *blocks = s->tensor->data;
    float values[MAX_BLOCK];
    (void)thread;
    for (int64_t i = begin; i < end && !atomic_load(&s->found); i++) {
        format->decode(1, blocks + i * format->block_bytes, values);
        if (has_set_32((const void *)values, format->block))
            atomic_store(&s->found, 1);
    }
}

static bool has_nan_f8(const uint8_t *x, int64_t n)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (x[i] & 0x7f) == 0x7f;
    return found;
}

static bool is_found(const struct kt_tensor *t, int64_t begin, int64_t n)
{
    const char *data = (const char *)t->data + (size_t)begin * kt_dtype_size(t->dtype);
    switch (t->dtype) {
    case KT_DTYPE_F32:
        return has_set_32((const void *)data, n);
    case KT_DTYPE_F16:
        return has_set_16((const void *)data, n, 0x7c00);
    case KT_DTYPE_BF16:
        return has_set_16((const void *)data, n, 0x7f80);
    case KT_DTYPE_F8_E4M3:
        return has_nan_f8((const void *)data, n);
    default: /* integers */
        return false;
    }
}

static void scan_range(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct scan *s = arg;
    (void)thread;
    if (is_found(s->tensor, begin, end - begin))
        atomic_store(&s->found, 1);
}

kt_status kt_tensor_check_finite(kt_context *ctx, const struct kt_tensor *t)
{
    struct scan s = {.tensor = t};
    const struct kt_format *format = kt_format_of(kt_tensor_weight_dtype(t));
    if (!format)
        return KT_OK;
    if (format->block >= 32)
        kt_parallel_for(ctx->pool, (int64_t)t->bytes / format->block_bytes, GRAIN / format->block,
                        scan_blocks, &s);
    else
        kt_parallel_for(ctx->pool, (int64_t)(t->bytes / kt_dtype_size(t->dtype)), GRAIN, scan_range,
                        &s);
    if (!atomic_load(&s.found))
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_NUMERIC,
                   "%s: tensor %s holds NaN or infinity; the checkpoint is damaged", t->file,
                   t->name);
}

kt_status kt_tensor_check_scales(kt_context *ctx, const struct kt_tensor *t)
{
    size_t size = kt_dtype_size(t->dtype);
    KT_TRY(kt_tensor_check_finite(ctx, t));
    for (size_t i = 0; i < t->bytes / size; i++) {
        float scale;
        kt_dtype_to_f32(t->dtype, (const char *)t->data + i * size, &scale, 1);
        if (scale < 0)
            return kt_fail(ctx, KT_ERROR_NUMERIC,
                           "%s: the scales %s hold a negative number; the checkpoint is damaged",
                           t->file, t->name);
    }
    return KT_OK;
}

static bool is_small(const struct kt_model_config *c, const struct kt_tensor *t)
{
    return t->ndim == 1 || (t->shape[0] == c->n_routed_experts && t->shape[1] == c->hidden_size);
}

kt_status kt_model_find_not_finite(kt_model *m, bool all)
{
    const struct kt_checkpoint *c = m->checkpoint;
    uint64_t done = 0;
    for (size_t i = 0; i < c->num_tensors; i++) {
        const struct kt_tensor *t = &c->tensors[i];
        if (!m->used[i] || !(all || is_small(&m->config, t)))
            continue;
        KT_TRY(kt_check_cancel(m->ctx));
        KT_TRY(kt_checkpoint_check(c, t->data));
        KT_TRY(m->used[i] == KT_TENSOR_SCALES ? kt_tensor_check_scales(m->ctx, t)
                                              : kt_tensor_check_finite(m->ctx, t));
        done += t->bytes;
        kt_progress(m->ctx, "checking weights", done, m->num_bytes);
    }
    return KT_OK;
}

kt_status kt_model_check_finite(kt_model *model)
{
    KT_ENTER(model, "model");
    return kt_model_find_not_finite(model, true);
}
