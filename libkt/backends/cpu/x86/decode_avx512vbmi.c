/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 with BF16, VBMI and GFNI: shuffles of bytes that look up all 128 magnitudes of E4M3 under
 * a scale, products of bits for those without one. */
#include <math.h>

#include "backends/cpu/x86/codes_avx512.h"
#include "backends/cpu/x86/decode_avx512.h"

/* The instruction takes subnormal numbers for zero; is_common keeps them away. */
static inline __m512i round_pair(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static inline __attribute__((always_inline)) void store_unit(const enum kt_decoding decoding,
                                                             char *to, const __m512 v[2])
{
    if (decoding == KT_DECODE_BF16)
        _mm512_storeu_si512(to, round_pair(v[0], v[1]));
    else
        store_float32(decoding == KT_DECODE_ROUNDED, to, v);
}

/* -- tables of bfloat16 -------------------------------------------------------------------------
 */

#define DECODE_TABLES 64

static inline bool has_tables(enum kt_decoding decoding)
{
    return decoding == KT_DECODE_BF16;
}

struct code_table {
    float scale;
    __m512i low[2], high[2]; /* E4M3: bytes of what the codes 0 .. 127 become */
    __m512i words;           /* I4: what the 16 codes become, twice */
};

#define OCTAVE(unit)                                                                               \
    8 * unit, 9 * unit, 10 * unit, 11 * unit, 12 * unit, 13 * unit, 14 * unit, 15 * unit
static const float f8_values[128] = {
    0 * 0x1p-9f,     1 * 0x1p-9f,     2 * 0x1p-9f,     3 * 0x1p-9f,     4 * 0x1p-9f,
    5 * 0x1p-9f,     6 * 0x1p-9f,     7 * 0x1p-9f,     OCTAVE(0x1p-9f), OCTAVE(0x1p-8f),
    OCTAVE(0x1p-7f), OCTAVE(0x1p-6f), OCTAVE(0x1p-5f), OCTAVE(0x1p-4f), OCTAVE(0x1p-3f),
    OCTAVE(0x1p-2f), OCTAVE(0x1p-1f), OCTAVE(0x1p0f),  OCTAVE(0x1p1f),  OCTAVE(0x1p2f),
    OCTAVE(0x1p3f),  OCTAVE(0x1p4f),  8 * 0x1p5f,      9 * 0x1p5f,      10 * 0x1p5f,
    11 * 0x1p5f,     12 * 0x1p5f,     13 * 0x1p5f,     14 * 0x1p5f,     NAN};
static const float i4_values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

/* bfloat16 of 32 values times a factor. */
static inline __m512i round_products(const float *values, __m512 factor)
{
    return round_pair(_mm512_mul_ps(_mm512_loadu_ps(values), factor),
                      _mm512_mul_ps(_mm512_loadu_ps(values + 16), factor));
}

/* The lower bytes of 64 words that have nothing above them. */
static inline __m512i pack_bytes(__m512i first, __m512i second)
{
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                    _mm512_packus_epi16(first, second));
}

