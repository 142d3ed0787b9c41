/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_template.h
 * Decoders of weights, written once and included by the file of each instruction set from AVX2 on.
 * A row is decoded by units of 32 elements; what is no whole unit, has a scale out of the common
 * range or an unusual format goes to plain C. Before including, define VECTOR, VECTOR_LANES,
 * VECTOR_SET(x), VECTOR_MULTIPLY(x, y), VECTOR_SUBTRACT(x, y) widen_bytes(bytes, v)     v = 32
 * signed bytes of a __m256i as float32 widen_f8(codes, v)        v = 32 codes of E4M3 / 256
 *   store_unit(decoding, to, v)
 * and, where tables are worth it, DECODE_TABLES, the number of codes that are looked up at a time,
 * struct code_table (its member `scale` is 0 at first), make_table(table, dtype, scale) and
 * look_up_f8, look_up_i4(decoding, table, codes, to).
 * Defines `decoders`, the values of enum kt_decoding. */
#include <math.h>
#include <string.h>

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

/* A row of a call. */
struct decode_call {
    const struct kt_weight *w;
    int64_t row;         /* of the weight */
    const uint8_t *data; /* of that row */
    int64_t col, ahead;
    char *to; /* of element (row, col) */
};

static inline int64_t element_bytes(enum kt_decoding decoding)
{
    return decoding == KT_DECODE_BF16 ? 2 : 4;
}

/* Elements [begin, end) of the row in plain C. */
static __attribute__((noinline)) void
decode_rest(enum kt_decoding decoding, const struct decode_call *d, int64_t begin, int64_t end)
{
    kt_decoders_c[decoding](d->w, d->row, begin, 1, end - begin, 0,
                            d->to + (begin - d->col) * element_bytes(decoding), 0);
}

/* Elements [begin, end), which share a scale: factor times what the unit function gives. A unit
 * takes unit_bytes, or about as many. */
static ALWAYS_INLINE void decode_run(const enum kt_decoding decoding, unit_fn unit,
                                     const int64_t alignment, const int64_t unit_bytes,
                                     const struct decode_call *d, int64_t begin, int64_t end,
                                     const int scaled, float factor)
{
    int64_t at = kt_min_i64((begin + alignment - 1) / alignment * alignment, end);
    char *to = d->to + (at - d->col) * element_bytes(decoding);
    if (begin < at)
        decode_rest(decoding, d, begin, at);
    for (; at + UNIT <= end; at += UNIT, to += UNIT * element_bytes(decoding)) {
        VECTOR v[VECTORS];
        __builtin_prefetch(d->data + at / UNIT * unit_bytes + d->ahead);
        unit(d->data, at, v);
        if (scaled)
            multiply(v, factor);
        store_unit(decoding, to, v);
    }
    if (at < end)
        decode_rest(decoding, d, at, end);
}

/* Scales of 2^-100 to 2^100, with which no product leaves the range of normal numbers. */
static inline int is_common(float scale)
{
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    return (bits >> 23 & 255) - 27 < 200;
}

/* Elements [begin, end) of a format whose scales lie apart; unit_factor makes up for the unit
 * function's. */
static ALWAYS_INLINE void decode_scaled(const enum kt_decoding decoding, unit_fn unit,
                                        const int64_t alignment, const int64_t unit_bytes,
                                        const float unit_factor, const struct decode_call *d,
                                        int64_t begin, int64_t end, float scale)
{
    if (is_common(scale))
        decode_run(decoding, unit, alignment, unit_bytes, d, begin, end, 1, scale * unit_factor);
    else
        decode_rest(decoding, d, begin, end);
}

#if defined(DECODE_TABLES)
/* The same by a table of what the codes become under the scale, made anew when it changes. A lookup
 * returns whether it met a NaN, which it cannot give. */
static ALWAYS_INLINE void decode_looked_up(const enum kt_decoding decoding, const kt_dtype dtype,
                                           const struct decode_call *d, int64_t begin, int64_t end,
                                           float scale, struct code_table *table)
{
    const int is_i4 = dtype == KT_DTYPE_I4;
    int64_t first = is_i4 ? begin + begin % 2 : begin, at = first;
    char *to = d->to + (at - d->col) * element_bytes(decoding);
    int is_nan = 0;
    if (is_common(scale) && at + DECODE_TABLES <= end && table->scale != scale)
        make_table(table, dtype, scale);
    for (; is_common(scale) && at + DECODE_TABLES <= end; at += DECODE_TABLES) {
        const uint8_t *codes = d->data + (is_i4 ? at / 2 : at);
        __builtin_prefetch(codes + d->ahead);
        is_nan |=
            is_i4 ? look_up_i4(decoding, table, codes, to) : look_up_f8(decoding, table, codes, to);
        to += DECODE_TABLES * element_bytes(decoding);
    }
    if (is_nan || begin < first)
        decode_rest(decoding, d, begin, is_nan ? at : first);
    if (at < end && is_i4)
        decode_scaled(decoding, unit_i4, 2, UNIT / 2, 1, d, at, end, scale);
    else if (at < end)
        decode_scaled(decoding, unit_f8, 1, UNIT, 256, d, at, end, scale);
}
#else
struct code_table {
    float scale;
};
#endif

