/* SPDX-License-Identifier: Apache-2.0 */
/* Operations and copies: addresses become real ones, then the job is queued. */
#include <string.h>

#include "backends/cpu_far/far.h"

/** Where the bytes really are, for the next job of a queue; NULL, remembered, where `bytes` bytes
 * from `address` on are not memory of the device. `operation` and `operand` name them. */
static void *translate(struct kt_far_device *far, enum kt_queue queue, const char *operation,
                       const char *operand, const void *address, uint64_t bytes)
{
    struct kt_far_allocation *a = kt_far_find(&far->addresses, address);
    if (!a) {
        kt_far_remember(far, "%s: %s is not memory of this device", operation, operand);
        return NULL;
    }
    uint64_t begin = (uint64_t)(uintptr_t)address - a->address;
    if (bytes > a->bytes - begin) {
        kt_far_remember(far,
                        "%s: %s is %llu bytes from byte %llu of \"%s\" on, which has %llu bytes",
                        operation, operand, (unsigned long long)bytes, (unsigned long long)begin,
                        a->what, (unsigned long long)a->bytes);
        return NULL;
    }
    a->last_use[queue] = far->queues[queue].queued + 1;
    return a->real + begin;
}

static void *translate_operand(struct kt_far_device *far, enum kt_op op, const char *operand,
                               const void *address, uint64_t bytes)
{
    const struct kt_far_allocation *a = kt_far_find(&far->addresses, address);
    if (a && a->kind == KT_MEMORY_PINNED) {
        kt_far_remember(far, "%s: %s is memory of the host", kt_op_name(op), operand);
        return NULL;
    }
    return translate(far, KT_QUEUE_COMPUTE, kt_op_name(op), operand, address, bytes);
}

static bool translate_operands(struct kt_far_device *far, enum kt_op op, const void *args,
                               union kt_far_args *real)
{
    for (const struct kt_far_operand *o = kt_far_operands[op]; o->name; o++) {
        struct kt_far_extent extent = o->extent(args);
        uint64_t bytes = kt_far_extent_bytes(&extent);
        void *address;
        if (!bytes) /* nobody follows it */
            continue;
        memcpy(&address, (const char *)args + o->offset, sizeof address);
        address = translate_operand(far, op, o->name, address, bytes);
        if (!address)
            return false;
        memcpy((char *)real + o->offset, &address, sizeof address);
    }
    return true;
}

static void enqueue(struct kt_device *dev, enum kt_op op, const void *args, void *scratch)
{
    struct kt_far_device *far = kt_far(dev);
    struct kt_far_job job = {.kind = KT_FAR_OPERATION, .op = op};
    uint64_t scratch_bytes = dev->ops->scratch_bytes(dev, op, args);
    memcpy(&job.args, args, kt_op_args_size(op));
    if (!translate_operands(far, op, args, &job.args))
        return;
    if (scratch_bytes) {
        job.scratch = translate_operand(far, op, "scratch", scratch, scratch_bytes);
        if (!job.scratch)
            return;
    }
    if (op == KT_OP_ATTENTION_FORWARD || op == KT_OP_ATTENTION_BACKWARD)
        job.args.attention.queries.host = job.args.attention.keys.host = NULL;
    kt_far_push(far, KT_QUEUE_COMPUTE, &job);
}

/** One end of a copy: memory of the device, or any memory of the host. */
static void *translate_end(struct kt_far_device *far, enum kt_queue queue, const char *end,
                           const void *address, uint64_t bytes)
{
    if (kt_far_is_reserved(&far->addresses, address) || kt_far_find(&far->addresses, address))
        return translate(far, queue, "copy", end, address, bytes);
    return (void *)(uintptr_t)address;
}

void kt_far_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes)
{
    struct kt_far_device *far = kt_far(dev);
    struct kt_far_job job = {.kind = KT_FAR_COPY, .bytes = bytes};
    job.to = translate_end(far, queue, "the target", to, bytes);
    job.from = translate_end(far, queue, "the source", from, bytes);
    if (job.to && job.from)
        kt_far_push(far, queue, &job);
}

#define OPERATION(name, op, type)                                                                  \
    static void name(struct kt_device *dev, const void *args, void *scratch)                       \
    {                                                                                              \
        enqueue(dev, KT_OP_##op, args, scratch);                                                   \
    }

KT_EACH_OP(OPERATION)

#define RUN(name, op, args) [KT_OP_##op] = name,

const kt_op_fn kt_far_run[KT_OPS] = {KT_EACH_OP(RUN)};