static inline void make_table(struct code_table *t, kt_dtype dtype, float scale)
{
    __m512 factor = _mm512_set1_ps(scale);
    t->scale = scale;
    if (dtype == KT_DTYPE_I4) {
        __m512 products = _mm512_mul_ps(_mm512_loadu_ps(i4_values), factor);
        t->words = round_pair(products, products);
        return;
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i lower = _mm512_set1_epi16(0xff);
        __m512i first = round_products(f8_values + 64 * i, factor);
        __m512i second = round_products(f8_values + 64 * i + 32, factor);
        t->low[i] = pack_bytes(first & lower, second & lower);
        t->high[i] = pack_bytes(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
    }
}

/* 64 codes in the order 0, 32, 1, 33 ..: the lower bytes of words are the first 32, the upper ones
 * the others, so that words of results need no shuffle. */
static inline __m512i load_pairs(const uint8_t *codes)
{
    __m512i order =
        _mm512_setr_epi32(0x21012000, 0x23032202, 0x25052404, 0x27072606, 0x29092808, 0x2b0b2a0a,
                          0x2d0d2c0c, 0x2f0f2e0e, 0x31113010, 0x33133212, 0x35153414, 0x37173616,
                          0x39193818, 0x3b1b3a1a, 0x3d1d3c1c, 0x3f1f3e1e);
    return _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
}

/* What the lower bytes of words, and the upper ones, become. A shuffle takes the lower 7 bits of a
 * code; the upper one is the sign. */
static inline void store_words(const struct code_table *t, __m512i codes, char *of_lower,
                               char *of_upper)
{
    __m512i lower = _mm512_set1_epi16(0xff), upper = _mm512_set1_epi16((short)0xff00);
    __m512i sign = codes & _mm512_set1_epi8((char)0x80);
    __m512i low = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    __m512i high = _mm512_permutex2var_epi8(t->high[0], codes, t->high[1]) ^ sign;
    _mm512_storeu_si512(of_lower, (low & lower) | _mm512_slli_epi16(high, 8));
    _mm512_storeu_si512(of_upper, (high & upper) | _mm512_srli_epi16(low, 8));
}

static inline bool look_up_f8(enum kt_decoding decoding, const struct code_table *t,
                              const uint8_t *from, char *to)
{
    (void)decoding;
    store_words(t, load_pairs(from), to, to + 64);
    return false;
}

static inline bool look_up_i4(enum kt_decoding decoding, const struct code_table *t,
                              const uint8_t *from, char *to)
{
    (void)decoding;
    _mm512_storeu_si512(to, look_up_nibbles(from, t->words));
    _mm512_storeu_si512(to + 64, look_up_nibbles(from + 16, t->words));
    return false;
}

#include "backends/cpu/decode_template.h"

/* -- E4M3 without a scale -----------------------------------------------------------------------
 */

/* 64 codes in the order that codes_to_bf16 takes apart into the first 32 and the others. */
static inline __m512i load_eights(const uint8_t *codes)
{
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
                                    _mm512_loadu_si512(codes));
}

static bool is_codes(const struct kt_weight *w, int64_t cols)
{
    return w->dtype == KT_DTYPE_F8_E4M3 && !w->scale && cols % WIDENED_CODES == 0;
}

static void decode_codes(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                         int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    const uint8_t *codes = (const uint8_t *)w->data + row * w->cols + col;
    char *out = to;
    for (int64_t r = 0; r < rows; r++, codes += w->cols, out += 2 * ld)
        for (int64_t c = 0; c < cols; c += WIDENED_CODES) {
            if (ahead) {
                fetch(codes + c, ahead);
                fetch(codes + c + 64, ahead);
            }
            struct widened x = codes_to_bf16(load_eights(codes + c), load_eights(codes + c + 64));
            char *at = out + 2 * c;
            _mm512_storeu_si512(at, x.a_first);
            _mm512_storeu_si512(at + 64, x.a_second);
            _mm512_storeu_si512(at + 128, x.b_first);
            _mm512_storeu_si512(at + 192, x.b_second);
        }
}

static void decode_bf16_or_codes(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                                 int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    if (is_codes(w, cols))
        decode_codes(w, row, col, rows, cols, ahead, to, ld);
    else
        decode_bf16(w, row, col, rows, cols, ahead, to, ld);
}

const kt_decode_fn kt_decoders_avx512vbmi[KT_DECODINGS] = {[KT_DECODE_F32] = decode_f32,
                                                           [KT_DECODE_ROUNDED] = decode_rounded,
                                                           [KT_DECODE_BF16] = decode_bf16_or_codes};

/* -- pairs of rows -----------------------------------------------------------------------------
 */

enum { PAIR_ROWS = 32, PAIR_COLS = 64, HALF_BYTES_OF_PAIRS = 1024 };

/* 64 codes of a row so that words of two rows, unpacked, have in their lower and upper bytes what
 * the first and second half of the columns' layout hold. */
