/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF's "k-quants", with scales of scales in 256 elements: Q4_K and Q6_K. */
#include "weights/formats.h"
#include "weights/gguf_blocks.h"

struct q4_k {
    struct kt_gguf_half d, dmin;
    uint8_t scales[12];
    uint8_t q[KT_GGUF_SUPER_BLOCK / 2];
};

struct q6_k {
    uint8_t low[KT_GGUF_SUPER_BLOCK / 2], high[KT_GGUF_SUPER_BLOCK / 4];
    int8_t scales[KT_GGUF_SUPER_BLOCK / 16];
    struct kt_gguf_half d;
};

_Static_assert(sizeof(struct q4_k) == 144 && sizeof(struct q6_k) == 210,
               "blocks must have the sizes of the format");

/* Scale and minimum of part i of 8, 6 bits each: of the first four they are the low bits of bytes
 * i and i + 4; of the last four the low bits are the nibbles of byte i + 4, and the high two are
 * what the first eight bytes had left. */
static void q4_k_part(const uint8_t *s, int i, int *scale, int *min)
{
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[i + 4] & 63;
    } else {
        *scale = (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
        *min = s[i + 4] >> 4 | s[i] >> 6 << 4;
    }
}

/* Parts 2i and 2i + 1, of 32 elements each, are the low and the high nibbles of 32 bytes. */
void kt_decode_q4_k(int64_t n, const void *blocks, float *to)
{
    const struct q4_k *b = blocks;
    for (; n > 0; n--, b++) {
        for (int part = 0; part < 8; part++, to += KT_GGUF_BLOCK) {
            const uint8_t *q = b->q + part / 2 * KT_GGUF_BLOCK;
            int scale, min, shift = part % 2 * 4;
            q4_k_part(b->scales, part, &scale, &min);
            float d = kt_gguf_widen(b->d) * (float)scale, m = kt_gguf_widen(b->dmin) * (float)min;
            for (int i = 0; i < KT_GGUF_BLOCK; i++)
                to[i] = d * (float)(q[i] >> shift & 15) - m;
        }
    }
}

/* A half of 128 elements is four runs of 32. Their low nibbles are, in order, the low nibbles of
 * the first and of the second 32 bytes, then the high ones of both; their two high bits are pairs
 * of bits of 32 bytes. A scale counts for 16 elements. */
void kt_decode_q6_k(int64_t n, const void *blocks, float *to)
{
    const struct q6_k *b = blocks;
    for (; n > 0; n--, b++) {
        for (int run = 0; run < 8; run++, to += KT_GGUF_BLOCK) {
            const uint8_t *low = b->low + run / 4 * 64 + run % 2 * 32;
            const uint8_t *high = b->high + run / 4 * 32;
            int low_shift = run % 4 / 2 * 4, high_shift = run % 4 * 2;
            for (int i = 0; i < KT_GGUF_BLOCK; i++) {
                int q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
                to[i] = kt_gguf_widen(b->d) * (float)b->scales[run * 2 + i / 16] * (float)(q - 32);
            }
        }
    }
}
