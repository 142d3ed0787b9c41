/* SPDX-License-Identifier: Apache-2.0 */
/* The front of all devices: measures, checks and counts, so that backends only do. */
#include "backend/device.h"

#include "backend/trace.h"
#include "core/clock.h"
#include "core/context.h"
#include "core/memory.h"

#define DESCRIBE(name, op, args) [KT_OP_##op] = {#name, sizeof(struct args)},

static const struct {
    const char *name;
    size_t args_size;
} operations[KT_OPS] = {KT_EACH_OP(DESCRIBE)};

const char *kt_op_name(enum kt_op op)
{
    return operations[op].name;
}

size_t kt_op_args_size(enum kt_op op)
{
    return operations[op].args_size;
}

static double element(const struct kt_view *view)
{
    return (double)kt_view_element(view->dtype);
}

static void count_linear(struct kt_tally *tally, const struct kt_linear_args *a, bool forward)
{
    double rows = (double)a->weight.rows, cols = (double)a->weight.cols, tokens = (double)a->tokens;
    double in = forward ? cols : rows, out = forward ? rows : cols;
    tally->flops += 2.0 * tokens * rows * cols;
    tally->bytes +=
        kt_weight_bytes(&a->weight) + tokens * (in * element(&a->x) + out * element(&a->y));
}

static kt_compute compute_of(enum kt_op op, const void *args)
{
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
    case KT_OP_LINEAR_BACKWARD:
        return ((const struct kt_linear_args *)args)->compute;
    case KT_OP_ATTENTION_FORWARD:
    case KT_OP_ATTENTION_BACKWARD:
        return ((const struct kt_attention_args *)args)->compute;
    default:
        return KT_COMPUTE_F32;
    }
}

static void count_gemm(struct kt_tally *tally, const struct kt_gemm_args *a)
{
    double m = (double)a->m, n = (double)a->n, k = (double)a->k;
    tally->flops += 2.0 * m * n * k;
    tally->bytes += m * k * element(&a->a) + k * n * element(&a->b) + m * n * element(&a->c);
}

/** Two products of each pair of a query and a key that it sees; five in backward. */
static void count_attention(struct kt_tally *tally, const struct kt_attention_args *a,
                            bool backward)
{
    double pairs = 0, tokens = 0, keys = 0, width = (double)(a->qk_dim + a->v_dim);
    for (int32_t s = 0; s < a->queries.num; s++) {
        double q = a->queries.host[s + 1] - a->queries.host[s];
        double k = a->keys.host[s + 1] - a->keys.host[s];
        pairs += q * (k - (q - 1) / 2); /* the last query sees all keys, each before one less */
        tokens += q;
        keys += k;
    }
    tally->flops += (backward ? 5.0 : 2.0) * pairs * a->num_heads * width;
    tally->bytes += (backward ? 2.0 : 1.0) * element(&a->q) * width *
                    (tokens * a->num_heads + keys * a->num_kv_heads);
}

/** Operations that touch each element of `operands` matrices [tokens, dim] once, `like` one of
 * them.
 */
static void count_elements(struct kt_tally *tally, double operands, const struct kt_view *like,
                           int64_t tokens, int64_t dim)
{
    tally->bytes += element(like) * operands * (double)tokens * (double)dim;
}

