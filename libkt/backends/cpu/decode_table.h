/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_table.h
 * Decoding by tables of 16 products.
 *
 * Scaling and rounding to bfloat16 commute with a factor of a power of two. So all that E4M3
 * becomes under a scale is told by 16 products: of the 8 subnormal numbers, and of the 8 mantissas
 * of normal numbers as if their exponent were 0, to which that of the code is added. I4 has 16
 * codes anyway. Shuffles look up the low and the high bytes of the products, by the magnitude of a
 * code where it is subnormal, else by 8 + its mantissa: the smaller of the two.
 * Before including, define what decode_bits.h needs, LOAD_BITS(p), STORE_BITS(p, x), LOAD_HALF(p)
 * (half as many bytes), order_codes and any_equal. */
#ifndef KT_BACKENDS_CPU_DECODE_TABLE_H
#define KT_BACKENDS_CPU_DECODE_TABLE_H

#include "backends/cpu/decode_bits.h"
#include "backends/cpu/kernels.h"

#define DECODE_TABLES ((int64_t)sizeof(BITS))

static inline bool has_tables(enum kt_decoding decoding)
{
    return decoding != KT_DECODE_F32;
}

static const float f8_values[16] = {0 * 0x1p-9f,   1 * 0x1p-9f,   2 * 0x1p-9f,   3 * 0x1p-9f,
                                    4 * 0x1p-9f,   5 * 0x1p-9f,   6 * 0x1p-9f,   7 * 0x1p-9f,
                                    8 * 0x1p-10f,  9 * 0x1p-10f,  10 * 0x1p-10f, 11 * 0x1p-10f,
                                    12 * 0x1p-10f, 13 * 0x1p-10f, 14 * 0x1p-10f, 15 * 0x1p-10f};
static const float i4_values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

struct code_table {
    float scale;
    BITS low, high; /* bytes of 16 bfloat16, in each 128 bits */
};

/* bfloat16 of the first and second 8 codes of each 128 bits. */
static inline void store_words(enum kt_decoding decoding, BITS first, BITS second, char *to)
{
    BITS zero = {0};
    if (decoding == KT_DECODE_BF16) {
        STORE_BITS(to, first);
        STORE_BITS(to + sizeof(BITS), second);
        return;
    }
    STORE_BITS(to, V(unpacklo_epi16)(zero, first));
    STORE_BITS(to + sizeof(BITS), V(unpackhi_epi16)(zero, first));
    STORE_BITS(to + 2 * sizeof(BITS), V(unpacklo_epi16)(zero, second));
    STORE_BITS(to + 3 * sizeof(BITS), V(unpackhi_epi16)(zero, second));
}

/* What a code, in the upper byte of each word, adds to its mantissa: sign and exponent. */
static inline BITS sign_and_exponent(BITS codes)
{
    return (codes & V(set1_epi16)((short)0x8000)) |
           (V(srli_epi16)(codes, 4) & V(set1_epi16)(0x780));
}

static inline bool look_up_f8(enum kt_decoding decoding, const struct code_table *t,
                              const uint8_t *from, char *to)
{
    BITS codes = order_codes(decoding, LOAD_BITS(from)), zero = {0};
    BITS magnitude = codes & V(set1_epi8)(0x7f);
    BITS index = V(min_epu8)(magnitude, (codes & V(set1_epi8)(7)) | V(set1_epi8)(8));
    BITS low = V(shuffle_epi8)(t->low, index), high = V(shuffle_epi8)(t->high, index);
    BITS first =
        V(add_epi16)(V(unpacklo_epi8)(low, high), sign_and_exponent(V(unpacklo_epi8)(zero, codes)));
    BITS second =
        V(add_epi16)(V(unpackhi_epi8)(low, high), sign_and_exponent(V(unpackhi_epi8)(zero, codes)));
    store_words(decoding, first, second, to);
    return any_equal(magnitude, V(set1_epi8)(0x7f));
}

static inline bool look_up_i4(enum kt_decoding decoding, const struct code_table *t,
                              const uint8_t *from, char *to)
{
    BITS wide = V(cvtepu8_epi16)(LOAD_HALF(from));
    BITS index = (wide | V(slli_epi16)(wide, 4)) & V(set1_epi8)(15);
    index = order_codes(decoding, index);
    BITS low = V(shuffle_epi8)(t->low, index), high = V(shuffle_epi8)(t->high, index);
    store_words(decoding, V(unpacklo_epi8)(low, high), V(unpackhi_epi8)(low, high), to);
    return false;
}

#endif
