/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/decode_element.h
 * The arithmetic of weight formats (weights/weight.h), bit for bit that of kt_weight_decode, for
 * the kernels and for the test that compares the two on the host: C, read by both compilers.
 * `dtype` is a constant where speed counts. Scales of a weight are left to the caller. */
#ifndef KT_BACKENDS_CUDA_DECODE_ELEMENT_H
#define KT_BACKENDS_CUDA_DECODE_ELEMENT_H

#include <string.h>

#include "weights/weight.h"

#ifdef __CUDACC__
#define KT_CUDA_BOTH static __host__ __device__ __forceinline__
#else
#define KT_CUDA_BOTH static inline
#endif

/** Consecutive elements that are decoded together. Those that begin at a multiple of it share a
 * block, its scale and its place in bytes, in every format. */
enum { KT_CUDA_RUN = 8 };

KT_CUDA_BOTH int32_t kt_cuda_block(kt_dtype dtype)
{
    switch (dtype) {
    case KT_DTYPE_Q8_0:
    case KT_DTYPE_Q4_0:
        return 32;
    case KT_DTYPE_Q4_K:
    case KT_DTYPE_Q6_K:
        return 256;
    case KT_DTYPE_I4:
        return 2;
    default:
        return 1;
    }
}

KT_CUDA_BOTH int32_t kt_cuda_block_bytes(kt_dtype dtype)
{
    switch (dtype) {
    case KT_DTYPE_F32:
        return 4;
    case KT_DTYPE_F16:
    case KT_DTYPE_BF16:
        return 2;
    case KT_DTYPE_Q8_0:
        return 34;
    case KT_DTYPE_Q4_0:
        return 18;
    case KT_DTYPE_Q4_K:
        return 144;
    case KT_DTYPE_Q6_K:
        return 210;
    default:
        return 1;
    }
}

/** Bytes of a row, of whole blocks. */
KT_CUDA_BOTH int64_t kt_cuda_row_bytes(kt_dtype dtype, int64_t cols)
{
    return cols / kt_cuda_block(dtype) * kt_cuda_block_bytes(dtype);
}

/** What rows and their runs must be aligned to for kt_cuda_decode_run. */
KT_CUDA_BOTH int32_t kt_cuda_run_align(kt_dtype dtype)
{
    switch (dtype) {
    case KT_DTYPE_I4:
        return 4;
    case KT_DTYPE_Q8_0:
    case KT_DTYPE_Q4_0:
    case KT_DTYPE_Q6_K:
        return 2;
    default:
        return 8;
    }
}

/** n <= 8 bytes, the first lowest, from an address that is a multiple of `align`. */
KT_CUDA_BOTH uint64_t kt_cuda_bytes(const uint8_t *p, int32_t n, int32_t align)
{
    uint64_t bytes = 0;
    if (n == 8 && align == 8) {
        memcpy(&bytes, __builtin_assume_aligned(p, 8), 8);
    } else if (align >= 4) {
        for (int32_t i = 0; i < n; i += 4) {
            uint32_t word;
            memcpy(&word, __builtin_assume_aligned(p + i, 4), 4);
            bytes |= (uint64_t)word << 8 * i;
        }
    } else if (align == 2) {
        for (int32_t i = 0; i < n; i += 2) {
            uint16_t half;
            memcpy(&half, __builtin_assume_aligned(p + i, 2), 2);
            bytes |= (uint64_t)half << 8 * i;
        }
    } else {
        for (int32_t i = 0; i < n; i++)
            bytes |= (uint64_t)p[i] << 8 * i;
    }
    return bytes;
}

KT_CUDA_BOTH float kt_cuda_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KT_CUDA_BOTH float kt_cuda_f16(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
    if (exponent == 31)
        return kt_cuda_float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent)
        return kt_cuda_float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
    return sign ? -magnitude : magnitude;
}

KT_CUDA_BOTH float kt_cuda_f8_e4m3(uint32_t x)
{
    uint32_t code = x & 0x7f;
    float magnitude = kt_cuda_float_of(code << 20) * 1.329227995784915872903807060280344576e36f;
    if (code == 0x7f) /* above: 2^120, the biases' difference */
        magnitude = kt_cuda_float_of(0x7fc00000u);
    return x & 0x80 ? -magnitude : magnitude;
}