/* Elements [begin, end) of a row, which share a scale. */
static ALWAYS_INLINE void decode_segment(const enum kt_decoding decoding,
                                         const struct decode_call *d, int64_t begin, int64_t end,
                                         float scale, struct code_table *table)
{
    (void)table;
    switch (d->w->dtype) {
    case KT_DTYPE_F8_E4M3:
#if defined(DECODE_TABLES)
        if (decoding != KT_DECODE_F32) {
            decode_looked_up(decoding, KT_DTYPE_F8_E4M3, d, begin, end, scale, table);
            break;
        }
#endif
        decode_scaled(decoding, unit_f8, 1, UNIT, 256, d, begin, end, scale);
        break;
    case KT_DTYPE_I4:
#if defined(DECODE_TABLES)
        if (decoding != KT_DECODE_F32) {
            decode_looked_up(decoding, KT_DTYPE_I4, d, begin, end, scale, table);
            break;
        }
#endif
        decode_scaled(decoding, unit_i4, 2, UNIT / 2, 1, d, begin, end, scale);
        break;
    case KT_DTYPE_I8:
        decode_scaled(decoding, unit_i8, 1, UNIT, 1, d, begin, end, scale);
        break;
    case KT_DTYPE_Q8_0:
        decode_run(decoding, unit_q8_0, UNIT, 34, d, begin, end, 0, 1);
        break;
    case KT_DTYPE_Q4_0:
        decode_run(decoding, unit_q4_0, UNIT, 18, d, begin, end, 0, 1);
        break;
    case KT_DTYPE_Q4_K:
        decode_run(decoding, unit_q4_k, UNIT, 18, d, begin, end, 0, 1);
        break;
    case KT_DTYPE_Q6_K:
        decode_run(decoding, unit_q6_k, UNIT, 26, d, begin, end, 0, 1);
        break;
    default:
        decode_rest(decoding, d, begin, end);
    }
}

/* Columns [begin, end) of all rows; scale: of the first row, NULL = 1. */
static ALWAYS_INLINE void decode_columns(const enum kt_decoding decoding, struct decode_call d,
                                         int64_t rows, int64_t ld, int64_t begin, int64_t end,
                                         const float *scale)
{
    const struct kt_weight *w = d.w;
    int64_t row_bytes = (int64_t)kt_format_row_bytes(w->dtype, w->cols);
    int64_t left = scale ? w->scale_rows - (w->first_row + d.row) % w->scale_rows : rows;
    struct code_table table = {0};
    for (int64_t r = 0; r < rows; r++) {
        decode_segment(decoding, &d, begin, end, scale ? *scale : 1.0f, &table);
        d.row++;
        d.data += row_bytes;
        d.to += ld * element_bytes(decoding);
        if (--left == 0 && scale) {
            scale += w->scale_ld;
            left = w->scale_rows;
        }
    }
}

/* Blocks of GGUF have scales of their own. */
static int has_vectors(const struct kt_weight *w)
{
    return !w->scale || w->dtype == KT_DTYPE_F8_E4M3 || w->dtype == KT_DTYPE_I8 ||
           w->dtype == KT_DTYPE_I4;
}

/* Scale by scale through the columns, so that rows that share one follow each other. */
static ALWAYS_INLINE void decode(const enum kt_decoding decoding, const struct kt_weight *w,
                                 int64_t row, int64_t col, int64_t rows, int64_t cols,
                                 int64_t ahead, void *to, int64_t ld)
{
    int64_t row_bytes = (int64_t)kt_format_row_bytes(w->dtype, w->cols), end = col + cols;
    struct decode_call d = {w, row, (const uint8_t *)w->data + row * row_bytes, col, ahead, to};
    if (!has_vectors(w)) {
        kt_decoders_c[decoding](w, row, col, rows, cols, ahead, to, ld);
        return;
    }
    if (!w->scale) {
        decode_columns(decoding, d, rows, ld, col, end, NULL);
        return;
    }
    int64_t i = col / w->scale_cols;
    const float *scale = w->scale + (w->first_row + row) / w->scale_rows * w->scale_ld + i;
    for (int64_t begin = col; begin < end; scale++) {
        int64_t stop = kt_min_i64(++i * w->scale_cols, end);
        decode_columns(decoding, d, rows, ld, begin, stop, scale);
        begin = stop;
    }
}

#define DECODER(name, decoding)                                                                    \
    static void name(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,            \
                     int64_t cols, int64_t ahead, void *to, int64_t ld)                            \
    {                                                                                              \
        decode(decoding, w, row, col, rows, cols, ahead, to, ld);                                  \
    }
DECODER(decode_f32, KT_DECODE_F32)
DECODER(decode_rounded, KT_DECODE_ROUNDED)
DECODER(decode_bf16, KT_DECODE_BF16)

#define DECODERS                                                                                   \
    {                                                                                              \
        [KT_DECODE_F32] = decode_f32, [KT_DECODE_ROUNDED] = decode_rounded,                        \
        [KT_DECODE_BF16] = decode_bf16                                                             \
    }