static void count_operation(struct kt_tally *tally, enum kt_op op, const void *args)
{
    const struct kt_norm_args *norm = args;
    const struct kt_rope_args *rope = args;
    const struct kt_glu_args *glu = args;
    const struct kt_router_args *router = args;
    const struct kt_cross_entropy_args *loss = args;
    const struct kt_rows_args *rows = args;
    const struct kt_dropout_args *dropout = args;
    const struct kt_embedding_args *embedding = args;
    const struct kt_gather_args *gather = args;
    const struct kt_weigh_args *weigh = args;
    const struct kt_view f32 = {.dtype = KT_DTYPE_F32};
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
    case KT_OP_LINEAR_BACKWARD:
        return count_linear(tally, args, op == KT_OP_LINEAR_FORWARD);
    case KT_OP_GEMM:
        return count_gemm(tally, args);
    case KT_OP_EMBEDDING:
        return count_elements(tally, 2, &embedding->x, embedding->tokens, embedding->table.cols);
    case KT_OP_NORM_FORWARD:
    case KT_OP_NORM_BACKWARD:
        return count_elements(tally, op == KT_OP_NORM_FORWARD ? 2 : 3, &norm->x, norm->tokens,
                              norm->dim);
    case KT_OP_ROPE:
        return count_elements(tally, 2, &rope->x, rope->tokens,
                              (int64_t)rope->num_heads * rope->rope_dim);
    case KT_OP_ATTENTION_FORWARD:
    case KT_OP_ATTENTION_BACKWARD:
        return count_attention(tally, args, op == KT_OP_ATTENTION_BACKWARD);
    case KT_OP_GLU_FORWARD:
    case KT_OP_GLU_BACKWARD:
        return count_elements(tally, op == KT_OP_GLU_FORWARD ? 3 : 5, &glu->gate, glu->tokens,
                              glu->dim);
    case KT_OP_ROUTER_FORWARD:
    case KT_OP_ROUTER_BACKWARD:
        return count_elements(tally, 2, &f32, router->tokens, router->router.num_experts);
    case KT_OP_CROSS_ENTROPY:
        return count_elements(tally, 2, &loss->logits, loss->tokens, loss->vocab);
    case KT_OP_DROPOUT:
        return count_elements(tally, 2, &dropout->x, dropout->tokens, dropout->dim);
    case KT_OP_GATHER:
    case KT_OP_SCATTER_ADD:
        return count_elements(tally, op == KT_OP_GATHER ? 2 : 3, &gather->x, gather->rows,
                              gather->dim);
    case KT_OP_WEIGH:
        return count_elements(tally, 3, &weigh->h, weigh->rows, weigh->dim);
    default:
        return count_elements(tally, op == KT_OP_ZERO ? 1 : 2, &rows->y, rows->tokens, rows->dim);
    }
}

static void measure(const struct kt_runner *runner, enum kt_op op, const void *args)
{
    const struct kt_device *dev = runner->device;
    struct kt_tally *tally = runner->tally, one = {0};
    struct kt_rates rates = dev->ops->rates(dev, compute_of(op, args));
    uint64_t scratch = dev->ops->scratch_bytes(dev, op, args);
    count_operation(&one, op, args);
    double multiply = one.flops / rates.flops, move = one.bytes / rates.bytes;
    if (scratch > tally->scratch)
        tally->scratch = scratch;
    tally->operations[op]++;
    tally->flops += one.flops;
    tally->bytes += one.bytes;
    tally->seconds += multiply > move ? multiply : move;
}

/** A bug, remembered: nothing is run after it. */
static bool refuse(struct kt_device *dev, const char *why)
{
    if (!dev->refused)
        dev->refused = why;
    return false;
}

static bool let_through(struct kt_device *dev, enum kt_op op, const void *args)
{
    if (dev->refused)
        return false;
    if (!dev->ops->supports(dev, op, args))
        return refuse(dev, "an operation on views that the device does not support");
    if (dev->ops->scratch_bytes(dev, op, args) > dev->scratch_bytes)
        return refuse(dev, "an operation that needs more scratch than was measured for it");
    return true;
}

static void stamp(struct kt_device *dev, enum kt_queue queue, double *seconds)
{
    if (kt_device_is_host(dev))
        kt_time_store(seconds, kt_clock());
    else
        dev->ops->stamp(dev, queue, seconds);
}

/** What takes longer to enqueue waits for room in a queue, or copies at once. */
static const double long_to_enqueue = 100e-6;

/** An event of a queue, and when the host began to enqueue it. */
struct noted {
    struct kt_event *event;
    double begin;
};

/** Between these two is enqueued, or done, what the event tells. */
static struct noted begin_event(struct kt_device *dev, enum kt_queue queue, const char *name,
                                double bytes, double flops)
{
    struct kt_trace *trace = dev->ctx->trace;
    struct noted noted = {
        .event = kt_trace_event(trace, kt_trace_track(trace, dev, queue), name, bytes, flops),
        .begin = kt_clock()};
    if (noted.event)
        stamp(dev, queue, &noted.event->begin);
    return noted;
}

