/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/decode_template.h
 * Decoders of weights, written once and included by the file of each instruction set from AVX2 on.
 * A row is decoded by units of 32 elements; what is no whole unit, has a scale out of the common
 * range or an unusual format goes to plain C. Before including, define VECTOR, VECTOR_LANES,
 * VECTOR_SET(x), VECTOR_MULTIPLY(x, y), VECTOR_SUBTRACT(x, y) and
 *   widen_bytes(bytes, v)        v = 32 signed bytes of a __m256i as float32
 *   widen_f8(codes, v)           v = 32 codes of E4M3 / 256
 *   store_unit(decoding, to, v)
 * and for formats that are looked up in tables DECODE_TABLES, the number of codes at a time,
 *   has_tables(decoding)
 *   struct code_table            its member `scale` is 0 at first
 *   make_table(table, dtype, scale)
 *   look_up_f8, look_up_i4(decoding, table, codes, to)
 *                                return whether they met a NaN, which they then did not give.
 * Defines DECODERS, the values of enum kt_decoding. */
#include <math.h>
#include <string.h>

#include "backends/cpu/kernels.h"
#include "core/memory.h"

enum { UNIT = 32, VECTORS = UNIT / VECTOR_LANES, HALF_BYTES = 2 };

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* What is far ahead waits in level-2 cache, or it would push out what is used before it. */
static ALWAYS_INLINE void fetch(const uint8_t *p, int64_t ahead)
{
    enum { FAR = 1 << 15 };
    const void *at = (const void *)((uintptr_t)p + (uintptr_t)ahead);
    if (ahead < -FAR || ahead > FAR)
        __builtin_prefetch(at, 0, 2);
    else
        __builtin_prefetch(at);
}

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

/* Rows and columns of a call. */
struct decode_call {
    const struct kt_weight *w;
    int64_t row, rows;
    int64_t col, ahead;
    char *to; /* of element (row, col) */
    int64_t ld;
};

static inline int64_t element_bytes(enum kt_decoding decoding)
{
    return decoding == KT_DECODE_BF16 ? 2 : 4;
}

/* Elements [begin, end) of `rows` rows from the call's row `first` on, in plain C. */
static __attribute__((noinline)) void decode_rest(enum kt_decoding decoding,
                                                  const struct decode_call *d, int64_t first,
                                                  int64_t rows, int64_t begin, int64_t end)
{
    if (begin < end)
        kt_decoders_c[decoding](d->w, d->row + first, begin, rows, end - begin, 0,
                                d->to + (first * d->ld + begin - d->col) * element_bytes(decoding),
                                d->ld);
}

/* Scales of 2^-100 to 2^100, with which no product leaves the range of normal numbers. */
static inline bool is_common(float scale)
{
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    return (bits >> 23 & 255) - 27 < 200;
}

/* A walk over the rows of a call. */
struct row {
    int64_t index, left; /* left: rows under this scale */
    const uint8_t *data;
    char *to; /* of the call's first column */
    const float *scale;
};

static ALWAYS_INLINE struct row first_row(const struct decode_call *d, const float *scale)
{
    const struct kt_weight *w = d->w;
    int64_t left = w->scale ? w->scale_rows - (w->first_row + d->row) % w->scale_rows : INT64_MAX;
    return (struct row){0, left,
                        (const uint8_t *)w->data +
                            d->row * (int64_t)kt_format_row_bytes(w->dtype, w->cols),
                        d->to, scale};
}

static ALWAYS_INLINE void next_row(const struct decode_call *d, int64_t row_bytes, int64_t to_bytes,
                                   struct row *r)
{
    r->index++;
    r->data += row_bytes;
    r->to += to_bytes;
    if (--r->left == 0) {
        r->scale += d->w->scale_ld;
        r->left = d->w->scale_rows;
    }
}

/* Elements [begin, end) of all rows; scale: of the first row. A unit takes unit_bytes, or about as
 * many. unit_factor makes up for the unit function's; 0: that gives the elements themselves. */
static ALWAYS_INLINE void decode_units(const enum kt_decoding decoding, unit_fn unit,
                                       const int64_t alignment, const int64_t unit_bytes,
                                       const float unit_factor, const struct decode_call *d,
                                       int64_t begin, int64_t end, const float *scale)
{
    const bool scaled = unit_factor != 0;
    int64_t bytes = element_bytes(decoding), ahead = d->ahead, rows = d->rows;
    int64_t row_bytes = (int64_t)kt_format_row_bytes(d->w->dtype, d->w->cols);
    int64_t first = kt_min_i64((begin + alignment - 1) / alignment * alignment, end);
    int64_t stop = first + (end - first) / UNIT * UNIT, skip = (first - d->col) * bytes;
    struct row r = first_row(d, scale);
    for (; r.index < rows; next_row(d, row_bytes, d->ld * bytes, &r)) {
        if (scaled && !is_common(*r.scale)) {
            decode_rest(decoding, d, r.index, 1, first, stop);
            continue;
        }
        float factor = *r.scale * unit_factor;
        char *to = r.to + skip;
        for (int64_t at = first; at < stop; at += UNIT, to += UNIT * bytes) {
            VECTOR v[VECTORS];
            fetch(r.data + at / UNIT * unit_bytes, ahead);
            unit(r.data, at, v);
            if (scaled)
                multiply(v, factor);
            store_unit(decoding, to, v);
        }
    }
    decode_rest(decoding, d, 0, rows, begin, first);
    decode_rest(decoding, d, 0, rows, stop, end);
}

