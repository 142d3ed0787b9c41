/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "convert/converter.h"
#include "core/context.h"
#include "model/binding.h"
#include "model/quantization.h"

enum { NAME_BYTES = 512 };

static bool is_linear(const struct kt_converter *c, const struct kt_tensor *t)
{
    const struct kt_binding *b = kt_binding_of(c->model->config.architecture, t->name);
    if (!b || (b->kind != KT_PLACE_LINEAR && b->kind != KT_PLACE_EXPERT))
        return false;
    switch (b->role) {
    case KT_ROLE_ROUTED_EXPERT:
        return true;
    case KT_ROLE_ATTENTION:
    case KT_ROLE_DENSE_MLP:
    case KT_ROLE_SHARED_EXPERT:
        return !c->experts_only;
    default:
        return false;
    }
}

bool kt_convert_is_quantised(const struct kt_converter *c, const struct kt_tensor *t)
{
    char name[NAME_BYTES];
    const char *suffix = kt_scale_suffix(kt_tensor_weight_dtype(t));
    if (!suffix || t->ndim != 2)
        return false;
    int length = snprintf(name, sizeof name, "%s%s", t->name, suffix);
    return length < NAME_BYTES && kt_checkpoint_find(c->model->checkpoint, name) != NULL;
}

bool kt_convert_is_chosen(const struct kt_converter *c, const struct kt_tensor *t)
{
    if (kt_tensor_weight_dtype(t) == c->to)
        return false;
    return is_linear(c, t) ||
           (!kt_scale_suffix(c->to) && !c->experts_only && kt_convert_is_quantised(c, t));
}

kt_status kt_convert_choose(const struct kt_converter *c, const struct kt_tensor *t,
                            struct kt_weight *weight, const struct kt_tensor **scales, bool *chosen)
{
    const struct kt_model *m = c->model;
    *chosen = kt_convert_is_chosen(c, t);
    if (!*chosen)
        return KT_OK;
    KT_TRY(kt_tensor_weight(c->ctx, m->checkpoint, &m->config.quantization, t, weight, scales));
    if (c->to == KT_DTYPE_I4 && weight->cols % 2)
        return kt_fail(c->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: tensor %s has %lld columns; INT4 has two in a byte and needs an even "
                       "number, so choose INT8 or FP8",
                       t->file, t->name, (long long)weight->cols);
    return KT_OK;
}

bool kt_convert_drops(const struct kt_converter *c, const struct kt_tensor *t)
{
    static const char *const suffixes[] = {"_scale_inv", "_scale"};
    char name[NAME_BYTES];
    size_t length = strlen(t->name);
    for (int i = 0; i < 2; i++) {
        size_t end = strlen(suffixes[i]);
        if (length <= end || length - end >= NAME_BYTES ||
            strcmp(t->name + length - end, suffixes[i]) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(length - end), t->name);
        const struct kt_tensor *base = kt_checkpoint_find(c->model->checkpoint, name);
        const char *suffix = base ? kt_scale_suffix(kt_tensor_weight_dtype(base)) : NULL;
        if (suffix && strcmp(suffix, suffixes[i]) == 0 && kt_convert_is_chosen(c, base))
            return true;
    }
    return false;
}