static void end_event(struct kt_device *dev, enum kt_queue queue, struct noted noted)
{
    if (noted.event)
        stamp(dev, queue, &noted.event->end);
    if (kt_device_is_host(dev) || kt_clock() < noted.begin + long_to_enqueue)
        return;
    struct kt_scope held_up =
        kt_trace_begin(dev->ctx->trace, KT_TRACK_HOST, kt_trace_queue_full, 0, 0);
    if (held_up.event)
        held_up.event->begin = noted.begin;
    kt_trace_end(&held_up);
}

/** Enqueues an operation; of several (count > 0) that may be done at one time the first, and
 * perhaps more. How many. */
static int32_t enqueue(struct kt_device *dev, enum kt_op op, int32_t count, const void *args)
{
    int32_t num = 0;
    if (count && dev->ops->run_first)
        num = dev->ops->run_first(dev, op, count, args, dev->scratch);
    if (num)
        return num;
    dev->ops->run[op](dev, args, dev->scratch);
    return 1;
}

/** The same as an event, if there is a trace. */
static int32_t run_told(struct kt_device *dev, enum kt_op op, int32_t count, const void *args)
{
    struct kt_tally all = {0};
    if (!dev->ctx->trace)
        return enqueue(dev, op, count, args);
    struct noted noted = begin_event(dev, KT_QUEUE_COMPUTE, kt_op_name(op), 0, 0);
    int32_t num = enqueue(dev, op, count, args);
    for (int32_t i = 0; i < num; i++)
        count_operation(&all, op, (const char *)args + (size_t)i * operations[op].args_size);
    if (noted.event) {
        noted.event->bytes = all.bytes;
        noted.event->flops = all.flops;
    }
    end_event(dev, KT_QUEUE_COMPUTE, noted);
    return num;
}

void kt_run(const struct kt_runner *runner, enum kt_op op, const void *args)
{
    if (runner->tally)
        measure(runner, op, args);
    else if (let_through(runner->device, op, args))
        run_told(runner->device, op, 0, args);
}

void kt_run_all(const struct kt_runner *runner, enum kt_op op, int32_t count, const void *args)
{
    const char *next = args;
    size_t size = operations[op].args_size;
    for (int32_t i = 0; i < count; i++)
        if (runner->tally)
            measure(runner, op, next + (size_t)i * size);
        else if (!let_through(runner->device, op, next + (size_t)i * size))
            return;
    for (int32_t left = runner->tally ? 0 : count, num; left > 0; left -= num) {
        num = run_told(runner->device, op, left, next);
        next += (size_t)num * size;
    }
}

static void copy_traced(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                        uint64_t bytes)
{
    static const char *const names[KT_QUEUES] = {[KT_QUEUE_COMPUTE] = "copy",
                                                 [KT_QUEUE_IN] = "copy in",
                                                 [KT_QUEUE_OUT] = "copy out",
                                                 [KT_QUEUE_SUPPLY] = "supply"};
    struct noted noted = begin_event(dev, queue, names[queue], (double)bytes, 0);
    dev->ops->copy(dev, queue, to, from, bytes);
    end_event(dev, queue, noted);
}

void kt_run_copy(const struct kt_runner *runner, enum kt_queue queue, void *to, const void *from,
                 uint64_t bytes)
{
    struct kt_device *dev = runner->device;
    if (runner->tally) {
        runner->tally->bytes += 2 * (double)bytes;
        runner->tally->copy_seconds += (double)bytes / dev->ops->rates(dev, KT_COMPUTE_F32).link;
    } else if (bytes && to != from && !dev->refused) {
        (dev->ctx->trace ? copy_traced : dev->ops->copy)(dev, queue, to, from, bytes);
    }
}

kt_mark kt_run_mark(const struct kt_runner *runner, enum kt_queue queue)
{
    return runner->tally ? 0 : runner->device->ops->mark(runner->device, queue);
}

void kt_run_wait(const struct kt_runner *runner, enum kt_queue queue, kt_mark mark)
{
    if (!runner->tally && mark)
        runner->device->ops->wait(runner->device, queue, mark);
}

void kt_run_order(const struct kt_runner *runner, enum kt_queue queue, enum kt_queue after)
{
    kt_run_wait(runner, queue, kt_run_mark(runner, after));
}

