/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2, F16C. */
#include <immintrin.h>

#include "backends/cpu/decode_table.h"

#define VECTOR __m256
#define VECTOR_LANES 8
#define VECTOR_SET(x) _mm256_set1_ps(x)
#define VECTOR_MULTIPLY(x, y) _mm256_mul_ps(x, y)
#define VECTOR_SUBTRACT(x, y) _mm256_sub_ps(x, y)

static inline void widen_bytes(__m256i bytes, __m256 v[4])
{
    __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    v[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
    v[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(low, 8)));
    v[2] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high));
    v[3] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(high, 8)));
}

/* The 7 bits of magnitude at bit 7 of a binary16, the sign at its top: the number / 256, subnormal
 * ones included. All ones carry into bit 14 and become a NaN. */
static inline void widen_f8(const uint8_t *codes, __m256 v[4])
{
    for (int i = 0; i < 2; i++) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(codes + 16 * i));
        __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
        half = _mm256_and_si256(half, _mm256_set1_epi16((short)0xbfff));
        __m256i nan = _mm256_and_si256(_mm256_add_epi16(half, _mm256_set1_epi16(0x80)),
                                       _mm256_set1_epi16(0x4000));
        half = _mm256_or_si256(half, nan);
        v[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
        v[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    }
}

/* To bfloat16, to nearest even, in the upper half of each lane; the lower half is left over. No NaN
 * here has a payload that could carry. */
static inline __m256i round_up_halves(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

static inline __attribute__((always_inline)) void store_unit(const enum kt_decoding decoding,
                                                             char *to, const __m256 v[4])
{
    __m256i *out = (__m256i *)(void *)to;
    for (int i = 0; i < 4; i += 2) {
        if (decoding == KT_DECODE_F32) {
            _mm256_storeu_si256(out + i, _mm256_castps_si256(v[i]));
            _mm256_storeu_si256(out + i + 1, _mm256_castps_si256(v[i + 1]));
            continue;
        }
        __m256i a = round_up_halves(v[i]), b = round_up_halves(v[i + 1]);
        if (decoding == KT_DECODE_ROUNDED) {
            __m256i upper = _mm256_set1_epi32((int)0xffff0000);
            _mm256_storeu_si256(out + i, _mm256_and_si256(a, upper));
            _mm256_storeu_si256(out + i + 1, _mm256_and_si256(b, upper));
            continue;
        }
        a = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
        _mm256_storeu_si256(out + i / 2, _mm256_permute4x64_epi64(a, 0xd8));
    }
}

/* -- tables, see decode_table.h -----------------------------------------------------------------
 */

#define DECODE_TABLES 32

static inline int has_tables(enum kt_decoding decoding)
{
    return decoding != KT_DECODE_F32;
}

struct code_table {
    float scale;
    __m256i low, high; /* bytes of 16 bfloat16 in both lanes */
};

static void make_table(struct code_table *t, kt_dtype dtype, float scale)
{
    const float *values = dtype == KT_DTYPE_I4 ? i4_values : f8_values;
    __m256 factor = _mm256_set1_ps(scale);
    __m256i a = round_up_halves(_mm256_mul_ps(_mm256_loadu_ps(values), factor));
    __m256i b = round_up_halves(_mm256_mul_ps(_mm256_loadu_ps(values + 8), factor));
    a = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    a = _mm256_permute4x64_epi64(a, 0xd8);
    a = _mm256_packus_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(a, 8));
    a = _mm256_permute4x64_epi64(a, 0xd8);
    t->low = _mm256_permute2x128_si256(a, a, 0x00);
    t->high = _mm256_permute2x128_si256(a, a, 0x11);
    t->scale = scale;
}

/* The order of 32 codes from which unpacking gives results in the order of memory. */
static inline __m256i order_codes(enum kt_decoding decoding, __m256i codes)
{
    if (decoding == KT_DECODE_BF16)
        return _mm256_permute4x64_epi64(codes, 0xd8);
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

/* bfloat16 of the first and second 8 codes of each lane. */
static inline void store_words(enum kt_decoding decoding, __m256i first, __m256i second, char *to)
{
    __m256i *out = (__m256i *)(void *)to, zero = _mm256_setzero_si256();
    if (decoding == KT_DECODE_BF16) {
        _mm256_storeu_si256(out, first);
        _mm256_storeu_si256(out + 1, second);
        return;
    }
    _mm256_storeu_si256(out, _mm256_unpacklo_epi16(zero, first));
    _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi16(zero, first));
    _mm256_storeu_si256(out + 2, _mm256_unpacklo_epi16(zero, second));
    _mm256_storeu_si256(out + 3, _mm256_unpackhi_epi16(zero, second));
}

/* What a code, in the upper byte of each lane, adds to its mantissa: sign and exponent. */
static inline __m256i sign_and_exponent(__m256i codes)
{
    __m256i exponent = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi16(0x780));
    return _mm256_add_epi16(_mm256_and_si256(codes, _mm256_set1_epi16((short)0x8000)), exponent);
}

static inline int look_up_f8(enum kt_decoding decoding, const struct code_table *t,
                             const uint8_t *from, char *to)
{
    __m256i codes = order_codes(decoding, _mm256_loadu_si256((const __m256i *)(const void *)from));
    __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7f)), zero = {0};
    __m256i normal =
        _mm256_or_si256(_mm256_and_si256(codes, _mm256_set1_epi8(7)), _mm256_set1_epi8(8));
    __m256i index = _mm256_min_epu8(magnitude, normal);
    __m256i low = _mm256_shuffle_epi8(t->low, index), high = _mm256_shuffle_epi8(t->high, index);
    __m256i first = _mm256_add_epi16(_mm256_unpacklo_epi8(low, high),
                                     sign_and_exponent(_mm256_unpacklo_epi8(zero, codes)));
    __m256i second = _mm256_add_epi16(_mm256_unpackhi_epi8(low, high),
                                      sign_and_exponent(_mm256_unpackhi_epi8(zero, codes)));
    store_words(decoding, first, second, to);
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(magnitude, _mm256_set1_epi8(0x7f)));
}

static inline int look_up_i4(enum kt_decoding decoding, const struct code_table *t,
                             const uint8_t *from, char *to)
{
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)from));
    __m256i index =
        _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi8(15));
    index = order_codes(decoding, index);
    __m256i low = _mm256_shuffle_epi8(t->low, index), high = _mm256_shuffle_epi8(t->high, index);
    store_words(decoding, _mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high), to);
    return 0;
}

#include "backends/cpu/decode_template.h"

const kt_decode_fn kt_decoders_avx2[KT_DECODINGS] = DECODERS;
