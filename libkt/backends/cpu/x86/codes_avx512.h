/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/codes_avx512.h
 * Codes as bfloat16, for AVX-512 with VBMI and GFNI: E4M3 (OCP 8-bit Floating Point Specification,
 * revision 1.0) without a scale, exactly, by products of bits; I4 by a table. */
#ifndef KT_BACKENDS_CPU_X86_CODES_AVX512_H
#define KT_BACKENDS_CPU_X86_CODES_AVX512_H

#include <immintrin.h>
#include <stdint.h>

enum { WIDENED_CODES = 128 };

/** What 2 x 64 codes become: of every 16 the first 8, and the others. */
struct widened {
    __m512i a_first, a_second, b_first, b_second;
};

/* The bits s abcd mmm become the bytes s a ~a ~a ~a ~a b c and d mmm 0000, since bfloat16 has 120
 * more in its exponent. That is wrong for codes up to 7, which have no leading 1, and for NaN:
 * those, and 8 to 14, with which they are found at once, are looked up. */
static inline __mmask64 rare_codes(__m512i codes)
{
    return _mm512_testn_epi8_mask(_mm512_add_epi8(codes, _mm512_set1_epi8(1)),
                                  _mm512_set1_epi8(0x70));
}

static inline __m512i look_up_lower(__m512i low, __m512i codes, __mmask64 rare)
{
    static const uint8_t bytes[64] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60,
                                      0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, [63] = 0xc0};
    return _mm512_mask_permutexvar_epi8(low, rare, codes, _mm512_loadu_si512(bytes));
}

static inline __m512i look_up_upper(__m512i high, __m512i codes, __mmask64 rare)
{
    static const uint8_t bytes[64] = {0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c,
                                      0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, [63] = 0x7f};
    __m512i sign = codes & _mm512_set1_epi8((char)0x80);
    return _mm512_mask_permutexvar_epi8(high, rare, codes, _mm512_loadu_si512(bytes)) | sign;
}

static inline __attribute__((always_inline)) struct widened codes_to_bf16(__m512i a, __m512i b)
{
    const __m512i lower = _mm512_set1_epi64(0x01020408);
    const __m512i upper = _mm512_set1_epi64(0x1020404040404080);
    __m512i a_low = _mm512_gf2p8affine_epi64_epi8(a, lower, 0);
    __m512i b_low = _mm512_gf2p8affine_epi64_epi8(b, lower, 0);
    __m512i a_high = _mm512_gf2p8affine_epi64_epi8(a, upper, 0x3c);
    __m512i b_high = _mm512_gf2p8affine_epi64_epi8(b, upper, 0x3c);
    __mmask64 rare_a = rare_codes(a), rare_b = rare_codes(b);
    if (__builtin_expect(!_kortestz_mask64_u8(rare_a, rare_b), 0)) {
        a_low = look_up_lower(a_low, a, rare_a);
        b_low = look_up_lower(b_low, b, rare_b);
        a_high = look_up_upper(a_high, a, rare_a);
        b_high = look_up_upper(b_high, b, rare_b);
    }
    return (struct widened){
        _mm512_unpacklo_epi8(a_low, a_high), _mm512_unpackhi_epi8(a_low, a_high),
        _mm512_unpacklo_epi8(b_low, b_high), _mm512_unpackhi_epi8(b_low, b_high)};
}

/** 32 codes of I4 as the table's words; words: what the 16 codes become, twice. Each byte is put
 * into a 32-bit lane, and again 12 bits up, so that each word has a code in its lower 4 bits. The
 * shuffle takes 5 of them, of which the upper one makes no difference. */
static inline __m512i look_up_nibbles(const uint8_t *codes, __m512i words)
{
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)codes));
    return _mm512_permutexvar_epi16(bytes | _mm512_slli_epi32(bytes, 12), words);
}

#endif
