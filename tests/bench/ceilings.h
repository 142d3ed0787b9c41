/* SPDX-License-Identifier: Apache-2.0 */
/** \file bench/ceilings.h
 * What a machine can do: multiply-adds from registers, and reading memory. */
#ifndef KT_TESTS_BENCH_CEILINGS_H
#define KT_TESTS_BENCH_CEILINGS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/context.h"
#include "core/memory.h"

/* One thread is timed by what it used of the CPU, so that other work on the machine counts less;
 * several by the clock on the wall. */
static clockid_t ceiling_timer = CLOCK_MONOTONIC;

static double ceiling_now(void)
{
    struct timespec t;
    clock_gettime(ceiling_timer, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { CEILING_MS = 300, CEILING_CHAINS = 12, CEILING_STEPS = 100000 };

#if defined(__x86_64__)
#include <immintrin.h>
#define CEILING(name, isa, type, add, expression)                                                  \
    __attribute__((target(isa))) static void name(void *arg, int64_t begin, int64_t end,           \
                                                  int32_t thread)                                  \
    {                                                                                              \
        type sum[CEILING_CHAINS], x = {0};                                                         \
        _Pragma("GCC unroll 12") for (int c = 0; c < CEILING_CHAINS; c++) sum[c] = x;              \
        for (int64_t step = begin * CEILING_STEPS; step < end * CEILING_STEPS; step++)             \
            _Pragma("GCC unroll 12") for (int c = 0; c < CEILING_CHAINS; c++)                      \
            {                                                                                      \
                sum[c] = expression;                                                               \
                __asm__ volatile("" : "+v"(sum[c]));                                               \
            }                                                                                      \
        _Pragma("GCC unroll 12") for (int c = 1; c < CEILING_CHAINS; c++) sum[0] =                 \
            add(sum[0], sum[c]);                                                                   \
        memcpy((char *)arg + thread * 64, &sum[0], sizeof x);                                      \
    }
CEILING(ceiling_avx2, "avx2,fma", __m256, _mm256_add_ps, _mm256_fmadd_ps(x, x, sum[c]))
CEILING(ceiling_avx512, "avx512f", __m512, _mm512_add_ps, _mm512_fmadd_ps(x, x, sum[c]))
CEILING(ceiling_bf16, "avx512f,avx512bf16", __m512, _mm512_add_ps,
        _mm512_dpbf16_ps(sum[c], (__m512bh)x, (__m512bh)x))
#endif

enum { CEILING_BLOCK = 1 << 15, CEILING_STREAMS = 4, CEILING_AHEAD = 512 };

struct ceiling_reading {
    const uint64_t *data;
    uint64_t sums[256];
};

typedef uint64_t ceiling_words __attribute__((vector_size(64), aligned(8)));

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
static void
ceiling_read(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct ceiling_reading *r = arg;
    ceiling_words sum[CEILING_STREAMS] = {{0}};
    for (int64_t block = begin; block < end; block++) {
        const uint64_t *at = r->data + block * CEILING_BLOCK;
        for (int64_t i = 0; i < CEILING_BLOCK; i += 8 * CEILING_STREAMS)
            for (int64_t k = 0; k < CEILING_STREAMS; k++) {
                __builtin_prefetch(at + i + 8 * k + CEILING_AHEAD);
                sum[k] += *(const ceiling_words *)(at + i + 8 * k);
            }
    }
    r->sums[thread & 255] += (sum[0] + sum[1] + sum[2] + sum[3])[3];
}

/* Seconds of fn over n items, in pieces of `grain`: the best of as many as fit into CEILING_MS. */
static double ceiling_seconds(kt_context *ctx, int64_t n, int64_t grain, kt_range_fn fn, void *arg)
{
    double best = 1e30, start = ceiling_now();
    for (int i = 0; i < 3 || ceiling_now() - start < CEILING_MS * 1e-3; i++) {
        double from = ceiling_now();
        kt_parallel_for(ctx->pool, n, grain, fn, arg);
        double took = ceiling_now() - from;
        best = took < best ? took : best;
    }
    return best;
}

static double ceiling_rate(kt_context *ctx, kt_range_fn fn, double flops_a_step)
{
    int32_t threads = kt_context_num_threads(ctx);
    void *sink = malloc(64 * (size_t)threads);
    double took = ceiling_seconds(ctx, 4 * threads, 1, fn, sink);
    free(sink);
    return 4.0 * threads * CEILING_CHAINS * CEILING_STEPS * flops_a_step / took;
}

/** FLOP/s of products in float32 (0) or bfloat16 (1); 0 = this program cannot tell. */
__attribute__((unused)) static double ceiling_products(kt_context *ctx, int bf16)
{
#if defined(__x86_64__)
    uint32_t isa = ctx->cpu.isa;
    if (bf16 && isa & KT_ISA_AVX512_BF16)
        return ceiling_rate(ctx, ceiling_bf16, 64);
    if (isa & KT_ISA_AVX512)
        return ceiling_rate(ctx, ceiling_avx512, 32);
    if (isa & KT_ISA_AVX2)
        return ceiling_rate(ctx, ceiling_avx2, 16);
#else
    (void)ctx, (void)bf16;
#endif
    return 0;
}

/** Bytes/s. */
__attribute__((unused)) static double ceiling_memory(kt_context *ctx)
{
    enum { BLOCKS = 2048 };
    struct ceiling_reading r = {0};
    void *memory;
    uint64_t bytes = (uint64_t)BLOCKS * CEILING_BLOCK * 8;
    if (kt_buffer_alloc(ctx, bytes, 1, "the ceiling of memory", &memory) != KT_OK)
        return 0;
    memset(memory, 1, bytes);
    r.data = memory;
    double took = ceiling_seconds(ctx, BLOCKS, 16, ceiling_read, &r);
    kt_buffer_free(ctx, memory);
    return (double)bytes / took;
}

#endif
