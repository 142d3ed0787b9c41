/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/device_fixture.h
 * A device that is tested through the front alone. Operands are blocks of its memory with guard
 * bytes behind them, filled and read by copies; operations run in scratch that was measured.
 *
 * The environment's KT_TEST_DEVICE names another device to run on, and on it alone: "cuda" where
 * there is a GPU. */
#ifndef KT_TESTS_UNIT_DEVICE_FIXTURE_H
#define KT_TESTS_UNIT_DEVICE_FIXTURE_H

#include "backends/module.h"
#include "backends/registry.h"
#include "weights.h"

/** Devices that every test of operations runs on. */
static const char *const host_devices[] = {"cpu", "cpu:1", "cpu-far"};

static const struct device_setting {
    int32_t threads;
    uint32_t isa_mask;
} device_settings[] = {
    {1, 0}, {2, 0}, {5, 0}, {2, KT_ISA_AVX512_BF16}, {2, KT_ISA_AVX512}, {2, KT_ISA_AVX2},
};

enum { DEVICE_GUARD = 256, DEVICE_BLOCKS = 128 };

static inline const char *device_asked_for(void)
{
    return getenv("KT_TEST_DEVICE");
}

static inline int num_devices(void)
{
    return device_asked_for() ? 1 : (int)(sizeof host_devices / sizeof *host_devices);
}

static inline const char *device_name(int i)
{
    return device_asked_for() ? device_asked_for() : host_devices[i];
}

/** One that computes on the host: "cpu", "cpu-far" and their like. */
static inline bool device_is_cpu(const char *name)
{
    return strncmp(name, "cpu", 3) == 0;
}

/** Threads and instruction sets are the host's; a device that was asked for has one setting. */
static inline int num_device_settings(void)
{
    return device_asked_for() ? 1 : (int)(sizeof device_settings / sizeof *device_settings);
}

/** Of a test that opens device_setting(_i). */
static inline int num_device_runs(void)
{
    return num_devices() * num_device_settings();
}

struct device_block {
    enum kt_memory kind;
    void *memory;
    uint64_t bytes;
};

struct device_test {
    kt_context *ctx;
    struct kt_device *dev;
    struct kt_runner run;
    struct device_block blocks[DEVICE_BLOCKS];
    int num_blocks;
};

/** Modules are beside libkt, and tests are not. */
static inline kt_status device_open_named(kt_context *ctx, const char *name, struct kt_device **out)
{
    if (device_is_cpu(name))
        return kt_device_open(ctx, name, out);
    return kt_module_open(ctx, KT_LIBRARY_DIR, name, out);
}

static inline struct device_test device_open(const char *name, int32_t threads, uint32_t isa_mask)
{
    struct device_test t = {.ctx = test_context(threads, isa_mask)};
    ck_assert_msg(device_open_named(t.ctx, name, &t.dev) == KT_OK, "%s", kt_last_error(t.ctx));
    t.run.device = t.dev;
    return t;
}

static inline struct device_test device_setting(int i)
{
    const struct device_setting *set = &device_settings[i % num_device_settings()];
    return device_open(device_name(i / num_device_settings()), set->threads, set->isa_mask);
}

/** Waits for what was queued; nothing was refused. */
static inline void device_wait(struct device_test *t, enum kt_queue queue)
{
    ck_assert_int_eq(kt_run_sync(&t->run, kt_run_mark(&t->run, queue)), KT_OK);
}

