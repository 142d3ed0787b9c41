/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_template.h
 * Decoders of weights, written once and included by the file of each instruction set from AVX2 on.
 * A row is decoded by units of 32 elements; what is no whole unit, has a scale out of the common
 * range or an unusual format goes to plain C. Before including, define VECTOR, VECTOR_LANES,
 * VECTOR_SET(x), VECTOR_MULTIPLY(x, y), VECTOR_SUBTRACT(x, y) widen_bytes(bytes, v)     v = 32
 * signed bytes of a __m256i as float32 widen_f8(codes, v)        v = 32 codes of E4M3 / 256
 *   store_unit(decoding, to, v)
 * Defines `decoders`, the values of enum kt_decoding. */
#include <math.h>

#include "backends/cpu/kernels.h"
#include "core/memory.h"

enum { UNIT = 32, VECTORS = UNIT / VECTOR_LANES, HALF_BYTES = 2 };

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* v = the unit of a row that begins at element `col`, a multiple of the format's alignment. */
typedef void (*unit_fn)(const uint8_t *row, int64_t col, VECTOR v[VECTORS]);

static ALWAYS_INLINE void multiply(VECTOR v[VECTORS], float factor)
{
    for (int i = 0; i < VECTORS; i++)
        v[i] = VECTOR_MULTIPLY(v[i], VECTOR_SET(factor));
}

static ALWAYS_INLINE __m256i load_bytes(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* Scales of GGUF. A NaN becomes one that rounding to bfloat16 leaves a NaN. */
static ALWAYS_INLINE float widen_half(const uint8_t *p)
{
    float x = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(p[0] | p[1] << 8)));
    return x == x ? x : NAN;
}

static ALWAYS_INLINE __m256i low_nibbles(__m256i bytes)
{
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}

static ALWAYS_INLINE __m256i high_nibbles(__m256i bytes)
{
    return low_nibbles(_mm256_srli_epi16(bytes, 4));
}

static ALWAYS_INLINE void unit_f8(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    widen_f8(row + col, v);
}

static ALWAYS_INLINE void unit_i8(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    widen_bytes(load_bytes(row + col), v);
}

static ALWAYS_INLINE void unit_i4(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)(row + col / 2));
    __m256i wide = _mm256_cvtepu8_epi16(pairs);
    __m256i codes = low_nibbles(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)));
    widen_bytes(_mm256_sub_epi8(codes, _mm256_set1_epi8(8)), v);
}

static ALWAYS_INLINE void unit_q8_0(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    const uint8_t *block = row + col / UNIT * (HALF_BYTES + UNIT);
    widen_bytes(load_bytes(block + HALF_BYTES), v);
    multiply(v, widen_half(block));
}

static ALWAYS_INLINE void unit_q4_0(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    const uint8_t *block = row + col / UNIT * (HALF_BYTES + UNIT / 2);
    __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)(block + HALF_BYTES));
    __m256i codes = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs));
    widen_bytes(_mm256_sub_epi8(codes, _mm256_set1_epi8(8)), v);
    multiply(v, widen_half(block));
}

/* See weight_gguf.c for where a part's 6-bit scale and minimum are. */
static ALWAYS_INLINE void unit_q4_k(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    const uint8_t *block = row + col / 256 * 144, *s = block + 2 * HALF_BYTES;
    int part = (int)(col % 256 / UNIT), scale = s[part] & 63, min = s[part + 4] & 63;
    if (part >= 4) {
        scale = (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
        min = s[part + 4] >> 4 | s[part] >> 6 << 4;
    }
    __m256i pairs = load_bytes(block + 16 + part / 2 * UNIT);
    widen_bytes(part % 2 ? high_nibbles(pairs) : low_nibbles(pairs), v);
    multiply(v, widen_half(block) * (float)scale);
    float least = widen_half(block + HALF_BYTES) * (float)min;
    for (int i = 0; i < VECTORS; i++)
        v[i] = VECTOR_SUBTRACT(v[i], VECTOR_SET(least));
}

static ALWAYS_INLINE void unit_q6_k(const uint8_t *row, int64_t col, VECTOR v[VECTORS])
{
    const uint8_t *block = row + col / 256 * 210;
    int run = (int)(col % 256 / UNIT);
    __m256i low = load_bytes(block + run / 4 * 64 + run % 2 * UNIT);
    __m256i high = load_bytes(block + 128 + run / 4 * UNIT);
    high = _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128(run % 4 * 2)),
                            _mm256_set1_epi8(3));
    low = run % 4 / 2 ? high_nibbles(low) : low_nibbles(low);
    __m256i codes = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
    widen_bytes(_mm256_sub_epi8(codes, _mm256_set1_epi8(32)), v);
    const int8_t *scales = (const int8_t *)block + 192 + 2 * run;
    for (int i = 0; i < VECTORS; i++) {
        float scale = widen_half(block + 208) * (float)scales[i * VECTOR_LANES / 16];
        v[i] = VECTOR_MULTIPLY(v[i], VECTOR_SET(scale));
    }
}

struct decode_call {
    const struct kt_weight *w;
    int64_t row;         /* of the weight */
    const uint8_t *data; /* of that row */
    int64_t col;
    char *to; /* of element (row, col) */
};

static inline int64_t element_bytes(enum kt_decoding decoding)
{
    return decoding == KT_DECODE_BF16 ? 2 : 4;
}

