/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2, F16C. */
#include <immintrin.h>

#define VECTOR __m256
#define VECTOR_LANES 8
#define VECTOR_SET(x) _mm256_set1_ps(x)
#define VECTOR_MULTIPLY(x, y) _mm256_mul_ps(x, y)
#define VECTOR_SUBTRACT(x, y) _mm256_sub_ps(x, y)
#define BITS __m256i
#define V(name) _mm256_##name
#define LOAD_BITS(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define STORE_BITS(p, x) _mm256_storeu_si256((__m256i *)(void *)(p), x)
#define LOAD_HALF(p) _mm_loadu_si128((const __m128i *)(const void *)(p))

#include "backends/cpu/kernels.h"

/* The order of 32 codes from which unpacking gives results in the order of memory. */
static inline __m256i order_codes(enum kt_decoding decoding, __m256i codes)
{
    if (decoding == KT_DECODE_BF16)
        return _mm256_permute4x64_epi64(codes, 0xd8);
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

static inline bool any_equal(__m256i a, __m256i b)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b));
}

#include "backends/cpu/decode_table.h"

static inline void widen_bytes(__m256i bytes, __m256 v[4])
{
    __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    v[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
    v[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(low, 8)));
    v[2] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high));
    v[3] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(high, 8)));
}

static inline void widen_f8(const uint8_t *codes, __m256 v[4])
{
    for (int i = 0; i < 2; i++) {
        __m256i half = widen_codes(_mm256_cvtepi8_epi16(LOAD_HALF(codes + 16 * i)));
        v[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
        v[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    }
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

#include "backends/cpu/decode_template.h"

const kt_decode_fn kt_decoders_avx2[KT_DECODINGS] = DECODERS;