/** Copies from memory of the device to `to`, by way of pinned memory. */
static inline void device_get_bytes(struct device_test *t, uint64_t bytes, const void *from,
                                    void *to)
{
    void *pinned;
    ck_assert_int_eq(t->dev->ops->alloc(t->dev, KT_MEMORY_PINNED, bytes, "results", &pinned),
                     KT_OK);
    kt_run_order(&t->run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    kt_run_copy(&t->run, KT_QUEUE_OUT, pinned, from, bytes);
    device_wait(t, KT_QUEUE_OUT);
    memcpy(to, pinned, bytes);
    t->dev->ops->free(t->dev, KT_MEMORY_PINNED, pinned);
}

static inline float *device_get(struct device_test *t, int64_t n, const float *from, float *to)
{
    device_get_bytes(t, (uint64_t)n * sizeof *to, from, to);
    return to;
}

static inline void device_set(struct device_test *t, void *to, const void *from, uint64_t bytes)
{
    kt_run_copy(&t->run, KT_QUEUE_IN, to, from, bytes);
    device_wait(t, KT_QUEUE_IN);
}

/** A block that holds a copy of `from`, or bytes of 0x3b (floats of 0.003) when that is NULL; freed
 * by device_free_blocks. */
static inline void *device_put(struct device_test *t, enum kt_memory kind, uint64_t bytes,
                               const void *from)
{
    struct device_block *b = &t->blocks[t->num_blocks++];
    uint8_t *host = malloc(bytes + DEVICE_GUARD);
    ck_assert_int_le(t->num_blocks, DEVICE_BLOCKS);
    memset(host, 0x3b, bytes);
    memset(host + bytes, 0xa5, DEVICE_GUARD);
    if (from)
        memcpy(host, from, bytes);
    b->kind = kind;
    b->bytes = bytes;
    ck_assert_int_eq(t->dev->ops->alloc(t->dev, kind, bytes + DEVICE_GUARD, "a test", &b->memory),
                     KT_OK);
    device_set(t, b->memory, host, bytes + DEVICE_GUARD);
    free(host);
    return b->memory;
}

static inline float *device_floats(struct device_test *t, int64_t n, const float *from)
{
    return device_put(t, KT_MEMORY_DEVICE, (uint64_t)n * sizeof *from, from);
}

static inline int32_t *device_ints(struct device_test *t, int64_t n, const int32_t *from)
{
    return device_put(t, KT_MEMORY_DEVICE, (uint64_t)n * sizeof *from, from);
}

/** The numbers that test_random gives. */
static inline float *device_random(struct device_test *t, uint64_t seed, int64_t n)
{
    float *host = test_random(seed, n), *x = device_floats(t, n, host);
    free(host);
    return x;
}

/** A weight with its data and its scales on the device. */
static inline struct kt_weight device_weight(struct device_test *t, const struct kt_weight *host)
{
    struct kt_weight w = *host;
    w.data = device_put(t, KT_MEMORY_DEVICE,
                        (uint64_t)w.rows * kt_format_row_bytes(w.dtype, w.cols), host->data);
    if (w.scale)
        w.scale = device_floats(t, ((w.first_row + w.rows - 1) / w.scale_rows + 1) * w.scale_ld,
                                host->scale);
    return w;
}

static inline struct kt_offsets device_offsets(struct device_test *t, int32_t num,
                                               const int32_t *host)
{
    return (struct kt_offsets){num, host, device_ints(t, num + 1, host)};
}

/** Runs an operation, in scratch of at least as much as it was measured to take. */
static inline void device_run(struct device_test *t, enum kt_op op, const void *args)
{
    struct kt_tally tally = {0};
    kt_run(&(struct kt_runner){t->dev, &tally}, op, args);
    ck_assert_uint_eq(tally.operations[op], 1);
    ck_assert_int_eq(kt_device_reserve_scratch(t->dev, tally.scratch), KT_OK);
    kt_run(&t->run, op, args);
}

/** Nothing was written behind a block. */
static inline void device_free_blocks(struct device_test *t)
{
    for (int i = 0; i < t->num_blocks; i++) {
        struct device_block *b = &t->blocks[i];
        uint8_t *host = malloc(b->bytes + DEVICE_GUARD);
        device_get_bytes(t, b->bytes + DEVICE_GUARD, b->memory, host);
        for (int k = 0; k < DEVICE_GUARD; k++)
            ck_assert_msg(host[b->bytes + (uint64_t)k] == 0xa5,
                          "byte %d behind block %d of %llu bytes was written", k, i,
                          (unsigned long long)b->bytes);
        free(host);
        t->dev->ops->free(t->dev, b->kind, b->memory);
    }
    t->num_blocks = 0;
}

static inline void device_close(struct device_test *t)
{
    device_free_blocks(t);
    kt_device_close(t->dev);
    ck_assert_uint_eq(kt_context_memory_used(t->ctx), 0);
    kt_context_free(t->ctx);
}

#endif