/* Elements [begin, end) of the row in plain C. */
static void decode_rest(enum kt_decoding decoding, const struct decode_call *d, int64_t begin,
                        int64_t end)
{
    if (begin < end)
        kt_decoders_c[decoding](d->w, d->row, begin, 1, end - begin,
                                d->to + (begin - d->col) * element_bytes(decoding), 0);
}

/* Elements [begin, end), which share a scale: factor times what the unit function gives. */
static ALWAYS_INLINE void decode_run(const enum kt_decoding decoding, unit_fn unit,
                                     const int64_t alignment, const struct decode_call *d,
                                     int64_t begin, int64_t end, const int scaled, float factor)
{
    int64_t from = (begin + alignment - 1) / alignment * alignment, at = from;
    char *to = d->to + (from - d->col) * element_bytes(decoding);
    if (from > end)
        from = at = end;
    for (; at + UNIT <= end; at += UNIT, to += UNIT * element_bytes(decoding)) {
        VECTOR v[VECTORS];
        unit(d->data, at, v);
        if (scaled)
            multiply(v, factor);
        store_unit(decoding, to, v);
    }
    decode_rest(decoding, d, begin, from);
    decode_rest(decoding, d, at, end);
}

/* Scales with which no product leaves the range of normal numbers. */
static inline int is_common(float scale)
{
    return fabsf(scale) >= 0x1p-100f && fabsf(scale) < 0x1p100f;
}

/* A scale for every scale_cols elements; unit_factor: what makes up for the unit function's. */
static ALWAYS_INLINE void decode_scaled_row(const enum kt_decoding decoding, unit_fn unit,
                                            const int64_t alignment, const float unit_factor,
                                            const struct decode_call *d, int64_t cols)
{
    const struct kt_weight *w = d->w;
    const float *scale = w->scale;
    int64_t end = d->col + cols, i = 0, width = end;
    if (scale) {
        scale += (w->first_row + d->row) / w->scale_rows * w->scale_ld;
        i = d->col / w->scale_cols;
        width = w->scale_cols;
    }
    for (int64_t begin = d->col; begin < end; i++) {
        int64_t stop = kt_min_i64((i + 1) * width, end);
        float factor = scale ? scale[i] : 1.0f;
        if (is_common(factor))
            decode_run(decoding, unit, alignment, d, begin, stop, 1, factor * unit_factor);
        else
            decode_rest(decoding, d, begin, stop);
        begin = stop;
    }
}

static ALWAYS_INLINE void decode_row(const enum kt_decoding decoding, const struct decode_call *d,
                                     int64_t cols)
{
    int64_t end = d->col + cols;
    switch (d->w->dtype) {
    case KT_DTYPE_F8_E4M3:
        decode_scaled_row(decoding, unit_f8, 1, 256, d, cols);
        break;
    case KT_DTYPE_I8:
        decode_scaled_row(decoding, unit_i8, 1, 1, d, cols);
        break;
    case KT_DTYPE_I4:
        decode_scaled_row(decoding, unit_i4, 2, 1, d, cols);
        break;
    case KT_DTYPE_Q8_0:
        decode_run(decoding, unit_q8_0, UNIT, d, d->col, end, 0, 1);
        break;
    case KT_DTYPE_Q4_0:
        decode_run(decoding, unit_q4_0, UNIT, d, d->col, end, 0, 1);
        break;
    case KT_DTYPE_Q4_K:
        decode_run(decoding, unit_q4_k, UNIT, d, d->col, end, 0, 1);
        break;
    case KT_DTYPE_Q6_K:
        decode_run(decoding, unit_q6_k, UNIT, d, d->col, end, 0, 1);
        break;
    default:
        decode_rest(decoding, d, d->col, end);
    }
}

/* Blocks of GGUF have scales of their own. */
static int has_vectors(const struct kt_weight *w)
{
    return !w->scale || w->dtype == KT_DTYPE_F8_E4M3 || w->dtype == KT_DTYPE_I8 ||
           w->dtype == KT_DTYPE_I4;
}

static ALWAYS_INLINE void decode(const enum kt_decoding decoding, const struct kt_weight *w,
                                 int64_t row, int64_t col, int64_t rows, int64_t cols, void *to,
                                 int64_t ld)
{
    int64_t row_bytes = (int64_t)kt_format_row_bytes(w->dtype, w->cols);
    if (!has_vectors(w)) {
        kt_decoders_c[decoding](w, row, col, rows, cols, to, ld);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        struct decode_call d = {w, row + r, (const uint8_t *)w->data + (row + r) * row_bytes, col,
                                (char *)to + r * ld * element_bytes(decoding)};
        decode_row(decoding, &d, cols);
    }
}

#define DECODER(name, decoding)                                                                    \
    static void name(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,            \
                     int64_t cols, void *to, int64_t ld)                                           \
    {                                                                                              \
        decode(decoding, w, row, col, rows, cols, to, ld);                                         \
    }
DECODER(decode_f32, KT_DECODE_F32)
DECODER(decode_rounded, KT_DECODE_ROUNDED)
DECODER(decode_bf16, KT_DECODE_BF16)

#define DECODERS                                                                                   \
    {                                                                                              \
        [KT_DECODE_F32] = decode_f32, [KT_DECODE_ROUNDED] = decode_rounded,                        \
        [KT_DECODE_BF16] = decode_bf16                                                             \
    }