static inline __m512i load_for_pairs(const uint8_t *codes)
{
    __m512i order =
        _mm512_setr_epi32(0x05010400, 0x07030602, 0x25212420, 0x27232622, 0x0d090c08, 0x0f0b0e0a,
                          0x2d292c28, 0x2f2b2e2a, 0x15111410, 0x17131612, 0x35313430, 0x37333632,
                          0x1d191c18, 0x1f1b1e1a, 0x3d393c38, 0x3f3b3e3a);
    return _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
}

static inline void decode_pair_unit(const struct code_table *t, const uint8_t *codes, int64_t ld,
                                    int64_t ahead, char *to, int64_t stride)
{
    for (int pair = 0; pair < PAIR_ROWS / 2; pair++, codes += 2 * ld, to += 64) {
        fetch(codes, ahead);
        fetch(codes + ld, ahead);
        __m512i even = load_for_pairs(codes), odd = load_for_pairs(codes + ld);
        store_words(t, _mm512_unpacklo_epi16(even, odd), to, to + HALF_BYTES_OF_PAIRS);
        store_words(t, _mm512_unpackhi_epi16(even, odd), to + stride,
                    to + stride + HALF_BYTES_OF_PAIRS);
    }
}

/* The same without a scale. */
static inline void decode_pair_codes(const uint8_t *codes, int64_t ld, int64_t ahead, char *to,
                                     int64_t stride)
{
    for (int pair = 0; pair < PAIR_ROWS / 2; pair++, codes += 2 * ld, to += 64) {
        if (ahead) {
            fetch(codes, ahead);
            fetch(codes + ld, ahead);
        }
        __m512i even = load_eights(codes), odd = load_eights(codes + ld);
        struct widened x =
            codes_to_bf16(_mm512_unpacklo_epi8(even, odd), _mm512_unpackhi_epi8(even, odd));
        _mm512_storeu_si512(to, x.a_first);
        _mm512_storeu_si512(to + HALF_BYTES_OF_PAIRS, x.a_second);
        _mm512_storeu_si512(to + stride, x.b_first);
        _mm512_storeu_si512(to + stride + HALF_BYTES_OF_PAIRS, x.b_second);
    }
}

/* Whether each unit has one scale, and all are common, or none has. */
static bool has_whole_units(const struct kt_weight *w, int64_t row, int64_t rows, int64_t col,
                            int64_t cols)
{
    if (w->dtype != KT_DTYPE_F8_E4M3 || rows % PAIR_ROWS || cols % PAIR_COLS)
        return false;
    if (!w->scale)
        return true;
    if (w->scale_rows % PAIR_ROWS || w->scale_cols % PAIR_COLS || col % PAIR_COLS ||
        (w->first_row + row) % PAIR_ROWS)
        return false;
    for (int64_t r = row; r < row + rows; r += PAIR_ROWS)
        for (int64_t c = col; c < col + cols; c += PAIR_COLS)
            if (!is_common(*kt_weight_scale(w, r, c)))
                return false;
    return true;
}

bool kt_decode_pairs_avx512vbmi(const struct kt_weight *w, int64_t row, int64_t rows, int64_t col,
                                int64_t cols, int64_t ahead, void *to, int64_t stride)
{
    struct code_table table = {0};
    if (!has_whole_units(w, row, rows, col, cols))
        return false;
    const uint8_t *codes = (const uint8_t *)w->data + row * w->cols + col;
    for (int64_t r = 0; r < rows; r += PAIR_ROWS) {
        char *out = (char *)to + r / PAIR_ROWS * 2 * HALF_BYTES_OF_PAIRS;
        for (int64_t c = 0; c < cols; c += PAIR_COLS, out += 2 * stride) {
            const uint8_t *unit = codes + r * w->cols + c;
            if (!w->scale) {
                decode_pair_codes(unit, w->cols, ahead, out, stride);
                continue;
            }
            float scale = *kt_weight_scale(w, row + r, col + c);
            if (table.scale != scale)
                make_table(&table, KT_DTYPE_F8_E4M3, scale);
            decode_pair_unit(&table, unit, w->cols, ahead, out, stride);
        }
    }
    return true;
}
