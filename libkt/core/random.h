/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/random.h
 * Counter-based random numbers: Philox-4x32-10 (Salmon et al., SC'11). A value depends on key and
 * counter alone, so that a recomputed layer and a resumed run draw the same. */
#ifndef KT_CORE_RANDOM_H
#define KT_CORE_RANDOM_H

#include <stdint.h>

/** Four 32-bit words for (key, counter_hi, counter_lo). */
void kt_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]);

/** Uniform float in [0, 1) with 24 random bits from a word. */
static inline float kt_uniform_f32(uint32_t word)
{
    return (float)(word >> 8) * 0x1p-24f;
}

/** y[i] (+)= x[i] / (1 - p), or 0 where the mask that `key` names drops element (token, first + i):
 * word e % 4 of Philox(key, token, e / 4), e = first + i, as a uniform number is below p. */
void kt_dropout_row(float p, uint64_t key, int64_t token, int64_t first, int64_t n, const float *x,
                    int accumulate, float *y);

/** numpy.random.default_rng(seed).permutation(count) into `out`. */
void kt_numpy_permutation(uint64_t seed, uint64_t count, uint64_t *out);

#endif
