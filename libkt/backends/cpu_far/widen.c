/* SPDX-License-Identifier: Apache-2.0 */
/* Views in bfloat16 on a CPU that takes float32. Elements between those of an operand, which may be
 * another operand's, are left alone. */
#include <string.h>

#include "backends/cpu_far/far.h"
#include "weights/dtype.h"

enum { ALIGNMENT = 64 };

static struct kt_view view_of(const struct kt_far_operand *o, const void *args)
{
    struct kt_view view;
    memcpy(&view, (const char *)args + o->offset - offsetof(struct kt_view, data), sizeof view);
    return view;
}

static void set_view(const struct kt_far_operand *o, void *args, struct kt_view view)
{
    memcpy((char *)args + o->offset - offsetof(struct kt_view, data), &view, sizeof view);
}

static bool is_bf16(const struct kt_far_operand *o, const void *args)
{
    return o->kind != KT_FAR_ARRAY && view_of(o, args).dtype == KT_DTYPE_BF16;
}

bool kt_far_widens(enum kt_op op, const void *args)
{
    bool any = false;
    for (const struct kt_far_operand *o = kt_far_operands[op]; o->name; o++)
        any = any || is_bf16(o, args);
    return any && op != KT_OP_CONVERT;
}

void kt_far_widen_types(enum kt_op op, void *args)
{
    for (const struct kt_far_operand *o = kt_far_operands[op]; o->name; o++) {
        if (!is_bf16(o, args))
            continue;
        struct kt_view view = view_of(o, args);
        view.dtype = KT_DTYPE_F32;
        set_view(o, args, view);
    }
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint64_t wide_bytes(const struct kt_far_operand *o, const void *args)
{
    struct kt_far_extent extent = o->extent(args);
    return is_bf16(o, args) ? aligned(2 * kt_far_extent_bytes(&extent)) : 0;
}

static uint64_t scratch_of_cpu(const struct kt_far_device *far, enum kt_op op, const void *args)
{
    union kt_far_args wide;
    memcpy(&wide, args, kt_op_args_size(op));
    kt_far_widen_types(op, &wide);
    return aligned(far->inner->ops->scratch_bytes(far->inner, op, &wide));
}

uint64_t kt_far_scratch_bytes(const struct kt_far_device *far, enum kt_op op, const void *args)
{
    if (!kt_far_widens(op, args))
        return far->inner->ops->scratch_bytes(far->inner, op, args);
    uint64_t bytes = scratch_of_cpu(far, op, args);
    for (const struct kt_far_operand *o = kt_far_operands[op]; o->name; o++)
        bytes += wide_bytes(o, args);
    return bytes;
}

/** Widens an operand's elements, or rounds them back. */
static void convert(const struct kt_far_extent *e, uint16_t *narrow, float *wide, bool back)
{
    for (int64_t row = 0; row < e->rows; row++) {
        for (int64_t part = 0; part < e->parts; part++) {
            int64_t begin = row * e->ld + part * e->stride;
            for (int64_t i = begin; i < begin + e->cols; i++) {
                if (back)
                    narrow[i] = kt_f32_to_bf16(wide[i]);
                else
                    wide[i] = kt_bf16_to_f32(narrow[i]);
            }
        }
    }
}

/** Attention's offsets stand where the device reads them. */
static void find_offsets(enum kt_op op, union kt_far_args *args)
{
    struct kt_attention_args *a = &args->attention;
    if (op != KT_OP_ATTENTION_FORWARD && op != KT_OP_ATTENTION_BACKWARD)
        return;
    a->queries.host = a->queries.device;
    a->keys.host = a->keys.device;
}

static void compute_wide(const struct kt_far_device *far, const struct kt_far_job *job,
                         const union kt_far_args *narrow)
{
    union kt_far_args wide = *narrow;
    char *at = (char *)job->scratch + scratch_of_cpu(far, job->op, narrow);
    for (const struct kt_far_operand *o = kt_far_operands[job->op]; o->name; o++) {
        if (!wide_bytes(o, narrow))
            continue;
        struct kt_view view = view_of(o, narrow);
        struct kt_far_extent extent = o->extent(narrow);
        convert(&extent, view.data, (float *)(void *)at, false);
        view.data = at;
        set_view(o, &wide, view);
        at += wide_bytes(o, narrow);
    }
    kt_far_widen_types(job->op, &wide);
    far->inner->ops->run[job->op](far->inner, &wide, job->scratch);
    for (const struct kt_far_operand *o = kt_far_operands[job->op]; o->name; o++) {
        struct kt_far_extent extent = o->extent(narrow);
        if (o->kind == KT_FAR_WRITTEN && wide_bytes(o, narrow))
            convert(&extent, view_of(o, narrow).data, view_of(o, &wide).data, true);
    }
}

void kt_far_compute(const struct kt_far_device *far, const struct kt_far_job *job)
{
    union kt_far_args args = job->args;
    if (!kt_far_widens(job->op, &args)) {
        far->inner->ops->run[job->op](far->inner, &args, job->scratch);
        return;
    }
    find_offsets(job->op, &args);
    compute_wide(far, job, &args);
}
