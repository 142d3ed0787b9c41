/* SPDX-License-Identifier: Apache-2.0 */
#include "model/gguf_rebuild.h"

#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "weights/weight.h"

enum { PART = 256 };

struct join {
    struct kt_weight k, v; /* all heads' rows one after another */
    int64_t rank, key, value;
    float *out;
};

/* Column `rank` of the head's keys is a row of attn_k_b. */
static void join_keys(const struct join *j, int64_t head, float *out)
{
    float part[PART];
    for (int64_t r = 0; r < j->rank; r++) {
        for (int64_t begin = 0; begin < j->key; begin += PART) {
            int64_t n = kt_min_i64(PART, j->key - begin);
            kt_weight_decode(&j->k, head * j->rank + r, begin, n, part);
            for (int64_t i = 0; i < n; i++)
                out[(begin + i) * j->rank + r] = part[i];
        }
    }
}

static void join_heads(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct join *j = arg;
    (void)thread;
    for (int64_t head = begin; head < end; head++) {
        float *out = j->out + head * (j->key + j->value) * j->rank;
        join_keys(j, head, out);
        for (int64_t i = 0; i < j->value; i++)
            kt_weight_decode(&j->v, head * j->value + i, 0, j->rank, out + (j->key + i) * j->rank);
    }
}

static kt_status check(kt_context *ctx, const struct kt_tensor *k, const struct kt_tensor *v)
{
    char shape_k[128], shape_v[128];
    const struct kt_tensor *unknown = !kt_format_of(k->dtype)   ? k
                                      : !kt_format_of(v->dtype) ? v
                                                                : NULL;
    if (unknown)
        return kt_fail(ctx, KT_ERROR_UNSUPPORTED,
                       "%s: tensor %s has dtype %s, which is not supported", unknown->file,
                       unknown->name, unknown->dtype_name);
    if (k->ndim == 3 && v->ndim == 3 && k->shape[0] == v->shape[0] && k->shape[1] == v->shape[2])
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_MISMATCH,
                   "%s: tensors %s and %s have shapes %s and %s, which are not those of one "
                   "projection",
                   k->file, k->name, v->name,
                   kt_shape_text(k->ndim, k->shape, shape_k, sizeof shape_k),
                   kt_shape_text(v->ndim, v->shape, shape_v, sizeof shape_v));
}

kt_status kt_gguf_join_kv_b(kt_context *ctx, const struct kt_tensor *k, const struct kt_tensor *v,
                            struct kt_tensor *out)
{
    void *buffer;
    KT_TRY(check(ctx, k, v));
    int64_t heads = k->shape[0], rank = k->shape[1], key = k->shape[2], value = v->shape[1];
    struct join j = {
        .k = {.data = k->data, .dtype = k->dtype, .rows = heads * rank, .cols = key},
        .v = {.data = v->data, .dtype = v->dtype, .rows = heads * value, .cols = rank},
        .rank = rank,
        .key = key,
        .value = value,
    };
    out->dtype = KT_DTYPE_F32;
    out->ndim = 2;
    out->shape[0] = heads * (key + value);
    out->shape[1] = rank;
    out->bytes = (uint64_t)out->shape[0] * (uint64_t)rank * sizeof(float);
    KT_TRY(kt_buffer_alloc(ctx, out->bytes, 1, "attn_k_b and attn_v_b joined", &buffer));
    j.out = buffer;
    kt_parallel_for(ctx->pool, heads, 1, join_heads, &j);
    out->data = buffer;
    return KT_OK;
}

kt_status kt_gguf_order_rows(kt_context *ctx, const struct kt_tensor *t, int64_t heads,
                             struct kt_tensor *out)
{
    void *buffer;
    if (heads < 1 || t->shape[0] % (2 * heads))
        return kt_fail(ctx, KT_ERROR_MISMATCH,
                       "%s: tensor %s has %lld rows, which are not those of %lld heads", t->file,
                       t->name, (long long)t->shape[0], (long long)heads);
    KT_TRY(kt_buffer_alloc(ctx, t->bytes, 1, "queries and keys in order", &buffer));
    int64_t row = (int64_t)t->bytes / t->shape[0], pairs = t->shape[0] / heads / 2;
    const char *from = t->data;
    for (int64_t head = 0; head < heads; head++)
        for (int64_t i = 0; i < pairs; i++)
            for (int64_t half = 0; half < 2; half++, from += row)
                memcpy((char *)buffer + ((2 * head + half) * pairs + i) * row, from, (size_t)row);
    out->data = buffer;
    return KT_OK;
}