/** Codes, a byte each, and what they share. */
struct kt_cuda_codes {
    uint64_t codes;
    float d, m;
};

/** 8 elements of a byte's nibble each, in order, as bytes. */
KT_CUDA_BOTH uint64_t kt_cuda_spread(uint64_t nibbles)
{
    nibbles = (nibbles | nibbles << 16) & 0x0000ffff0000ffffu;
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ff00ff00ffu;
    return (nibbles | nibbles << 4) & 0x0f0f0f0f0f0f0f0fu;
}

KT_CUDA_BOTH struct kt_cuda_codes kt_cuda_q8_0(const uint8_t *block, int32_t at, int32_t n,
                                               int32_t align)
{
    struct kt_cuda_codes c = {kt_cuda_bytes(block + 2 + at, n, align), 0, 0};
    c.d = kt_cuda_f16((uint32_t)kt_cuda_bytes(block, 2, align));
    return c;
}

KT_CUDA_BOTH struct kt_cuda_codes kt_cuda_q4_0(const uint8_t *block, int32_t at, int32_t n,
                                               int32_t align)
{
    struct kt_cuda_codes c = {kt_cuda_bytes(block + 2 + at % 16, n, align), 0, 0};
    c.codes = c.codes >> at / 16 * 4 & 0x0f0f0f0f0f0f0f0fu;
    c.d = kt_cuda_f16((uint32_t)kt_cuda_bytes(block, 2, align));
    return c;
}

