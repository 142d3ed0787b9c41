/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/formats.h
 * What format.c's table is made of: decoders and encoders, a file for each family of formats. Their
 * signatures are those of struct kt_format. */
#ifndef KT_WEIGHTS_FORMATS_H
#define KT_WEIGHTS_FORMATS_H

#include <kt/types.h>

/* floats.c */
void kt_decode_f32(int64_t n, const void *blocks, float *to);
void kt_decode_f16(int64_t n, const void *blocks, float *to);
void kt_decode_bf16(int64_t n, const void *blocks, float *to);
void kt_encode_f32(int64_t n, const float *x, float scale, void *to);
void kt_encode_bf16(int64_t n, const float *x, float scale, void *to);

/* f8_e4m3.c */
void kt_decode_f8_e4m3(int64_t n, const void *blocks, float *to);
void kt_encode_f8_e4m3(int64_t n, const float *x, float scale, void *to);

/* ints.c */
void kt_decode_i8(int64_t n, const void *blocks, float *to);
void kt_decode_i4(int64_t n, const void *blocks, float *to);
void kt_encode_i8(int64_t n, const float *x, float scale, void *to);
void kt_encode_i4(int64_t n, const float *x, float scale, void *to);

/* gguf_legacy.c and gguf_k_quants.c */
void kt_decode_q8_0(int64_t n, const void *blocks, float *to);
void kt_decode_q4_0(int64_t n, const void *blocks, float *to);
void kt_decode_q4_k(int64_t n, const void *blocks, float *to);
void kt_decode_q6_k(int64_t n, const void *blocks, float *to);

#endif
