/* SPDX-License-Identifier: Apache-2.0 */
#include "model/finite.h"

#include <stdatomic.h>
#include <string.h>

#include "core/context.h"
#include "core/dtype.h"
#include "core/memory.h"
#include "core/weight.h"
#include "formats/safetensors.h"
#include "model/model.h"

enum { GRAIN = 1 << 18, MAX_BLOCK = 256 };

struct scan {
    const struct kt_tensor *tensor;
    atomic_int found;
};

/* A number is NaN or infinite when all bits of its exponent are set. */
static int has_set_16(const uint16_t *x, int64_t n, uint16_t exponent)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (x[i] & exponent) == exponent;
    return found;
}

static int has_set_32(const uint32_t *x, int64_t n)
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

static void scan_range(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct scan *s = arg;
    const char *data =
        (const char *)s->tensor->data + (size_t)begin * kt_dtype_size(s->tensor->dtype);
    (void)thread;
    int found = s->tensor->dtype == KT_DTYPE_F32
                    ? has_set_32((const void *)data, end - begin)
                    : has_set_16((const void *)data, end - begin,
                                 s->tensor->dtype == KT_DTYPE_F16 ? 0x7c00 : 0x7f80);
    if (found)
        atomic_store(&s->found, 1);
}

static int is_small(const struct kt_model_config *c, const struct kt_tensor *t)
{
    return t->ndim == 1 || (t->shape[0] == c->n_routed_experts && t->shape[1] == c->hidden_size);
}

kt_status kt_model_find_not_finite(kt_model *m, int all)
{
    const struct kt_checkpoint *c = m->checkpoint;
    uint64_t done = 0;
    for (size_t i = 0; i < c->num_tensors; i++) {
        struct scan s = {.tensor = &c->tensors[i]};
        if (!m->used[i] || !(all || is_small(&m->config, s.tensor)))
            continue;
        KT_TRY(kt_check_cancel(m->ctx));
        const struct kt_format *format = kt_format_of(s.tensor->dtype);
        kt_parallel_for(m->ctx->pool, (int64_t)s.tensor->bytes / format->block_bytes,
                        GRAIN / format->block, format->block > 1 ? scan_blocks : scan_range, &s);
        if (atomic_load(&s.found))
            return kt_fail(m->ctx, KT_ERROR_NUMERIC,
                           "%s: tensor %s holds NaN or infinity; the checkpoint is damaged",
                           s.tensor->file, s.tensor->name);
        done += s.tensor->bytes;
        kt_progress(m->ctx, "checking weights", done, m->num_bytes);
    }
    return KT_OK;
}

kt_status kt_model_check_finite(kt_model *model)
{
    return kt_model_find_not_finite(model, 1);
}