/** Parts of 32 elements; where their scales and minima are: gguf_k_quants.c. */
KT_CUDA_BOTH struct kt_cuda_codes kt_cuda_q4_k(const uint8_t *block, int32_t at, int32_t n,
                                               int32_t align)
{
    const uint8_t *s = block + 4;
    int32_t part = at / 32, scale, min;
    uint32_t pair = (uint32_t)kt_cuda_bytes(block, 4, align < 4 ? align : 4);
    struct kt_cuda_codes c = {kt_cuda_bytes(block + 16 + part / 2 * 32 + at % 32, n, align), 0, 0};
    if (part < 4) {
        scale = s[part] & 63;
        min = s[part + 4] & 63;
    } else {
        scale = (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
        min = s[part + 4] >> 4 | s[part] >> 6 << 4;
    }
    c.codes = c.codes >> part % 2 * 4 & 0x0f0f0f0f0f0f0f0fu;
    c.d = kt_cuda_f16(pair & 0xffffu) * (float)scale;
    c.m = kt_cuda_f16(pair >> 16) * (float)min;
    return c;
}

KT_CUDA_BOTH struct kt_cuda_codes kt_cuda_q6_k(const uint8_t *block, int32_t at, int32_t n,
                                               int32_t align)
{
    int32_t run = at / 32, place = at % 32;
    uint64_t low = kt_cuda_bytes(block + run / 4 * 64 + run % 2 * 32 + place, n, align);
    uint64_t high = kt_cuda_bytes(block + 128 + run / 4 * 32 + place, n, align);
    struct kt_cuda_codes c;
    c.codes = (low >> run % 4 / 2 * 4 & 0x0f0f0f0f0f0f0f0fu) |
              (high >> run % 4 * 2 & 0x0303030303030303u) << 4;
    c.d = kt_cuda_f16((uint32_t)kt_cuda_bytes(block + 208, 2, align)) *
          (float)(int8_t)block[192 + at / 16];
    c.m = 0;
    return c;
}

/** Those of n elements from `col` on: 1, or KT_CUDA_RUN from a multiple of it on. Not for F32, F16
 * and BF16. */
KT_CUDA_BOTH struct kt_cuda_codes kt_cuda_codes_at(kt_dtype dtype, const uint8_t *row, int64_t col,
                                                   int32_t n, int32_t align)
{
    int32_t size = kt_cuda_block(dtype), at = (int32_t)(col % size);
    const uint8_t *block = row + col / size * kt_cuda_block_bytes(dtype);
    struct kt_cuda_codes c = {0, 1, 0};
    switch (dtype) {
    case KT_DTYPE_Q8_0:
        return kt_cuda_q8_0(block, at, n, align);
    case KT_DTYPE_Q4_0:
        return kt_cuda_q4_0(block, at, n, align);
    case KT_DTYPE_Q4_K:
        return kt_cuda_q4_k(block, at, n, align);
    case KT_DTYPE_Q6_K:
        return kt_cuda_q6_k(block, at, n, align);
    case KT_DTYPE_I4:
        c.codes = n == 1 ? (uint64_t)(block[0] >> at * 4 & 15)
                         : kt_cuda_spread(kt_cuda_bytes(block, n / 2, align));
        return c;
    default:
        c.codes = kt_cuda_bytes(block, n, align);
        return c;
    }
}

KT_CUDA_BOTH float kt_cuda_code_value(kt_dtype dtype, const struct kt_cuda_codes *c, int32_t i)
{
    uint32_t code = (uint32_t)(c->codes >> 8 * i) & 0xffu;
    switch (dtype) {
    case KT_DTYPE_F8_E4M3:
        return kt_cuda_f8_e4m3(code);
    case KT_DTYPE_I8:
        return (float)(int8_t)code;
    case KT_DTYPE_I4:
        return (float)((int32_t)code - 8);
    case KT_DTYPE_Q8_0:
        return c->d * (float)(int8_t)code;
    case KT_DTYPE_Q4_0:
        return c->d * (float)((int32_t)code - 8);
    case KT_DTYPE_Q4_K:
        return c->d * (float)code - c->m;
    default:
        return c->d * (float)((int32_t)code - 32);
    }
}

/** The stored element `col` of a row. */
KT_CUDA_BOTH float kt_cuda_decode_element(kt_dtype dtype, const uint8_t *row, int64_t col)
{
    switch (dtype) {
    case KT_DTYPE_F32:
        return kt_cuda_float_of((uint32_t)kt_cuda_bytes(row + col * 4, 4, 1));
    case KT_DTYPE_F16:
        return kt_cuda_f16((uint32_t)kt_cuda_bytes(row + col * 2, 2, 1));
    case KT_DTYPE_BF16:
        return kt_cuda_float_of((uint32_t)kt_cuda_bytes(row + col * 2, 2, 1) << 16);
    default: {
        struct kt_cuda_codes c = kt_cuda_codes_at(dtype, row, col, 1, 1);
        return kt_cuda_code_value(dtype, &c, 0);
    }
    }
}

/** The stored elements [col, col + KT_CUDA_RUN) of a row, which is aligned to kt_cuda_run_align;
 * col is a multiple of KT_CUDA_RUN. */
KT_CUDA_BOTH void kt_cuda_decode_run(kt_dtype dtype, const uint8_t *row, int64_t col, float *to)
{
    if (dtype == KT_DTYPE_F32) {
        for (int32_t i = 0; i < KT_CUDA_RUN; i += 2) {
            uint64_t pair = kt_cuda_bytes(row + (col + i) * 4, 8, 8);
            to[i] = kt_cuda_float_of((uint32_t)pair);
            to[i + 1] = kt_cuda_float_of((uint32_t)(pair >> 32));
        }
    } else if (dtype == KT_DTYPE_F16 || dtype == KT_DTYPE_BF16) {
        for (int32_t i = 0; i < KT_CUDA_RUN; i++) {
            uint64_t four = kt_cuda_bytes(row + (col + i / 4 * 4) * 2, 8, 8);
            uint32_t half = (uint32_t)(four >> i % 4 * 16) & 0xffffu;
            to[i] = dtype == KT_DTYPE_F16 ? kt_cuda_f16(half) : kt_cuda_float_of(half << 16);
        }
    } else {
        struct kt_cuda_codes c =
            kt_cuda_codes_at(dtype, row, col, KT_CUDA_RUN, kt_cuda_run_align(dtype));
        for (int32_t i = 0; i < KT_CUDA_RUN; i++)
            to[i] = kt_cuda_code_value(dtype, &c, i);
    }
}

#endif
