/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF's first formats, with a scale for 32 elements: Q8_0 and Q4_0. */
#include "weights/formats.h"
#include "weights/gguf_blocks.h"

struct q8_0 {
    struct kt_gguf_half d;
    int8_t q[KT_GGUF_BLOCK];
};

struct q4_0 {
    struct kt_gguf_half d;
    uint8_t q[KT_GGUF_BLOCK / 2];
};

_Static_assert(sizeof(struct q8_0) == 34 && sizeof(struct q4_0) == 18,
               "blocks must have the sizes of the format");

void kt_decode_q8_0(int64_t n, const void *blocks, float *to)
{
    const struct q8_0 *b = blocks;
    for (; n > 0; n--, b++, to += KT_GGUF_BLOCK)
        for (int i = 0; i < KT_GGUF_BLOCK; i++)
            to[i] = kt_gguf_widen(b->d) * (float)b->q[i];
}

void kt_decode_q4_0(int64_t n, const void *blocks, float *to)
{
    const struct q4_0 *b = blocks;
    for (; n > 0; n--, b++, to += KT_GGUF_BLOCK) {
        for (int i = 0; i < KT_GGUF_BLOCK / 2; i++) {
            to[i] = kt_gguf_widen(b->d) * (float)((b->q[i] & 15) - 8);
            to[i + KT_GGUF_BLOCK / 2] = kt_gguf_widen(b->d) * (float)((b->q[i] >> 4) - 8);
        }
    }
}
