/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of benchmarks by format. */
#ifndef KT_TESTS_BENCH_WEIGHTS_H
#define KT_TESTS_BENCH_WEIGHTS_H

#include <math.h>
#include <stdint.h>

#include "weights/encode.h"
#include "weights/weight.h"

struct weight_type {
    const char *name;
    kt_dtype dtype;
    int64_t scale_rows, scale_cols; /* 0 = none */
};

static inline struct kt_weight weight_of(const struct weight_type *t, const void *data,
                                         const float *scales, int64_t rows, int64_t cols)
{
    struct kt_weight w = {.data = data, .dtype = t->dtype, .rows = rows, .cols = cols};
    if (t->scale_rows) {
        w.scale = scales;
        w.scale_rows = t->scale_rows;
        w.scale_cols = t->scale_cols;
        w.scale_ld = (cols + t->scale_cols - 1) / t->scale_cols;
    }
    return w;
}

/* One step of a generator of pseudo-random numbers (Marsaglia, "Xorshift RNGs", 2003). */
static inline uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    return *s;
}

/* Weights whose time depends on their values need a checkpoint's: [65536] codes of normally
 * distributed numbers, of which the largest of 128 x 128 becomes the format's largest. */
enum { F8_SAMPLES = 1 << 16 };

static inline void sample_f8(uint8_t codes[F8_SAMPLES])
{
    enum { BLOCK = 128 * 128 };
    static float x[BLOCK];
    uint64_t s = 88172645463325252ull;
    for (int from = 0; from < F8_SAMPLES; from += BLOCK) {
        for (int i = 0; i < BLOCK; i++) {
            double u = (double)(next_random(&s) >> 11) * 0x1p-53,
                   v = (double)(next_random(&s) >> 11);
            x[i] = (float)(sqrt(-2 * log(1 - u)) * cos(v * 0x1p-53 * 6.283185307179586));
        }
        kt_encode(KT_DTYPE_F8_E4M3, BLOCK, x,
                  kt_encode_scale(KT_DTYPE_F8_E4M3, kt_encode_largest(BLOCK, x)), codes + from);
    }
}

/* Eight of them. */
static inline uint64_t random_f8(const uint8_t codes[F8_SAMPLES], uint64_t *s)
{
    uint64_t word = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t at = next_random(s);
        for (int k = 0; k < 4; k++)
            word = word << 8 | codes[at >> 16 * k & (F8_SAMPLES - 1)];
    }
    return word;
}

#endif
