/* SPDX-License-Identifier: Apache-2.0 */
/** \file weights/gguf_blocks.h
 * What GGUF's quantised blocks have in common. The blocks are packed: byte arrays and a pair of
 * bytes have no alignment to lose. Each result is rounded to float32 once, so that any order of the
 * products gives the same bits. */
#ifndef KT_WEIGHTS_GGUF_BLOCKS_H
#define KT_WEIGHTS_GGUF_BLOCKS_H

#include "weights/dtype.h"

enum { KT_GGUF_BLOCK = 32, KT_GGUF_SUPER_BLOCK = 256 };

struct kt_gguf_half {
    uint8_t bytes[2];
};

static inline float kt_gguf_widen(struct kt_gguf_half h)
{
    return kt_f16_to_f32((uint16_t)(h.bytes[0] | h.bytes[1] << 8));
}

#endif
