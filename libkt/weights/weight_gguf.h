/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/weight_gguf.h
 * Decoders of GGUF's quantised blocks, for the table in weight.c. Formats: weight.h. Blocks need no
 * alignment. Each result is rounded to float32 once, so that any order of the products gives the
 * same bits. */
#ifndef KT_WEIGHTS_WEIGHT_GGUF_H
#define KT_WEIGHTS_WEIGHT_GGUF_H

#include <kt/types.h>

void kt_decode_q8_0(int64_t n, const void *blocks, float *to);
void kt_decode_q4_0(int64_t n, const void *blocks, float *to);
void kt_decode_q4_k(int64_t n, const void *blocks, float *to);
void kt_decode_q6_k(int64_t n, const void *blocks, float *to);

#endif
