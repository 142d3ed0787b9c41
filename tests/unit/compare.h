/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/compare.h
 * What the numeric tests share: contexts, random data, relative error, and gradients by central
 * differences in double precision. */
#ifndef KT_TESTS_UNIT_COMPARE_H
#define KT_TESTS_UNIT_COMPARE_H

#include <check.h>
#include <kt/kt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/random.h"
#include "machine.h"

static inline kt_context *test_context(int32_t threads, uint32_t isa_mask)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = threads;
    options.isa_mask = isa_mask;
    return machine_context(&options, 1);
}

/** Uniform in [-1, 1), the same for the same seed. */
static inline void test_fill(uint64_t seed, int64_t n, float *x)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t words[4];
        kt_philox(seed, 0, (uint64_t)i, words);
        x[i] = 2 * kt_uniform_f32(words[0]) - 1;
    }
}

static inline float *test_random(uint64_t seed, int64_t n)
{
    float *x = malloc(n > 0 ? (size_t)n * sizeof *x : 1);
    test_fill(seed, n, x);
    return x;
}

static inline double *test_widen(int64_t n, const float *x)
{
    double *y = malloc(n > 0 ? (size_t)n * sizeof *y : 1);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i];
    return y;
}

/** |got - want| / |want| in the 2-norm; infinity when got has a NaN. */
static inline double test_error(int64_t n, const float *got, const double *want)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return isnan(difference) ? (double)INFINITY : sqrt(difference / (norm + 1e-300));
}

/** A scalar function of one array. */
typedef double (*test_loss)(void *arg);

/** want[i] = d loss / d x[i] by central differences; the loss reads x through `arg`. */
static inline void test_differentiate(test_loss loss, void *arg, int64_t n, double *x, double *want)
{
    const double step = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double saved = x[i];
        x[i] = saved + step;
        double above = loss(arg);
        x[i] = saved - step;
        double below = loss(arg);
        x[i] = saved;
        want[i] = (above - below) / (2 * step);
    }
}

#endif
