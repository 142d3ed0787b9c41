/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/bits.h
 * Floats as the integers of their bits. */
#ifndef KT_WEIGHTS_BITS_H
#define KT_WEIGHTS_BITS_H

#include <stdint.h>
#include <string.h>

static inline int32_t bits_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
