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

#endif
