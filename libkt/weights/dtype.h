/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/dtype.h
 * Sizes of element types and scalar conversions. */
#ifndef KT_WEIGHTS_DTYPE_H
#define KT_WEIGHTS_DTYPE_H

#include <kt/types.h>
#include <string.h>

/** Bytes of one element; 0 for an unknown dtype and for those stored in blocks (see weight.h). */
size_t kt_dtype_size(kt_dtype dtype);
/** The dtype that safetensors calls `name`; false when unknown. */
bool kt_dtype_from_name(const char *name, kt_dtype *out);
/** Widens n elements of F32 / F16 / BF16 to float32; false for other dtypes. */
bool kt_dtype_to_f32(kt_dtype dtype, const void *from, float *to, size_t n);

static inline float kt_bf16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/** Rounds to nearest even; NaN stays NaN. */
static inline uint16_t kt_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float kt_f16_to_f32(uint16_t h);

#endif
