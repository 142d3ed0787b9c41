/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/far_fixture.h
 * The device "cpu-far", and a few numbers on it. */
#ifndef KT_TESTS_UNIT_FAR_FIXTURE_H
#define KT_TESTS_UNIT_FAR_FIXTURE_H

#include "backends/cpu_far/far.h"
#include "backends/registry.h"
#include "compare.h"

enum { N = 64 };

struct far {
    kt_context *ctx;
    struct kt_device *dev;
    struct kt_runner run;
};

static inline struct far far_open(uint64_t seed)
{
    struct far f = {.ctx = test_context(2, 0)};
    ck_assert_int_eq(kt_device_open(f.ctx, "cpu-far:3", &f.dev), KT_OK);
    ck_assert_str_eq(f.dev->ops->name, "cpu-far:3");
    ck_assert(!kt_device_is_host(f.dev));
    kt_cpu_far_seed(f.dev, seed);
    f.run.device = f.dev;
    return f;
}

/** Everything of the device is gone, freed or not. */
static inline void far_close(struct far *f)
{
    kt_device_close(f->dev);
    ck_assert_uint_eq(kt_context_memory_used(f->ctx), 0);
    kt_context_free(f->ctx);
}

static inline void *take(struct far *f, enum kt_memory kind, uint64_t bytes, const char *what)
{
    void *memory;
    ck_assert_int_eq(f->dev->ops->alloc(f->dev, kind, bytes, what, &memory), KT_OK);
    ck_assert_uint_eq((uintptr_t)memory % 64, 0);
    return memory;
}

static inline float *take_floats(struct far *f, enum kt_memory kind, int64_t n)
{
    return take(f, kind, (uint64_t)n * sizeof(float), "floats");
}

static inline void give(struct far *f, enum kt_memory kind, void *memory)
{
    f->dev->ops->free(f->dev, kind, memory);
}

static inline kt_status sync_queue(struct far *f, enum kt_queue queue)
{
    return kt_run_sync(&f->run, kt_run_mark(&f->run, queue));
}

static inline void add(struct far *f, float alpha, const float *x, float *y)
{
    kt_run_add(
        &f->run,
        &(struct kt_rows_args){
            .tokens = 1, .dim = N, .alpha = alpha, .x = kt_view_f32(x, N), .y = kt_view_f32(y, N)});
}

static inline void copy_in(struct far *f, float *to, const float *from)
{
    kt_run_copy(&f->run, KT_QUEUE_IN, to, from, N * sizeof *to);
}

/* x and y of the device, and what goes in and comes out. */
struct operands {
    float *x, *y, *in, *out;
};

static inline struct operands take_operands(struct far *f)
{
    struct operands o = {take_floats(f, KT_MEMORY_DEVICE, N), take_floats(f, KT_MEMORY_DEVICE, N),
                         take_floats(f, KT_MEMORY_PINNED, N), take_floats(f, KT_MEMORY_PINNED, N)};
    for (int i = 0; i < N; i++)
        o.in[i] = (float)i;
    return o;
}

static inline void give_operands(struct far *f, struct operands *o)
{
    for (int queue = 0; queue < KT_QUEUES; queue++)
        sync_queue(f, (enum kt_queue)queue);
    give(f, KT_MEMORY_DEVICE, o->x);
    give(f, KT_MEMORY_DEVICE, o->y);
    give(f, KT_MEMORY_PINNED, o->in);
    give(f, KT_MEMORY_PINNED, o->out);
}

/** What the device remembers, and its name. */
static inline void expect_failure(struct far *f, const char *sentence)
{
    ck_assert_int_eq(sync_queue(f, KT_QUEUE_COMPUTE), KT_ERROR_INTERNAL);
    ck_assert_msg(strstr(kt_last_error(f->ctx), sentence), "%s", kt_last_error(f->ctx));
    ck_assert_ptr_nonnull(strstr(kt_last_error(f->ctx), "cpu-far:3"));
}

#endif
