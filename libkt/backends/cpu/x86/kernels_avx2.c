/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2, FMA, F16C. bfloat16 factors are rounded and multiplied as float32. */
#include <immintrin.h>

#include "backends/cpu/rows_template.h"
#include "core/memory.h"

static const int32_t lane_masks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

static inline __m256i first_lanes(int64_t n)
{
    n = n > 8 ? 8 : n < 0 ? 0 : n;
    return _mm256_loadu_si256((const __m256i *)(const void *)(lane_masks + 8 - n));
}

/* Whole vectors go around the masked instructions: AMD's processors take tens of cycles to store by
 * a mask. */
static inline __m256 load_lanes(const float *p, int64_t n)
{
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}

static inline void store_lanes(float *p, int64_t n, __m256 x)
{
    if (n >= 8)
        _mm256_storeu_ps(p, x);
    else
        _mm256_maskstore_ps(p, first_lanes(n), x);
}

#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TILE_UNROLL 2
#define VECTOR __m256
#define VECTOR_LANES 8
#define VECTOR_ZERO() _mm256_setzero_ps()
#define VECTOR_LOAD(p) _mm256_loadu_ps(p)
#define VECTOR_BROADCAST(p) _mm256_broadcast_ss(p)
#define VECTOR_SET(x) _mm256_set1_ps(x)
#define VECTOR_MULTIPLY_ADD(x, y, sum) _mm256_fmadd_ps(x, y, sum)
#define VECTOR_SCALE_ADD(x, y, z) _mm256_fmadd_ps(x, y, z)
#define VECTOR_LOAD_PART(p, n) load_lanes(p, n)
#define VECTOR_STORE_PART(p, n, x) store_lanes(p, n, x)
#define UNITS(k) (k)
#include "backends/cpu/tile_template.h"

enum { NR = TILE_VECTORS * VECTOR_LANES };

static inline __m256 round_bf16(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    up = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan));
    return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000)));
}

/* The first n (at most 8) elements from `index` of a row as float32, then zeros. */
static inline __m256 load_part(kt_dtype dtype, const char *row, int64_t index, int64_t n)
{
    if (dtype == KT_DTYPE_F32)
        return load_lanes((const float *)(const void *)row + index, n);
    __m128i half = _mm_setzero_si128();
    if (n >= 8)
        half = _mm_loadu_si128((const __m128i *)(const void *)(row + index * 2));
    else if (n > 0)
        memcpy(&half, row + index * 2, (size_t)n * 2);
    if (dtype == KT_DTYPE_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* r[i] lane j <-> r[j] lane i */
static inline void transpose8(__m256 r[8])
{
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

static inline float add_vector(__m256 x)
{
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

#define DOT_ROWS 4
#define DOT_COLS 3
#define DOT_DEPTH 8
#define DOT_ELEMENT_SIZE 4
#define DOT_LOAD_A(row, p, n) load_part(KT_DTYPE_F32, row, p, n)
#define DOT_LOAD_B(dtype, row, p, n) load_part(dtype, row, p, n)
#define VECTOR_REDUCE(x) add_vector(x)
#include "backends/cpu/dot_template.h"

#define VECTOR_STORE(p, x) _mm256_storeu_ps(p, x)
#define OUTER_UNITS 4
#define OUTER_DEPTH 1
#define OUTER_ELEMENT_SIZE 4
#define OUTER_LOAD_B(dtype, b, b_bytes, depth, col, n, w)                                          \
    ((w)[0] = load_part(dtype, b, col, n), (w)[1] = load_part(dtype, b, (col) + 8, (n)-8))
#include "backends/cpu/outer_template.h"

static void convert_bf16(int64_t n, const float *from, void *to)
{
    float *out = to;
    for (int64_t i = 0; i < n; i += 8)
        store_lanes(out + i, n - i, round_bf16(load_lanes(from + i, n - i)));
}

static inline __attribute__((always_inline)) void pack_nt(const kt_dtype dtype, const bool bf16,
                                                          int64_t k, int64_t cols,
                                                          const struct kt_matrix *b, float *panels)
{
    int64_t row_bytes = b->ld * (int64_t)(dtype == KT_DTYPE_F32 ? 4 : 2);
    for (int64_t j = 0; j < (cols + NR - 1) / NR * NR; j += VECTOR_LANES) {
        float *panel = panels + j / NR * k * NR;
        for (int64_t p = 0; p < k; p += VECTOR_LANES) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) {
                r[i] = VECTOR_ZERO();
                if (j + i < cols)
                    r[i] = load_part(dtype, (const char *)b->data + (j + i) * row_bytes, p, k - p);
                if (bf16 && dtype != KT_DTYPE_BF16)
                    r[i] = round_bf16(r[i]);
            }
            transpose8(r);
            for (int i = 0; i < kt_min_i64(8, k - p); i++)
                _mm256_storeu_ps(panel + (p + i) * NR + j % NR, r[i]);
        }
    }
}

#include "backends/cpu/x86/pack_template.h"

void kt_kernels_init_avx2(struct kt_kernels *kernels)
{
    fill_kernels(kernels, 32, 64);
}