static ALWAYS_INLINE void units_of_f8(const enum kt_decoding decoding, const struct decode_call *d,
                                      int64_t begin, int64_t end, const float *scale)
{
    decode_units(decoding, unit_f8, 1, UNIT, 256, d, begin, end, scale);
}

static ALWAYS_INLINE void units_of_i4(const enum kt_decoding decoding, const struct decode_call *d,
                                      int64_t begin, int64_t end, const float *scale)
{
    decode_units(decoding, unit_i4, 2, UNIT / 2, 1, d, begin, end, scale);
}

#if defined(DECODE_TABLES)
/* The same by a table of what the codes become under the scale, made anew when it changes. */
static ALWAYS_INLINE void decode_looked_up(const enum kt_decoding decoding, const bool is_i4,
                                           const struct decode_call *d, int64_t begin, int64_t end,
                                           const float *scale)
{
    int64_t bytes = element_bytes(decoding), ahead = d->ahead, rows = d->rows;
    int64_t row_bytes = (int64_t)kt_format_row_bytes(d->w->dtype, d->w->cols);
    int64_t first = is_i4 ? begin + begin % 2 : begin;
    int64_t stop = first + (end - first) / DECODE_TABLES * DECODE_TABLES;
    int64_t skip = (first - d->col) * bytes, from = is_i4 ? first / 2 : first;
    struct code_table table = {0};
    struct row r = first_row(d, scale);
    for (; r.index < rows && first < stop; next_row(d, row_bytes, d->ld * bytes, &r)) {
        bool is_rest = !is_common(*r.scale);
        if (!is_rest && table.scale != *r.scale)
            make_table(&table, is_i4 ? KT_DTYPE_I4 : KT_DTYPE_F8_E4M3, *r.scale);
        const uint8_t *codes = r.data + from;
        char *to = r.to + skip, *to_end = to + (is_rest ? 0 : stop - first) * bytes;
        for (; to < to_end; to += DECODE_TABLES * bytes) {
            fetch(codes, ahead);
            is_rest |= is_i4 ? look_up_i4(decoding, &table, codes, to)
                             : look_up_f8(decoding, &table, codes, to);
            codes += is_i4 ? DECODE_TABLES / 2 : DECODE_TABLES;
        }
        if (is_rest)
            decode_rest(decoding, d, r.index, 1, first, stop);
    }
    decode_rest(decoding, d, 0, rows, begin, first);
    if (stop < end && is_i4)
        units_of_i4(decoding, d, stop, end, scale);
    else if (stop < end)
        units_of_f8(decoding, d, stop, end, scale);
}
#endif

/* Columns [begin, end) of all rows, which share a scale or have one each; scale: of the first. */
static ALWAYS_INLINE void decode_columns(const enum kt_decoding decoding,
                                         const struct decode_call *d, int64_t begin, int64_t end,
                                         const float *scale)
{
    kt_dtype dtype = d->w->dtype;
#if defined(DECODE_TABLES)
    if (has_tables(decoding) && dtype == KT_DTYPE_F8_E4M3) {
        decode_looked_up(decoding, false, d, begin, end, scale);
        return;
    }
    if (has_tables(decoding) && dtype == KT_DTYPE_I4) {
        decode_looked_up(decoding, true, d, begin, end, scale);
        return;
    }
#endif
    if (dtype == KT_DTYPE_F8_E4M3)
        units_of_f8(decoding, d, begin, end, scale);
    else if (dtype == KT_DTYPE_I4)
        units_of_i4(decoding, d, begin, end, scale);
    else if (dtype == KT_DTYPE_I8)
        decode_units(decoding, unit_i8, 1, UNIT, 1, d, begin, end, scale);
    else if (dtype == KT_DTYPE_Q8_0)
        decode_units(decoding, unit_q8_0, UNIT, 34, 0, d, begin, end, scale);
    else if (dtype == KT_DTYPE_Q4_0)
        decode_units(decoding, unit_q4_0, UNIT, 18, 0, d, begin, end, scale);
    else if (dtype == KT_DTYPE_Q4_K)
        decode_units(decoding, unit_q4_k, UNIT, 18, 0, d, begin, end, scale);
    else if (dtype == KT_DTYPE_Q6_K)
        decode_units(decoding, unit_q6_k, UNIT, 26, 0, d, begin, end, scale);
    else
        decode_rest(decoding, d, 0, d->rows, begin, end);
}

/* Blocks of GGUF have scales of their own. */
static bool has_vectors(const struct kt_weight *w)
{
    return !w->scale || w->dtype == KT_DTYPE_F8_E4M3 || w->dtype == KT_DTYPE_I8 ||
           w->dtype == KT_DTYPE_I4;
}

/* Scale by scale through the columns, so that rows that share one follow each other. */
static ALWAYS_INLINE void decode(const enum kt_decoding decoding, const struct kt_weight *w,
                                 int64_t row, int64_t col, int64_t rows, int64_t cols,
                                 int64_t ahead, void *to, int64_t ld)
{
    static const float one = 1;
    const struct decode_call d = {w, row, rows, col, ahead, to, ld};
    int64_t end = col + cols;
    if (!has_vectors(w)) {
        kt_decoders_c[decoding](w, row, col, rows, cols, ahead, to, ld);
        return;
    }
    int64_t i = w->scale ? col / w->scale_cols : 0;
    const float *scale = w->scale ? kt_weight_scale(w, row, col) : &one;
    for (int64_t begin = col; begin < end; scale++) {
        int64_t stop = w->scale ? kt_min_i64(++i * w->scale_cols, end) : end;
        decode_columns(decoding, &d, begin, stop, scale);
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