static kt_status sync_traced(struct kt_device *dev, kt_mark mark)
{
    if (!dev->ctx->trace || kt_device_is_host(dev))
        return dev->ops->sync(dev, mark);
    KT_TRACE_HOST(dev->ctx, kt_trace_wait);
    return dev->ops->sync(dev, mark);
}

kt_status kt_run_sync(const struct kt_runner *runner, kt_mark mark)
{
    struct kt_device *dev = runner->device;
    if (runner->tally)
        return KT_OK;
    kt_status status = sync_traced(dev, mark);
    if (dev->refused)
        return kt_fail(dev->ctx, KT_ERROR_INTERNAL, "device \"%s\": %s; please report this",
                       dev->ops->name, dev->refused);
    return status;
}

kt_status kt_device_drain(struct kt_device *dev)
{
    struct kt_runner runner = {dev, NULL};
    kt_status status = KT_OK;
    for (int queue = 0; queue < KT_QUEUES; queue++) {
        kt_status of = kt_run_sync(&runner, kt_run_mark(&runner, (enum kt_queue)queue));
        status = status == KT_OK ? of : status;
    }
    return status;
}

static uint64_t missing(const struct kt_device *dev, enum kt_memory kind, uint64_t bytes)
{
    uint64_t left = dev->limit > dev->allocated ? dev->limit - dev->allocated : 0;
    return kind != KT_MEMORY_PINNED && dev->limit && bytes > left ? bytes - left : 0;
}

static kt_status fail_limit(const struct kt_device *dev, uint64_t bytes, const char *what)
{
    return kt_fail(
        dev->ctx, KT_ERROR_OUT_OF_MEMORY,
        "device \"%s\": %s needs %llu bytes, where %llu of the %llu that it may take are "
        "in use; raise the limit, or run fewer tokens in one step",
        dev->ops->name, what, (unsigned long long)bytes, (unsigned long long)dev->allocated,
        (unsigned long long)dev->limit);
}

kt_status kt_device_alloc(struct kt_device *dev, enum kt_memory kind, uint64_t bytes,
                          const char *what, void **out)
{
    uint64_t more = missing(dev, kind, bytes);
    while (more && dev->reclaim && dev->reclaim(dev->owner, more))
        more = missing(dev, kind, bytes);
    if (more)
        return fail_limit(dev, bytes, what);
    kt_status status = dev->ops->alloc(dev, kind, bytes, what, out);
    while (status == KT_ERROR_OUT_OF_MEMORY && kind != KT_MEMORY_PINNED && dev->reclaim &&
           dev->reclaim(dev->owner, bytes))
        status = dev->ops->alloc(dev, kind, bytes, what, out);
    if (status == KT_OK && kind != KT_MEMORY_PINNED)
        dev->allocated += bytes;
    return status;
}

void kt_device_free(struct kt_device *dev, enum kt_memory kind, void *memory, uint64_t bytes)
{
    dev->ops->free(dev, kind, memory);
    if (memory && kind != KT_MEMORY_PINNED)
        dev->allocated -= bytes;
}

void kt_device_free_scratch(struct kt_device *dev)
{
    kt_device_free(dev, KT_MEMORY_SCRATCH, dev->scratch, dev->scratch_bytes);
    dev->scratch = NULL;
    dev->scratch_bytes = 0;
}

kt_status kt_device_reserve_scratch(struct kt_device *dev, uint64_t bytes)
{
    void *memory;
    if (bytes <= dev->scratch_bytes)
        return KT_OK;
    KT_TRY(kt_device_drain(dev));
    kt_device_free_scratch(dev);
    KT_TRY(kt_device_alloc(dev, KT_MEMORY_SCRATCH, bytes, "what operations work in", &memory));
    dev->scratch = memory;
    dev->scratch_bytes = bytes;
    return KT_OK;
}

void kt_device_close(struct kt_device *dev)
{
    if (!dev)
        return;
    (void)kt_device_drain(dev);
    if (dev->ctx->trace)
        kt_trace_forget(dev->ctx->trace, dev);
    kt_device_free_scratch(dev);
    dev->ops->close(dev);
}
